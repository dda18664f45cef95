"""A test set as Kaggle swaps it in: the file with the rows, and the files that change with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from kaggle_llm.competition.data_files import encode_file

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class StagedTest:
    file: str
    """Name of the file with the rows."""
    rows: pl.DataFrame
    """The rows with that file's columns."""
    others: Mapping[str, bytes] = field(default_factory=dict)
    """Name of another file → its content."""

    def with_rows(self, rows: pl.DataFrame) -> StagedTest:
        return replace(self, rows=rows)

    def encode(self) -> dict[str, bytes]:
        """File name → content, of all files."""
        return {self.file: encode_file(self.rows, self.file), **self.others}


def match_columns(rows: pl.DataFrame, like: pl.DataFrame) -> pl.DataFrame:
    """Rows with the columns of another frame; one that they lack has that frame's first value."""
    import polars as pl

    lacking = [name for name in like.columns if name not in rows.columns]
    first = [pl.lit(like[name].first(), dtype=like.schema[name]).alias(name) for name in lacking]
    matched = rows.with_columns(first).select(like.columns)
    return pl.concat([like.clear(), matched], how="vertical_relaxed")
