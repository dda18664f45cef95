"""A generated competition as Kaggle lays it out: what everybody sees, and the hidden test with its solution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.base import records

if TYPE_CHECKING:
    import polars as pl


def write_competition(
    input_dir: Path,
    hidden_dir: Path,
    train: pl.DataFrame,
    public: pl.DataFrame,
    hidden: pl.DataFrame,
    guess: Mapping[str, str],
    hide: Sequence[str] = (),
    **tables: pl.DataFrame,
) -> None:
    """train.csv, test.csv, sample_submission.csv and <tables>.csv; and the hidden test.csv and solution.csv.

    train, public, hidden: labelled rows with the same columns, ids in `id`; public are those of the test.csv that
    everybody sees. guess: the target columns → what the sample submission says in every row. hide: other columns that
    only training rows and the solution have.
    """
    import polars as pl

    answers = list(guess)
    write_table(input_dir / "train.csv", train)
    for name, table in tables.items():
        write_table(input_dir / f"{name}.csv", table)
    write_table(input_dir / "test.csv", public.drop(answers, *hide))
    write_table(input_dir / "sample_submission.csv", public.select("id", **{k: pl.lit(v) for k, v in guess.items()}))
    write_table(hidden_dir / "test.csv", hidden.drop(answers, *hide))
    write_table(hidden_dir / "solution.csv", hidden.select("id", *answers, *hide))


def write_table(path: Path, table: pl.DataFrame) -> None:
    records.write_file(path, table.write_csv)


def number_rows(prefix: str, first: int, count: int) -> list[str]:
    """Ids such as tr00001."""
    return [f"{prefix}{number:05d}" for number in range(first, first + count)]
