"""Scores of a ranking, their uncertainty, and the paired difference of two.

A truth is a frame with the columns `id` and `items` (list of the right items). All scores lie in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

Rows = Callable[["pl.DataFrame", "pl.DataFrame"], "np.ndarray"]


@dataclass(frozen=True)
class Metric:
    """score(ranking, truth) → float; rows(ranking, truth) → one value per row with mean(rows) == score.

    rows is None where the metric is no mean over rows: the bootstrap then calls `score` again.
    """

    name: str
    greater_is_better: bool
    score: Callable[[pl.DataFrame, pl.DataFrame], float]
    rows: Rows | None = None


def mean_average_precision(k: int) -> Metric:
    """MAP@k: mean over rows of (1/min(m, k)) Σ_{i≤k} precision(i)·relevant(i), m right items.

    Source of the formula: Manning, Raghavan, Schütze, Introduction to Information Retrieval, section 8.4, cut at k.
    """
    return _mean_metric(f"map@{k}", partial(_average_precision, k=k))


def recall(k: int) -> Metric:
    """recall@k: mean over rows of the share of right items among the first k."""
    return _mean_metric(f"recall@{k}", partial(_recall, k=k))


def _mean_metric(name: str, one: Callable[[list[str], set[str]], float]) -> Metric:
    import numpy as np

    def rows(ranking: pl.DataFrame, truth: pl.DataFrame) -> np.ndarray:
        right = dict(truth.select("id", "items").iter_rows())
        missing = [i for i in ranking["id"] if i not in right]
        if missing:
            raise ValueError(f"{len(missing)} ranked row(s) without truth, first {missing[:3]}")
        pairs = ranking.select("id", "items").iter_rows()
        return np.array([one(items, set(right[i])) for i, items in pairs], dtype=float)

    def score(ranking: pl.DataFrame, truth: pl.DataFrame) -> float:
        if ranking.height == 0:
            raise ValueError(f"{name} of no rows is not defined: the ranking is empty")
        return float(rows(ranking, truth).mean())

    return Metric(name, True, score, rows)


def _average_precision(items: list[str], right: set[str], k: int) -> float:
    if not right:
        return 0.0
    hits, total = 0, 0.0
    for place, item in enumerate(items[:k], start=1):
        if item in right:
            hits += 1
            total += hits / place
    return total / min(len(right), k)


def _recall(items: list[str], right: set[str], k: int) -> float:
    return len(right.intersection(items[:k])) / len(right) if right else 0.0


def bootstrap_interval(
    metric: Metric, ranking: pl.DataFrame, truth: pl.DataFrame, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of metric.score over rows drawn with replacement (Efron's percentile method)."""
    return _percentiles(_resampled_scores(metric, ranking, truth, draws, seed))


def paired_difference(
    metric: Metric,
    ranking: pl.DataFrame,
    other: pl.DataFrame,
    truth: pl.DataFrame,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """score(ranking) − score(other) on the same rows, and its 95 % paired-bootstrap interval (same draws for both).

    Raises ValueError where the two do not rank the same ids.
    """
    if ranking["id"].to_list() != other["id"].to_list():
        raise ValueError(
            f"paired rows must be the same: {ranking.height} and {other.height} rows with different ids or order"
        )
    difference = metric.score(ranking, truth) - metric.score(other, truth)
    first = _resampled_scores(metric, ranking, truth, draws, seed)
    second = _resampled_scores(metric, other, truth, draws, seed)
    return (difference, *_percentiles(first - second))


def _resampled_scores(metric: Metric, ranking: pl.DataFrame, truth: pl.DataFrame, draws: int, seed: int) -> np.ndarray:
    import numpy as np

    if ranking.height == 0:
        raise ValueError(f"the interval of {metric.name} over no rows is not defined: the ranking is empty")
    drawn = np.random.default_rng(seed).integers(0, ranking.height, size=(draws, ranking.height))
    if metric.rows is not None:
        return metric.rows(ranking, truth)[drawn].mean(axis=1)
    return np.array([metric.score(ranking[rows], truth) for rows in drawn.tolist()])


def _percentiles(scores: np.ndarray) -> tuple[float, float]:
    import numpy as np

    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)
