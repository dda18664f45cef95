"""Fuses several rankings into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kaggle_llm.competition.rankings import make_ranking, top

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Retrieved:
    """Two RANKINGs of the same rows."""

    lexical: pl.DataFrame
    dense: pl.DataFrame


def fuse_by_rank(rankings: Sequence[pl.DataFrame], weights: Sequence[float], smoothing: float, k: int) -> pl.DataFrame:
    """Reciprocal rank fusion: score(d) = Σ_r w_r / (smoothing + rank_r(d)), the first k items.

    rankings: RANKINGs of the same ids in the same order. Source: Cormack, Clarke, Büttcher, SIGIR 2009 (there with
    smoothing 60 and equal weights). Equal scores keep the order of the first ranking that names the item.
    """
    return fuse(
        rankings, weights, k, lambda scores, weight: [weight / (smoothing + n) for n in range(1, len(scores) + 1)]
    )


def fuse_by_score(rankings: Sequence[pl.DataFrame], weights: Sequence[float], k: int) -> pl.DataFrame:
    """score(d) = Σ_r w_r · scale_r(d), the first k items; scale: `scale_scores`, 0 where a ranking lacks the item.

    rankings: RANKINGs of the same ids in the same order. Source: Lee, Analyses of Multiple Evidence Combination, SIGIR
    1997, with weights. Equal scores keep the order of the first ranking that names the item.
    """
    return fuse(rankings, weights, k, lambda scores, weight: [weight * scaled for scaled in scale_scores(scores)])


def fuse(
    rankings: Sequence[pl.DataFrame],
    weights: Sequence[float],
    k: int,
    value: Callable[[list[float], float], list[float]],
) -> pl.DataFrame:
    """The k items with the highest sums of values. value: (a row's scores, the ranking's weight) → each item's."""
    ids = check_fusible(rankings, weights)
    fused: list[dict[str, float]] = [{} for _ in ids]
    for ranking, weight in zip(rankings, weights, strict=True):
        for sums, (items, scores) in zip(fused, ranking.select("items", "scores").iter_rows(), strict=True):
            for item, own in zip(items, value(scores, weight), strict=True):
                sums[item] = sums.get(item, 0.0) + own
    return top(make_ranking(ids, [list(row) for row in fused], [list(row.values()) for row in fused]), k)


def scale_scores(scores: Sequence[float]) -> list[float]:
    """Descending scores, the first one as 1 and the last one as 0; all 0 where they are equal: they say nothing."""
    if not scores or scores[0] == scores[-1]:
        return [0.0 for _ in scores]
    return [(score - scores[-1]) / (scores[0] - scores[-1]) for score in scores]


def check_fusible(rankings: Sequence[pl.DataFrame], weights: Sequence[float]) -> list[str]:
    """The rankings' ids; raises ValueError where they or the numbers of rankings and weights differ."""
    if len(rankings) != len(weights):
        raise ValueError(f"{len(rankings)} rankings with {len(weights)} weights: give one weight for each")
    ids: list[str] = rankings[0]["id"].to_list()
    if any(ranking["id"].to_list() != ids for ranking in rankings):
        raise ValueError("rankings of different ids cannot be fused: retrieve the same queries in the same order")
    return ids
