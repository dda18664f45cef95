"""Candidates reordered by a language model that answers Yes or No."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.engine import Engine, LengthError
from kaggle_llm.prompts import ItemPrompts
from kaggle_llm.rankings import make_ranking, ranking_schema, top

if TYPE_CHECKING:
    import polars as pl

CHUNK = 16  # rows that are scored at a time: the grain of the progress bar and of the time budget
OFTEN = 60.0  # seconds between two offers of what there is so far
PATIENCE = 5.0  # seconds between two lines of progress: a notebook's log keeps each


def rerank(
    rows: pl.DataFrame,
    candidates: pl.DataFrame,
    depth: int,
    prompts: ItemPrompts,
    engine: Engine,
    budget: Budget,
    on_progress: Callable[[pl.DataFrame], None] | None = None,
) -> pl.DataFrame:
    """RANKING of the first `depth` candidates of each row by log-odds: log p(first label) − log p(second label).

    rows and candidates: the same ids in the same order. Rows that the budget cut are not in the result.
    on_progress: called with what there is so far, every OFTEN seconds.
    """
    import polars as pl
    from tqdm import tqdm

    if len(prompts.prompter.labels) != 2:
        raise ValueError(f"prompt.labels = {prompts.prompter.settings.labels}: log-odds need exactly two")
    asked = rows.with_columns(candidates=top(candidates, depth)["items"])
    chunks = list(asked.iter_slices(CHUNK))
    taken = budget.take(chunks, "reranking")
    parts, said = [pl.DataFrame(schema=ranking_schema())], budget.clock()
    for chunk in tqdm(taken, "reranking", len(chunks), unit=f" x {CHUNK} rows", mininterval=PATIENCE):
        parts.append(_rerank_chunk(chunk, prompts, engine))
        if on_progress and budget.clock() - said > OFTEN:
            on_progress(pl.concat(parts))
            said = budget.clock()
    prompts.prompter.report_cuts()
    return pl.concat(parts)


def _rerank_chunk(rows: pl.DataFrame, prompts: ItemPrompts, engine: Engine) -> pl.DataFrame:
    items = rows["candidates"].to_list()
    asked = [
        (row["id"], prompt)
        for row, kept in zip(rows.iter_rows(named=True), items, strict=True)
        for prompt in prompts.prompts(row, kept)
    ]
    try:
        logprobs = engine.choices([prompt for _, prompt in asked], prompts.prompter.labels)
    except LengthError as error:
        raise ValueError(f"row {asked[error.index][0]!r}: {error}") from error
    log_odds = iter((logprobs[:, 0] - logprobs[:, 1]).tolist())
    return make_ranking(rows["id"].to_list(), items, [[next(log_odds) for _ in kept] for kept in items])
