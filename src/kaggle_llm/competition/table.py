"""How a table of a competition lies in its files: columns, files that belong to it, wide rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kaggle_llm.competition.data_files import as_text, strip_zeros

if TYPE_CHECKING:
    import polars as pl

RIGHT = "right_"  # begins the columns of a wide row's right part


@dataclass(frozen=True)
class Wide:
    """A row of the file becomes several, one for each part: a question with four answers, say."""

    id: str
    """The file's id; a row's id is "<id>_<part>"."""
    parts: tuple[str, ...]
    columns: Mapping[str, str]
    """New column → the file's columns, with {} for the part: {"answer": "Answer{}Text"}."""
    right: str = ""
    """The column that names the right part, which becomes no row: its values are the others' right_<new column>."""


@dataclass(frozen=True)
class Table:
    """The columns of a file that are read: an id, texts, and for labelled tables the target."""

    id: str
    texts: tuple[str, ...]
    target: str = ""
    group: str = ""
    """The column whose groups of rows should stay on one side of a split; empty: there are none."""
    numbers: tuple[str, ...] = ()
    """Target columns of LabelColumns (each label's share), NumberColumns and ProbabilityColumns (the right values)."""
    file: str = ""
    """Its file; empty: the table's name with .csv, .parquet, .json or .jsonl, whichever is there."""
    joined: Mapping[str, str] = field(default_factory=dict)
    """Other file → the column that both have. Its further columns are added."""
    wide: Wide | None = None
    lists: tuple[str, ...] = ()
    """Texts whose cells are lists (as JSON in a CSV): their items are joined by a blank line."""
    kept: tuple[str, ...] = ()
    """Other columns that code of the competition asks for; they may be lists."""

    @property
    def raw_id(self) -> str:
        """The id column of the file, before a wide row becomes several."""
        return self.wide.id if self.wide else self.id

    def targets(self) -> list[str]:
        """The columns that only labelled tables have, except for the group."""
        return [name for name in dict.fromkeys([self.target, *self.numbers]) if name]

    def columns(self) -> list[str]:
        names = [self.id, *self.texts, self.target, self.group, *self.numbers, *self.kept]
        return [name for name in dict.fromkeys(names) if name]

    def raw_texts(self, columns: Sequence[str]) -> list[str]:
        """The columns of the file, among these, that hold the texts."""
        patterns = self.wide.columns if self.wide else {}
        parts = [patterns[text].format(part) for text in self.texts if text in patterns for part in self.wide_parts]
        return [name for name in (*self.texts, *parts) if name in columns]

    @property
    def wide_parts(self) -> tuple[str, ...]:
        return self.wide.parts if self.wide else ()

    def read_ids(self, rows: pl.DataFrame) -> pl.Series:
        """The ids of the file's rows, as text; none where the file has no such column."""
        import polars as pl

        if self.raw_id not in rows.columns:
            return pl.Series(self.raw_id, [], dtype=pl.String())
        return strip_zeros(as_text(rows.select(self.raw_id)).to_series())

    def row_ids(self, raw_id: str) -> list[str]:
        """The ids of the rows that a row of the file may become."""
        return [f"{raw_id}_{part}" for part in self.wide_parts] or [raw_id]

    def raw_ids(self, ids: Sequence[str]) -> list[str]:
        """The ids of the file's rows that become the rows of these ids."""
        return list(dict.fromkeys(row.rpartition("_")[0] if self.wide else row for row in ids))


def shape_rows(raw: pl.DataFrame, table: Table, read: Callable[[str], pl.DataFrame]) -> pl.DataFrame:
    """A file's rows → the table's, as text. read: the content of another file.

    A part of a wide row that has no target, where the file has targets, becomes no row.
    """
    import polars as pl

    rows = as_text(raw)
    rows = rows.with_columns(join_items(rows[name]) for name in table.lists if name in rows.columns)
    keys = dict.fromkeys([table.raw_id, table.target, table.group, *table.joined.values()])
    for file, key in table.joined.items():
        others = as_text(read(file))
        others = others.select(key, *(name for name in others.columns if name not in rows.columns))
        rows = _strip(rows, keys).join(_strip(others, [key]), on=key, how="left", maintain_order="left")
    if table.wide and table.id not in rows.columns:
        rows = split_wide(rows, table.id, table.wide)
        if table.target in rows.columns:
            rows = rows.filter(pl.col(table.target).is_not_null())
    return _strip(rows, keys)


def _strip(rows: pl.DataFrame, names: Sequence[str] | Mapping[str, None]) -> pl.DataFrame:
    import polars as pl

    return rows.with_columns(
        strip_zeros(rows[name]) for name in names if name in rows.columns and rows[name].dtype == pl.String()
    )


def split_wide(rows: pl.DataFrame, id_column: str, wide: Wide) -> pl.DataFrame:
    """Wide rows → a row for each part. Columns that the file lacks are left out."""
    import polars as pl

    patterns = {new: old for new, old in wide.columns.items() if old.format(wide.parts[0]) in rows.columns}
    has_right = wide.right in rows.columns
    rights = {
        RIGHT + new: pl.coalesce(pl.when(pl.col(wide.right) == part).then(old.format(part)) for part in wide.parts)
        for new, old in patterns.items()
        if has_right
    }
    numbered = rows.with_row_index("_row").with_columns(**rights)
    pieces = []
    for part in wide.parts:
        piece = numbered.filter(pl.col(wide.right) != part) if has_right else numbered
        values = [pl.col(old.format(part)).alias(new) for new, old in patterns.items()]
        pieces.append(piece.with_columns(pl.format("{}_" + part, wide.id).alias(id_column), *values))
    return pl.concat(pieces).sort("_row", maintain_order=True).drop("_row")


def join_items(column: pl.Series) -> pl.Series:
    """Lists of texts, also as JSON, → their items with a blank line between; another cell stays as it is."""
    import polars as pl

    texts = [cell if cell is None or isinstance(cell, str) else "\n\n".join(_texts(cell)) for cell in column]
    return pl.Series(column.name, [_read_json(text) for text in texts], dtype=pl.String())


def _read_json(text: str | None) -> str | None:
    if text is None or not text.startswith("["):
        return text
    try:
        items = json.loads(text)
    except json.JSONDecodeError:
        return text
    return "\n\n".join(_texts(items))


def _texts(items: Sequence[object]) -> list[str]:
    return ["" if item is None else str(item) for item in items]


def select_columns(rows: pl.DataFrame, table: Table, file: str) -> pl.DataFrame:
    """The table's columns, its id named `id`; raises ValueError for a missing one."""
    missing = [column for column in table.columns() if column not in rows.columns]
    if missing:
        raise ValueError(f"{file}: missing column(s) {missing}; the file has {rows.columns}")
    return rows.select(table.columns()).rename({table.id: "id"})


def check_id_column(frame: pl.DataFrame, file: str) -> None:
    """Raises ValueError for an empty or repeated id."""
    empty = frame["id"].null_count()
    if empty:
        raise ValueError(f"{file}: {empty} row(s) without an id")
    repeated = frame.filter(frame["id"].is_duplicated())["id"].unique(maintain_order=True)
    if repeated.len():
        raise ValueError(f"{file}: {repeated.len()} id(s) occur more than once, first {repeated.head(3).to_list()}")


def check_filled(frame: pl.DataFrame, file: str) -> None:
    """Raises ValueError for an empty cell."""
    for column in frame.columns[1:]:
        rows = frame.filter(frame[column].is_null())["id"]
        if rows.len():
            raise ValueError(
                f"{file}: {column} is null in {rows.len()} row(s), first {rows.head(3).to_list()}: "
                f"fill or drop them in the competition's read()"
            )


def fill_texts(frame: pl.DataFrame, texts: Sequence[str], file: str) -> pl.DataFrame:
    """Empty texts become "", with a message."""
    import polars as pl

    empty = {text: frame[text].null_count() for text in texts if frame[text].null_count()}
    if empty:
        print(f"{file}: empty texts are read as '': {empty}", file=sys.stderr)
    return frame.with_columns(pl.col(list(texts)).fill_null(""))
