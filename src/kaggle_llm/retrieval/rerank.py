"""Reorders candidates by a score of each: that of a language model that answers Yes or No."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from kaggle_llm.base.device import has_gpu
from kaggle_llm.competition.rankings import make_ranking, ranking_schema, top
from kaggle_llm.engines.engine import Engine, LengthError
from kaggle_llm.engines.prompts import ItemPrompts, Prompt
from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.progress import answer_rows

if TYPE_CHECKING:
    import polars as pl

ROWS_A_CHUNK, ROWS_ON_A_CARD = 16, 64  # the budget is checked and the progress bar moves between chunks


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
    if len(prompts.prompter.labels) != 2:
        raise ValueError(f"prompt.labels = {prompts.prompter.settings.labels}: log-odds need exactly two")

    def ask(asked: Sequence[Prompt]) -> list[float]:
        logprobs = engine.choices(asked, prompts.prompter.labels)
        odds: list[float] = (logprobs[:, 0] - logprobs[:, 1]).tolist()
        return odds

    ranking = score_candidates(rows, candidates, depth, prompts.prompts, ask, budget, on_progress)
    prompts.prompter.report_cuts()
    return ranking


def score_candidates(
    rows: pl.DataFrame,
    candidates: pl.DataFrame,
    depth: int,
    make_prompts: Callable[[Mapping[str, Any], Sequence[str]], Sequence[Prompt]],
    ask: Callable[[Sequence[Prompt]], list[float]],
    budget: Budget,
    on_progress: Callable[[pl.DataFrame], None] | None = None,
) -> pl.DataFrame:
    """See `rerank`. make_prompts: (row, items) → a prompt for each item; ask: prompts → a score for each."""
    import polars as pl

    asked = rows.with_columns(candidates=top(candidates, depth)["items"])

    def answer(chunk: pl.DataFrame) -> pl.DataFrame:
        return _score_chunk(chunk, make_prompts, ask)

    chunks = list(asked.iter_slices(ROWS_ON_A_CARD if has_gpu() else ROWS_A_CHUNK))
    no_rows = pl.DataFrame(schema=ranking_schema())
    return answer_rows(chunks, no_rows, budget, "reranking", answer, on_progress)


def _score_chunk(
    rows: pl.DataFrame,
    make_prompts: Callable[[Mapping[str, Any], Sequence[str]], Sequence[Prompt]],
    ask: Callable[[Sequence[Prompt]], list[float]],
) -> pl.DataFrame:
    items = rows["candidates"].to_list()
    asked = [
        (row["id"], prompt)
        for row, row_items in zip(rows.iter_rows(named=True), items, strict=True)
        for prompt in make_prompts(row, row_items)
    ]
    try:
        scores = iter(ask([prompt for _, prompt in asked]))
    except LengthError as error:
        raise ValueError(f"row {asked[error.index][0]!r}: {error}") from error
    return make_ranking(rows["id"].to_list(), items, [[next(scores) for _ in row_items] for row_items in items])
