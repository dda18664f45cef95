"""Looks at a competition's files: which are its train and test, its ids, joined tables, wide rows, columns of words."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.competition.competition import SAMPLE, TEST, TRAIN
from kaggle_llm.competition.data_files import SUFFIXES, as_text, find_file, list_data_files, read_file, strip_zeros
from kaggle_llm.competition.table import Table, Wide, shape_rows

if TYPE_CHECKING:
    import polars as pl

PARTS = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Files:
    """The files as text: the sample, the pair of train and test, and the others by name."""

    sample: pl.DataFrame
    train_file: str
    train: pl.DataFrame
    test_file: str
    test: pl.DataFrame
    others: Mapping[str, pl.DataFrame]


def read_files(folder: Path) -> Files:
    """Raises ValueError where there is no pair of a train and a test file with the sample's rows."""
    sample = read_sample(folder)
    frames = read_tables(path for path in list_data_files(folder) if SAMPLE not in path.name)
    stems = {stem(name): name for name in frames}
    pairs = [(stems[key], stems[swap_part(key)]) for key in stems if TEST in key.lower() and swap_part(key) in stems]
    keys = sample.columns[:2]
    fitting = [pair for pair in pairs if set(keys) & set(frames[pair[0]].columns)] or pairs
    if not fitting:
        raise ValueError(
            f"{folder} has {list_names(folder)}: a table named like test and one named like train are expected, "
            f"{', '.join(SUFFIXES)}; convert other files, or write the module by hand, with each Table's file "
            f"(docs/competition.md)"
        )
    test, train = max(fitting, key=lambda pair: pair[0].startswith(TEST) or keys[0] in frames[pair[0]].columns)
    for name in (test, train):
        find_file(folder, stem(name))  # raises where another file has the same name
    others = {name: frame for name, frame in frames.items() if name not in (test, train)}
    return Files(sample, train, frames[train], test, frames[test], others)


def read_sample(folder: Path) -> pl.DataFrame:
    """Raises FileNotFoundError without a sample submission, ValueError without an id and a cell that have names."""
    try:
        path = find_file(folder, SAMPLE)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{folder} has {list_names(folder)}, and no {SAMPLE}.csv: put one there, or rename yours; "
            f"its columns are an id and the cells"
        ) from None
    sample = as_text(read_file(path))
    if sample.width < 2 or not all(sample.columns):
        raise ValueError(
            f"{path} has the columns {sample.columns}: an id and a cell are expected, both with a name, and commas "
            f"between them; make such a file of it"
        )
    return sample


def read_tables(paths: Iterable[Path]) -> dict[str, pl.DataFrame]:
    """File name → its table. A file that is no table, such as a JSON of settings, is left out with a message."""
    frames = {}
    for path in paths:
        try:
            frames[path.name] = as_text(read_file(path))
        except ValueError as error:
            print(f"left out: {error}", file=sys.stderr)
    return frames


def list_names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stem(name: str) -> str:
    """A file's name without its endings."""
    return name.partition(".")[0]


def swap_part(name: str) -> str:
    """The name of the train file that belongs to a test file's name."""
    return re.sub("test", TRAIN, name, flags=re.IGNORECASE)


def find_id(files: Files) -> str:
    first, second, *_ = files.sample.columns
    if first in files.test.columns or find_wide(files):
        return first
    if second in files.test.columns:
        return second
    raise ValueError(
        f"the id of the sample submission, {first!r}, is no column of {files.test_file}, which has "
        f"{files.test.columns}: write the module by hand, with a read() that makes it (docs/competition.md)"
    )


def find_train_id(files: Files, id_column: str) -> str:
    """The id of train, whose name may be another than test's; raises ValueError where it has none."""
    names = [id_column, *filter(is_identifier, files.train.columns)]
    own = next((name for name in names if name in files.train.columns and files.train[name].is_unique().all()), "")
    if not (own or id_column in files.train.columns):
        raise ValueError(
            f"{files.train_file} has {files.train.columns}: neither {id_column!r}, the id of {files.test_file}, nor "
            f"another column of ids; write the module by hand, with a read() that adds them (docs/competition.md)"
        )
    return own or id_column


def find_wide(files: Files) -> Wide | None:
    """Whether the sample's ids are <id of test>_<part>, where columns of test are named by the part."""
    first = files.sample.columns[0]
    ids = files.sample[first].str.extract(r"^(.*)_([A-Z])$", 1)
    if first in files.test.columns or ids.null_count() or not ids.len():
        return None
    raw = next((name for name in files.test.columns if set(ids) <= set(files.test[name])), None)
    columns = find_patterns(files.train.columns)
    if raw is None or not columns:
        return None
    pattern = next(iter(columns.values()))
    parts = tuple(part for part in PARTS if pattern.format(part) in files.train.columns)
    shared = [name for name in files.test.columns if name in files.train.columns]
    right = next((name for name in shared if set(files.train[name].drop_nulls()) <= set(parts)), "")
    return Wide(raw, parts, columns, right)


def find_patterns(columns: Sequence[str]) -> dict[str, str]:
    """New column → pattern, of columns that differ in one capital letter: {"AnswerText": "Answer{}Text"}."""
    patterns = {}
    for name in columns:
        for position, letter in enumerate(name):
            pattern = f"{name[:position]}{{}}{name[position + 1 :]}"
            if letter == PARTS[0] and "{" not in name and pattern.format(PARTS[1]) in columns:
                patterns[pattern.format("")] = pattern
    return patterns


def find_joined(files: Files) -> dict[str, dict[str, str]]:
    """For train and test: other file → the column by which its rows belong to theirs.

    A file of test alone is none, such as the labels that Kaggle gives afterwards.
    """
    joined: dict[str, dict[str, str]] = {TRAIN: {}, TEST: {}}
    stems = set(map(stem, files.others))
    for name, frame in files.others.items():
        parts = [part for part in (TRAIN, TEST) if part in name.lower()] or [TRAIN, TEST]
        if parts == [TEST] and swap_part(stem(name)) not in stems:
            continue
        main = files.test if parts == [TEST] else files.train
        for column in frame.columns:
            if column in main.columns and column in files.test.columns and is_key(frame[column], main[column]):
                for part in parts:
                    joined[part][name] = column
                break
    return joined


def is_key(keys: pl.Series, values: pl.Series) -> bool:
    """Whether each value is one of the keys, which are unique."""
    if keys.dtype.is_nested() or values.dtype.is_nested():
        return False
    return bool(keys.is_unique().all()) and set(strip_zeros(values.drop_nulls())) <= set(strip_zeros(keys))


def shape(files: Files, part: str, spec: Table, joined: Mapping[str, Mapping[str, str]]) -> pl.DataFrame:
    """A table's rows with joined columns, wide rows split."""
    raw = files.train if part == TRAIN else files.test
    table = Table(spec.id, (), joined=joined[part], wide=spec.wide)
    return shape_rows(raw, table, lambda name: files.others[name])


def is_part(name: str, wide: Wide | None) -> bool:
    """Whether a column belongs to one part of a wide row."""
    return wide is not None and any(name == old.format(part) for old in wide.columns.values() for part in wide.parts)


def is_identifier(name: str) -> bool:
    return bool(re.search(r"(^|_)ids?$|[a-z]Id$", name))


def is_words(column: pl.Series) -> bool:
    import polars as pl

    if column.dtype != pl.String():
        return False
    filled = column.drop_nulls()
    numbers = filled.cast(pl.Float64, strict=False)
    return filled.n_unique() > 1 and numbers.null_count() > 0 and not set(filled.unique()) <= {"True", "False"}


def find_document_file(files: Files, targets: pl.Series) -> tuple[str, str] | None:
    """The file, and its column, that has all targets as ids; none of those that are joined."""
    joined = find_joined(files)
    for name, frame in files.others.items():
        for column in frame.columns if name not in {**joined[TRAIN], **joined[TEST]} else ():
            if targets.len() and is_key(frame[column], targets):
                return name, column
    return None


def holds_lists(rows: pl.DataFrame, name: str) -> bool:
    """Whether the cells of a column are lists, also as JSON."""
    import polars as pl

    cells = rows[name].drop_nulls()
    if cells.dtype != pl.String():
        return True
    return cells.len() > 0 and bool((cells.str.starts_with("[") & cells.str.ends_with("]")).all())
