"""Texts that a language model writes for rows, within the time; one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.engines.engine import Engine, LengthError, Sampling
from kaggle_llm.engines.prompts import Prompter
from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.progress import work_through

if TYPE_CHECKING:
    import polars as pl

LONGEST = 1000  # characters of a spare text, which may be one word
CHUNK = 32  # rows that are written for at a time where time is short: the grain of the budget


@dataclass
class WritingSettings:
    max_tokens: int = 64
    """Tokens that a text may take."""
    spare: str = ""
    """The text of a row that has none, neither written nor in its own words."""
    spare_words: int = 16
    """Of a row's own text, what stands for one that was not written."""


def write_lines(
    rows: pl.DataFrame,
    prompter: Prompter,
    engine: Engine,
    settings: WritingSettings,
    budget: Budget,
    on_progress: Callable[[Sequence[str]], None] | None = None,
) -> list[str]:
    """The first line that the model writes for each row, the likeliest token at a time; "" for none.

    Empty lines before it do not count: a model that was not trained to write one line often begins with some. Rows that
    the budget cut have "" too. on_progress: called with the lines so far, "" for those that are to come, every minute.
    """
    sampling = Sampling(settings.max_tokens)

    def answer(part: Sequence[Mapping[str, Any]]) -> list[str]:
        return write_part(part, prompter, engine, sampling)

    def tell(parts: Sequence[Sequence[str]]) -> None:
        if on_progress:
            on_progress(pad(parts, rows.height))

    parts = work_through(budget.split(rows.rows(named=True), CHUNK), budget, "writing", answer, tell)
    prompter.report_cuts()
    found = pad(parts, rows.height)
    unwritten = [row for row, line in zip(rows["id"].to_list(), found, strict=True) if not line]
    if unwritten:
        print(f"{len(unwritten)} row(s) for which nothing was written, first {unwritten[:3]}", flush=True)
    return found


def write_texts(
    rows: pl.DataFrame,
    column: str,
    prompter: Prompter,
    engine: Engine,
    settings: WritingSettings,
    budget: Budget,
    on_progress: Callable[[pl.DataFrame], None],
) -> pl.DataFrame:
    """RANKING of the line that is written for each row: `rank_texts` of `write_lines`."""

    def tell(lines: Sequence[str]) -> None:
        on_progress(rank_texts(rows, lines, column, settings))

    return rank_texts(rows, write_lines(rows, prompter, engine, settings, budget, tell), column, settings)


def write_part(rows: Sequence[Mapping[str, Any]], prompter: Prompter, engine: Engine, sampling: Sampling) -> list[str]:
    """The first lines of some rows; raises ValueError naming the row whose prompt the model does not take."""
    try:
        found = engine.generate([prompter.row(row) for row in rows], sampling)
    except LengthError as error:
        raise ValueError(f"row {rows[error.index]['id']!r}: {error}") from error
    return [next(filter(None, map(str.strip, completions[0].text.splitlines())), "") for completions in found]


def pad(parts: Sequence[Sequence[str]], count: int) -> list[str]:
    """The lines of all parts, and "" for the rows that have none yet."""
    lines = list(chain.from_iterable(parts))
    return lines + [""] * (count - len(lines))


def rank_texts(rows: pl.DataFrame, lines: Sequence[str], column: str, settings: WritingSettings) -> pl.DataFrame:
    """RANKING with each row's line as its only item, score 0; no row is without a text.

    A row without a line has the first words of its text in `column`, or where that is empty too `settings.spare`, which
    has to be given: raises ValueError where it is not.
    """
    if not settings.spare.strip():
        raise ValueError(f"writing.spare = {settings.spare!r}: a row of which nothing is known needs a text too")
    texts = [
        line or " ".join(own.split()[: settings.spare_words])[:LONGEST] or settings.spare
        for line, own in zip(lines, rows[column].to_list(), strict=True)
    ]
    return make_ranking(rows["id"].to_list(), [[text] for text in texts], [[0.0]] * len(texts))


def rank_first_words(rows: pl.DataFrame, column: str, settings: WritingSettings) -> pl.DataFrame:
    """The simplest rule: every row's own first words, as if nothing was written."""
    return rank_texts(rows, pad([], rows.height), column, settings)
