"""Fuses several rankings into one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kaggle_llm.competition.rankings import make_ranking, top

if TYPE_CHECKING:
    import polars as pl


def fuse_by_rank(rankings: Sequence[pl.DataFrame], weights: Sequence[float], smoothing: float, k: int) -> pl.DataFrame:
    """Reciprocal rank fusion: score(d) = Σ_r w_r / (smoothing + rank_r(d)), the first k items.

    rankings: RANKINGs of the same ids in the same order. Source: Cormack, Clarke, Büttcher, SIGIR 2009 (there with
    smoothing 60 and equal weights). Equal scores keep the order of the first ranking that names the item.
    """
    if len(rankings) != len(weights):
        raise ValueError(f"{len(rankings)} rankings with {len(weights)} weights: give one weight for each")
    ids = rankings[0]["id"].to_list()
    if any(ranking["id"].to_list() != ids for ranking in rankings):
        raise ValueError("rankings of different ids cannot be fused: retrieve the same queries in the same order")
    fused: list[dict[str, float]] = [{} for _ in ids]
    for ranking, weight in zip(rankings, weights, strict=True):
        for scores, items in zip(fused, ranking["items"].to_list(), strict=True):
            for rank, item in enumerate(items, start=1):
                scores[item] = scores.get(item, 0.0) + weight / (smoothing + rank)
    return top(make_ranking(ids, [list(row) for row in fused], [list(row.values()) for row in fused]), k)
