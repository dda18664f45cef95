"""Reads a CSV as pandas does: stray quotes, blank lines, every line end; what is broken is named with its line."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

END = "\0end of the table\0"  # a last line: a quote that is still open takes it in
# Cells that pandas reads as empty, quoted or not: its STR_NA_VALUES.
NULL_WORDS = frozenset(["#N/A", "#N/A N/A", "#NA", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"])
NULL_WORDS |= {"-NaN", "-nan", "-1.#IND", "-1.#QNAN", "1.#IND", "1.#QNAN"}
ROWS_A_CHUNK = 10_000  # held as Python strings at a time


def read_csv(path: Path) -> pl.DataFrame:
    """All columns as String; an empty field is null, quoted or not. A line without a filled field is no row.

    Raises FileNotFoundError, and ValueError with the line for bytes that are not UTF-8, too many fields, or a quote
    that is never closed.
    """
    import polars as pl

    if not path.is_file():
        raise FileNotFoundError(f"{path.name} is missing in {path.parent}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = _read_rows(path, lines)
            columns = _name_columns(next(rows, []))
            if not columns:
                raise ValueError(f"{path} is no CSV table: it is empty")
            schema = dict.fromkeys(columns, pl.String())
            frames = [pl.DataFrame(schema=schema)]
            while chunk := list(islice(rows, ROWS_A_CHUNK)):
                frames.append(pl.DataFrame(list(zip(*chunk, strict=True)), schema=schema))
            return pl.concat(frames)
    except UnicodeDecodeError:
        raise ValueError(_describe_bad_byte(path)) from None


def _read_rows(path: Path, lines: Iterator[str]) -> Iterator[list[str | None]]:
    """The header, then the rows that have a filled field, each as long as the header."""
    csv.field_size_limit(sys.maxsize)  # of all readers: the default refuses a text of 128 kB
    reader = csv.reader(chain(lines, [END]))
    width, start = 0, 1
    for row in reader:
        if row and row[-1].endswith(END):
            if row != [END]:
                raise ValueError(f"{path} is no CSV table: the row in line {start} has a quote that is never closed")
            return
        if any(field.strip() for field in row):
            width = width or len(row)
            if len(row) > width:
                raise ValueError(f"{path} is no CSV table: line {start} has {len(row)} fields, the header {width}")
            yield [field or None for field in row] + [None] * (width - len(row))
        start = reader.line_num + 1


def _describe_bad_byte(path: Path) -> str:
    content = path.read_bytes()
    try:
        content.decode()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return f"{path}: line {line} has a byte 0x{content[error.start]:02x} that is not UTF-8: convert the file first"
    return f"{path} is not UTF-8: convert the file first"


def _name_columns(header: list[str | None]) -> list[str]:
    """Names that occur once, made as polars makes them."""
    seen: dict[str, int] = {}
    names = []
    for name in (name or "" for name in header):
        repeats = seen[name] = seen.get(name, -1) + 1
        names.append(f"{name}_duplicated_{repeats - 1}" if repeats else name)
    return names
