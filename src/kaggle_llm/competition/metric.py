"""What a metric is: a score of a ranking against the truth, its bootstrap interval, and the paired difference of two.

A truth is a frame with the columns `id` and `items` (the right ones), or `values` where VALUES are scored; it may have
more rows than the ranking, and other columns. Metrics of a single answer (a label, a level, a text) score the first
item of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


class UndefinedScore(ValueError):
    """These rows do not define the metric, such as the AUC of one class; more of them would."""


Rows = Callable[["pl.DataFrame", "pl.DataFrame"], "np.ndarray"]


@dataclass(frozen=True)
class Metric:
    """score(ranking, truth) → float; rows(ranking, truth) → one value for each row, whose mean is the score.

    rows is None where the metric is no mean over rows; the bootstrap then calls `score` for each draw, or `combine`
    with the draws' mean counts. A metric of your own is a function of two frames: `Metric("name", True, my_score)`.
    """

    name: str
    greater_is_better: bool
    score: Callable[[pl.DataFrame, pl.DataFrame], float]
    rows: Rows | None = None
    counts: Rows | None = None
    """[rows, counts] of a metric that is a function of their sums, such as F-beta's hits; with `combine`."""
    combine: Callable[[np.ndarray], np.ndarray] | None = None
    """[…, counts] sums, or means → […] scores."""

    def try_score(self, ranking: pl.DataFrame, truth: pl.DataFrame) -> float | None:
        """The score; None where these rows do not define it."""
        try:
            return self.score(ranking, truth)
        except UndefinedScore:
            return None

    @property
    def sign(self) -> int:
        """1 or −1: the larger sign · score is, the better."""
        return 1 if self.greater_is_better else -1


def mean_metric(name: str, rows: Rows, greater_is_better: bool = True) -> Metric:
    metric = whole_metric(name, lambda ranking, truth: float(rows(ranking, truth).mean()), greater_is_better)
    return replace(metric, rows=rows)


def whole_metric(
    name: str, score: Callable[[pl.DataFrame, pl.DataFrame], float], greater_is_better: bool = True
) -> Metric:
    def checked(ranking: pl.DataFrame, truth: pl.DataFrame) -> float:
        if ranking.height == 0:
            raise ValueError(f"{name} of no rows is not defined: the ranking is empty")
        return score(ranking, truth)

    return Metric(name, greater_is_better, checked)


def count_metric(name: str, counts: Rows, combine: Callable[[np.ndarray], np.ndarray]) -> Metric:
    """A metric of the sums of counts over all rows; `combine` does not change when they are scaled."""
    metric = whole_metric(name, lambda ranking, truth: float(combine(counts(ranking, truth).sum(axis=0))))
    return replace(metric, counts=counts, combine=combine)


def by_row(score_row: Callable[[list[str], set[str]], float]) -> Rows:
    """score_row(items, right) of every row."""

    def rows(ranking: pl.DataFrame, truth: pl.DataFrame) -> np.ndarray:
        import numpy as np

        pairs = join_truth(ranking, truth).select("items", "right").iter_rows()
        return np.array([score_row(items, set(right)) for items, right in pairs], dtype=float)

    return rows


def join_truth(ranking: pl.DataFrame, truth: pl.DataFrame, column: str = "items") -> pl.DataFrame:
    """The ranking with a column `right`, the truth's; a bootstrap's ranking may hold a row more than once."""
    if truth["id"].is_duplicated().any():
        raise ValueError(f"the truth has {truth['id'].is_duplicated().sum()} rows that share an id: give one for each")
    joined = ranking.join(truth.select("id", right=column), on="id", how="left", maintain_order="left")
    missing = joined.filter(joined["right"].is_null())["id"].to_list()
    if missing:
        raise ValueError(f"{len(missing)} ranked row(s) without truth, first {missing[:3]}")
    return joined


def first_items(frame: pl.DataFrame, column: str) -> pl.Series:
    """The first item of every row; `right` must have exactly one."""
    counts = frame[column].list.len()
    bad = frame.filter(counts != 1 if column == "right" else counts == 0)["id"].to_list()
    if bad:
        problem = "have not exactly one right answer" if column == "right" else "have no answer: every row needs one"
        raise ValueError(f"{len(bad)} row(s) {problem}, first {bad[:3]}")
    return frame[column].list.first()


def bootstrap_interval(
    metric: Metric, ranking: pl.DataFrame, truth: pl.DataFrame, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of metric.score over rows drawn with replacement (Efron's percentile method).

    Draws that do not define the metric are left out.
    """
    return _percentiles(_resampled_scores(metric, ranking, truth, draws, seed))


def paired_difference(
    metric: Metric, ranking: pl.DataFrame, other: pl.DataFrame, truth: pl.DataFrame, draws: int = 1000, seed: int = 0
) -> tuple[float, float, float]:
    """score(ranking) − score(other), and the ends of its 95 % paired-bootstrap interval (the same draws for both).

    Raises ValueError where the two do not have the same ids in the same order.
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
    if metric.counts is not None and metric.combine is not None:
        counts = metric.counts(ranking, truth)
        return metric.combine(np.stack([counts[rows].sum(axis=0) for rows in drawn]))
    return np.array([metric.try_score(ranking[rows], truth) for rows in drawn.tolist()], dtype=float)


def _percentiles(scores: np.ndarray) -> tuple[float, float]:
    import numpy as np

    low, high = np.nanpercentile(scores, [2.5, 97.5])
    return float(low), float(high)
