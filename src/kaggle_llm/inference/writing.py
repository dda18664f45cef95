"""Texts that a language model writes for rows, within the time; one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.engine import Engine, Sampling
from kaggle_llm.prompts import Prompter
from kaggle_llm.rankings import make_ranking

if TYPE_CHECKING:
    import polars as pl

LONGEST = 1000  # characters of a spare text, which may be one word
CHUNK = 32  # rows that are written for at a time: the grain of the time budget


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
    """The first line that the model writes for each row, the likeliest token at a time, or "".

    Empty lines before it do not count: a model that was not trained to write one line often begins with some.

    Rows that the budget cut have "" too. on_progress: called with the lines so far, "" for those that are to come.
    """
    from tqdm import tqdm

    sampling = Sampling(settings.max_tokens)
    parts = budget.split(rows.rows(named=True), CHUNK)
    lines: list[str] = []
    for part in tqdm(budget.take(parts, "writing"), "writing", len(parts), unit=f" x {CHUNK} rows", mininterval=5.0):
        lines += write_part(part, prompter, engine, sampling)
        if on_progress:
            on_progress([*lines, *[""] * (rows.height - len(lines))])
    prompter.report_cuts()
    return [*lines, *[""] * (rows.height - len(lines))]


def write_part(rows: Sequence[Mapping[str, Any]], prompter: Prompter, engine: Engine, sampling: Sampling) -> list[str]:
    found = engine.generate([prompter.row(row) for row in rows], sampling)
    return [next(filter(None, map(str.strip, completions[0].text.splitlines())), "") for completions in found]


def rank_texts(rows: pl.DataFrame, lines: Sequence[str], column: str, settings: WritingSettings) -> pl.DataFrame:
    """RANKING with each row's line as its only item, score 0; no row is without a text, which is said.

    A row without a line, because the model wrote none or the time was over, has the first words of its text in
    `column`, or where that is empty too `settings.spare`.
    """
    texts = [
        line or " ".join(own.split()[: settings.spare_words])[:LONGEST] or settings.spare
        for line, own in zip(lines, rows[column].to_list(), strict=True)
    ]
    unwritten = [row for row, line in zip(rows["id"].to_list(), lines, strict=True) if not line]
    if unwritten:
        print(f"{len(unwritten)} row(s) without a written text have a spare one, first {unwritten[:3]}", flush=True)
    return make_ranking(rows["id"].to_list(), [[text] for text in texts], [[0.0]] * len(texts))
