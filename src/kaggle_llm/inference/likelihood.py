"""Documents ranked by how likely a language model says them behind a row's prompt: there are no candidates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.engine import Engine
from kaggle_llm.prompts import Prompt, Prompter
from kaggle_llm.rankings import make_ranking, top

if TYPE_CHECKING:
    import polars as pl

CHUNK = 16  # rows that are scored at a time: the grain of the time budget


def rank_by_likelihood(
    rows: pl.DataFrame, prompter: Prompter, documents: Mapping[str, Prompt], engine: Engine, budget: Budget, k: int
) -> pl.DataFrame:
    """RANKING of the first k documents of each row by log p(document's tokens | the row's prompt).

    documents: id → its token ids, its end included, so that lengths are weighed by the model itself. Rows that the
    budget cut have the documents in the order given, each with the score 0.
    """
    from tqdm import tqdm

    ids, texts = list(documents), list(documents.values())
    chunks = list(rows.iter_slices(CHUNK))
    scores: list[Sequence[float]] = []
    for chunk in tqdm(budget.take(chunks, "likelihoods"), "likelihoods", len(chunks), mininterval=5.0):
        prompts = [prompter.row(row) for row in chunk.iter_rows(named=True)]
        scores += engine.choices(prompts, texts).tolist()
    prompter.report_cuts()
    scores += [[0.0] * len(ids)] * (rows.height - len(scores))
    return top(make_ranking(rows["id"].to_list(), [ids] * rows.height, scores), min(k, len(ids)))
