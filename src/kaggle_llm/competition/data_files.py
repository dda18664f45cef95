"""Data files as Kaggle gives them: CSV, Parquet, JSON and JSON lines, each also as the only member of a .zip."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from kaggle_llm.competition.csv_table import read_csv

if TYPE_CHECKING:
    import polars as pl

SUFFIXES = (".csv", ".parquet", ".json", ".jsonl")
ZIP = ".zip"
ENDINGS = (*SUFFIXES, *(f"{suffix}{ZIP}" for suffix in SUFFIXES))


def list_data_files(folder: Path) -> list[Path]:
    """The tables that lie in a folder itself, by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name.endswith(ENDINGS))


def find_file(folder: Path, name: str) -> Path:
    """The file of this name; for a name without an ending, the only such file with one of ENDINGS.

    Raises FileNotFoundError where there is none, ValueError where there are several.
    """
    names = [name] if name.endswith(ENDINGS) else [f"{name}{ending}" for ending in ENDINGS]
    paths = [folder / name for name in names if (folder / name).is_file()]
    if not paths:
        others = f" (nor is there {', '.join(SUFFIXES[1:])})" if len(names) > 1 else ""
        raise FileNotFoundError(f"{names[0]} is missing in {folder}{others}")
    if len(paths) > 1:
        raise ValueError(
            f"{folder} has {' and '.join(path.name for path in paths)}: remove one, or say which in the Table's file"
        )
    return paths[0]


def read_file(path: Path) -> pl.DataFrame:
    """The table as the file has it: a CSV all String, the others with the types of their columns.

    Raises FileNotFoundError, and ValueError with the file's name for a content that cannot be read.
    """
    import polars as pl

    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is missing in {path.parent}")
    if path.suffix == ZIP:
        with _unpack(path) as member:
            return read_file(member)
    if path.suffix == ".csv":
        return read_csv(path)
    try:
        if path.suffix == ".parquet":
            return pl.read_parquet(path)
        if path.suffix == ".jsonl":
            return pl.read_ndjson(path, infer_schema_length=None)
        return _read_records(path)
    except (pl.exceptions.PolarsError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is no {path.suffix[1:]} table: {error}") from None


def encode_file(frame: pl.DataFrame, name: str) -> bytes:
    """The content of a file of this name; `read_file` reads the same table from it."""
    if name.endswith(ZIP):
        member, buffer = name.removesuffix(ZIP), io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, encode_file(frame, member))
        return buffer.getvalue()
    if name.endswith(".parquet"):
        buffer = io.BytesIO()
        frame.write_parquet(buffer)
        return buffer.getvalue()
    if name.endswith(".jsonl"):
        return frame.write_ndjson().encode()
    return (frame.write_json() if name.endswith(".json") else frame.write_csv()).encode()


def as_text(frame: pl.DataFrame) -> pl.DataFrame:
    """Every column as String, but lists stay lists; True and False as pandas writes them, objects as JSON."""
    import polars as pl

    columns = []
    for name, dtype in frame.schema.items():
        column = pl.col(name)
        if isinstance(dtype, pl.Struct):
            columns.append(column.struct.json_encode())
        elif dtype == pl.Boolean():
            columns.append(column.cast(pl.String()).str.to_titlecase())
        else:
            columns.append(column if isinstance(dtype, pl.List | pl.Array) else column.cast(pl.String()))
    return frame.select(columns)


def strip_zeros(column: pl.Series) -> pl.Series:
    """A String column of whole numbers without their ".0", which pandas writes where others of the column are empty."""
    whole = column.str.contains(r"^-?\d+\.0$")
    return column.str.strip_suffix(".0") if whole.drop_nulls().all() and whole.any() else column


@contextmanager
def _unpack(path: Path) -> Iterator[Path]:
    with zipfile.ZipFile(path) as archive, TemporaryDirectory() as folder:
        members = [name for name in archive.namelist() if name.endswith(SUFFIXES) and not name.startswith("__MACOSX")]
        if len(members) != 1:
            raise ValueError(f"{path} holds {members or 'no table'}: one is expected; unpack it")
        yield Path(archive.extract(members[0], folder))


def _read_records(path: Path) -> pl.DataFrame:
    """A JSON list of objects, one a row; a key that an object lacks is null."""
    import polars as pl

    rows = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} is no JSON table: a list of objects is expected, one a row; read it in read()")
    return pl.DataFrame(rows, infer_schema_length=None)
