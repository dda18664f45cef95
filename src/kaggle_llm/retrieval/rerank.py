"""Reorders candidates with a language model that answers Yes or No."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kaggle_llm.competition.rankings import make_ranking, ranking_schema, top
from kaggle_llm.engines.engine import Engine, LengthError
from kaggle_llm.engines.prompts import ItemPrompts
from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.progress import work_through

if TYPE_CHECKING:
    import polars as pl

ROWS_A_CHUNK = 16  # the budget is checked and the progress bar moves between chunks


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

    rows and candidates: the same ids in the same order. Rows that the budget cut are missing. on_progress: called every
    minute with the RANKING so far.
    """
    import polars as pl

    if len(prompts.prompter.labels) != 2:
        raise ValueError(f"prompt.labels = {prompts.prompter.settings.labels}: log-odds need exactly two")
    asked = rows.with_columns(candidates=top(candidates, depth)["items"])

    def answer(chunk: pl.DataFrame) -> pl.DataFrame:
        return _rerank_chunk(chunk, prompts, engine)

    def report(parts: Sequence[pl.DataFrame]) -> None:
        if on_progress:
            on_progress(pl.concat(parts))

    parts = work_through(list(asked.iter_slices(ROWS_A_CHUNK)), budget, "reranking", answer, report)
    prompts.prompter.report_cuts()
    return pl.concat([pl.DataFrame(schema=ranking_schema()), *parts])


def _rerank_chunk(rows: pl.DataFrame, prompts: ItemPrompts, engine: Engine) -> pl.DataFrame:
    items = rows["candidates"].to_list()
    asked = [
        (row["id"], prompt)
        for row, row_items in zip(rows.iter_rows(named=True), items, strict=True)
        for prompt in prompts.prompts(row, row_items)
    ]
    try:
        logprobs = engine.choices([prompt for _, prompt in asked], prompts.prompter.labels)
    except LengthError as error:
        raise ValueError(f"row {asked[error.index][0]!r}: {error}") from error
    log_odds = iter((logprobs[:, 0] - logprobs[:, 1]).tolist())
    return make_ranking(rows["id"].to_list(), items, [[next(log_odds) for _ in row_items] for row_items in items])
