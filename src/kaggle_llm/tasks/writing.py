"""Writes one line for each row with a language model, within the time budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from kaggle_llm.competition.csv_table import NULL_WORDS
from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.engines.engine import Engine, LengthError, Sampling
from kaggle_llm.engines.prompts import Prompter
from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.progress import work_through

if TYPE_CHECKING:
    import polars as pl

MAX_SPARE_CHARACTERS = 1000  # of a row's own words, which may be one endless word
ROWS_A_CHUNK = 32  # at most so many where time is short: the budget is checked between chunks


@dataclass
class WritingSettings:
    max_tokens: int = 64
    """Tokens of a text, at most."""
    spare: str = ""
    """The text of a row that got no written line and has no words of its own: Kaggle refuses a blank answer."""
    spare_words: int = 16
    """A row for which no line was written gets so many first words of its own text."""


def write_lines(
    rows: pl.DataFrame,
    prompter: Prompter,
    engine: Engine,
    settings: WritingSettings,
    budget: Budget,
    on_progress: Callable[[Sequence[str]], None] | None = None,
) -> list[str]:
    """The first line that is not empty of the model's greedy text for each row; "" where there is none.

    (A model that was not trained to write one line often begins with empty ones.) Rows that the budget cut have "" too.
    on_progress: called every minute with the lines so far, "" for rows to come.
    """
    sampling = Sampling(settings.max_tokens)

    def answer(part: Sequence[Mapping[str, Any]]) -> list[str]:
        return write_part(part, prompter, engine, sampling)

    def report(parts: Sequence[Sequence[str]]) -> None:
        if on_progress:
            on_progress(pad(parts, rows.height))

    parts = work_through(budget.split(rows.rows(named=True), ROWS_A_CHUNK), budget, "writing", answer, report)
    prompter.report_cuts()
    lines = pad(parts, rows.height)
    unwritten = [row for row, line in zip(rows["id"].to_list(), lines, strict=True) if not line]
    if unwritten:
        print(f"{len(unwritten)} row(s) for which nothing was written, first {unwritten[:3]}", flush=True)
    return lines


def write_texts(
    rows: pl.DataFrame,
    column: str,
    prompter: Prompter,
    engine: Engine,
    settings: WritingSettings,
    budget: Budget,
    on_progress: Callable[[pl.DataFrame], None],
) -> pl.DataFrame:
    """RANKING of the line written for each row: `rank_texts` of `write_lines`."""

    def report(lines: Sequence[str]) -> None:
        on_progress(rank_texts(rows, lines, column, settings))

    return rank_texts(rows, write_lines(rows, prompter, engine, settings, budget, report), column, settings)


def write_part(rows: Sequence[Mapping[str, Any]], prompter: Prompter, engine: Engine, sampling: Sampling) -> list[str]:
    """The lines of some rows; raises ValueError naming the row whose prompt is too long for the model."""
    try:
        generated = engine.generate([prompter.row(row) for row in rows], sampling)
    except LengthError as error:
        raise ValueError(f"row {rows[error.index]['id']!r}: {error}") from error
    return [next(filter(None, map(str.strip, completions[0].text.splitlines())), "") for completions in generated]


def pad(parts: Sequence[Sequence[str]], count: int) -> list[str]:
    """The lines of all parts, and "" for the rows without one."""
    lines = list(chain.from_iterable(parts))
    return lines + [""] * (count - len(lines))


def rank_texts(rows: pl.DataFrame, lines: Sequence[str], column: str, settings: WritingSettings) -> pl.DataFrame:
    """RANKING with each row's line as its only item, score 0.

    A row without a line gets the first words of its text in `column`, or `settings.spare` where that is empty too. A
    text such as None or NA, which Kaggle reads as an empty cell, counts as empty. Raises ValueError where `spare` is.
    """
    if not _is_filled(settings.spare.strip()):
        raise ValueError(f"writing.spare = {settings.spare!r}: give a text for rows without any words")
    texts = []
    for line, own in zip(lines, rows[column].to_list(), strict=True):
        first_words = " ".join(own.split()[: settings.spare_words])[:MAX_SPARE_CHARACTERS]
        texts.append(next(filter(_is_filled, (line, first_words)), settings.spare))
    return make_ranking(rows["id"].to_list(), [[text] for text in texts], [[0.0]] * len(texts))


def _is_filled(text: str) -> bool:
    return bool(text) and text not in NULL_WORDS


def rank_first_words(rows: pl.DataFrame, column: str, settings: WritingSettings) -> pl.DataFrame:
    """Baseline: every row's own first words."""
    return rank_texts(rows, pad([], rows.height), column, settings)
