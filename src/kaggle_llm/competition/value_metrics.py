"""Metrics of VALUES: numbers, one or several a row."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from kaggle_llm.competition.metric import Metric, join_truth, whole_metric

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


def root_mean_squared_error() -> Metric:
    """sqrt(mean((value − true value)²)) of VALUES, its mean over several targets (MCRMSE); lower is better."""
    return whole_metric("rmse", partial(_mean_of_targets, _rmse), greater_is_better=False)


def pearson() -> Metric:
    """Linear correlation of VALUES with the true ones, 0 where either is constant; its mean over targets."""
    return whole_metric("pearson", partial(_mean_of_targets, _correlation))


def spearman() -> Metric:
    """Pearson correlation of the ranks, equal values with their mean rank; its mean over targets."""
    return whole_metric("spearman", partial(_mean_of_targets, _rank_correlation))


def read_targets(values: pl.DataFrame, truth: pl.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """[rows, targets] values and the true ones; raises ValueError where their numbers differ or one is not finite."""
    import numpy as np

    joined = join_truth(values, truth, "values")
    both = [joined[column].to_list() for column in ("values", "right")]
    if len({len(row) for rows in both for row in rows}) != 1:
        raise ValueError(f"rows have {len(both[0][0])} values, the truth has {len(both[1][0])}: as many are needed")
    predicted, right = (np.array(rows, dtype=float) for rows in both)
    if (bad := ~np.isfinite(predicted + right).all(axis=1)).any():
        first = joined["id"][int(bad.argmax())]
        raise ValueError(f"{bad.sum()} row(s) whose answer is no finite number, first {first!r}")
    return predicted, right


def _mean_of_targets(
    score: Callable[[np.ndarray, np.ndarray], float], values: pl.DataFrame, truth: pl.DataFrame
) -> float:
    import numpy as np

    predicted, right = read_targets(values, truth)
    return float(np.mean([score(predicted[:, target], right[:, target]) for target in range(right.shape[1])]))


def _rmse(values: np.ndarray, right: np.ndarray) -> float:
    return math.sqrt(((values - right) ** 2).mean())


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    import numpy as np

    constant = np.ptp(first) == 0 or np.ptp(second) == 0
    return 0.0 if constant else float(np.corrcoef(first, second)[0, 1])


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    from scipy.stats import rankdata

    return _correlation(rankdata(first), rankdata(second))
