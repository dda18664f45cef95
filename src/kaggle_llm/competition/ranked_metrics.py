"""Metrics of ranked items: how many of the right ones stand among the first."""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

from kaggle_llm.competition.metric import Metric, by_row, join_truth, mean_metric

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


def mean_average_precision(k: int) -> Metric:
    """MAP@k: mean over rows of (1/min(m, k)) Σ_{i≤k} precision(i)·relevant(i), m right items.

    Source: Manning, Raghavan, Schütze, Introduction to Information Retrieval, section 8.4, cut at k.
    """
    return mean_metric(f"map@{k}", by_row(partial(_average_precision, k=k)))


def recall(k: int) -> Metric:
    """recall@k: mean over rows of the share of right items among the first k."""
    return mean_metric(f"recall@{k}", by_row(partial(_recall, k=k)))


def precision(k: int) -> Metric:
    """precision@k: mean over rows of the number of right items among the first k, divided by k."""
    return mean_metric(f"precision@{k}", by_row(lambda items, right: len(right.intersection(items[:k])) / k))


def mean_reciprocal_rank() -> Metric:
    """MRR: mean over rows of 1 / the rank of the first right item; 0 for a row without one."""
    return mean_metric("mrr", by_row(_reciprocal_rank))


def ndcg(k: int) -> Metric:
    """nDCG@k: mean over rows of Σ_{i≤k} grade(i)/log2(i+1), divided by the largest that the row's grades allow.

    The grade of a right item is 1, or stands in the truth's list `grades` beside `items`. Source: Järvelin, Kekäläinen,
    Cumulated gain-based evaluation of IR techniques, 2002, with linear gains as in trec_eval and scikit-learn.
    """

    def rows(ranking: pl.DataFrame, truth: pl.DataFrame) -> np.ndarray:
        import numpy as np

        joined = join_truth(ranking, truth)
        right = joined["right"].to_list()
        if "grades" in truth.columns:
            grades = join_truth(ranking, truth, "grades")["right"].to_list()
        else:
            grades = [[1.0] * len(items) for items in right]
        graded = [dict(zip(*row, strict=True)) for row in zip(right, grades, strict=True)]
        pairs = zip(joined["items"].to_list(), graded, strict=True)
        return np.array([_ndcg(items, grades, k) for items, grades in pairs], dtype=float)

    return mean_metric(f"ndcg@{k}", rows)


def _average_precision(items: list[str], right: set[str], k: int) -> float:
    if not right:
        return 0.0
    hits, total = 0, 0.0
    for rank, item in enumerate(items[:k], start=1):
        if item in right:
            hits += 1
            total += hits / rank
    return total / min(len(right), k)


def _recall(items: list[str], right: set[str], k: int) -> float:
    return len(right.intersection(items[:k])) / len(right) if right else 0.0


def _reciprocal_rank(items: list[str], right: set[str]) -> float:
    return next((1 / rank for rank, item in enumerate(items, start=1) if item in right), 0.0)


def _ndcg(items: list[str], grades: dict[str, float], k: int) -> float:
    best = _discounted(sorted(grades.values(), reverse=True)[:k])
    return _discounted([grades.get(item, 0.0) for item in items[:k]]) / best if best else 0.0


def _discounted(grades: list[float]) -> float:
    return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, start=1))
