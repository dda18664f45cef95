"""Texts that a language model writes for rows, within the time; one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.engine import Engine, Sampling
from kaggle_llm.prompts import Prompter

if TYPE_CHECKING:
    import polars as pl

CHUNK = 32  # rows that are written for at a time: the grain of the time budget


@dataclass
class WritingSettings:
    max_tokens: int = 64
    """Tokens that a text may take."""


def write_lines(
    rows: pl.DataFrame,
    prompter: Prompter,
    engine: Engine,
    settings: WritingSettings,
    budget: Budget,
    on_progress: Callable[[Sequence[str]], None] | None = None,
) -> list[str]:
    """The first line that the model writes for each row, the likeliest token at a time; "" where it writes none.

    Rows that the budget cut have "" too. on_progress: called with the lines so far, "" for those that are to come.
    """
    from tqdm import tqdm

    sampling = Sampling(settings.max_tokens, stop=("\n",))
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
    return [completions[0].text.strip() for completions in found]
