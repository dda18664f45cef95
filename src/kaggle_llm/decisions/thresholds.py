"""Thresholds that turn predicted values into ordered levels, fitted for quadratic weighted kappa."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kaggle_llm.competition.metrics import quadratic_kappa
from kaggle_llm.competition.rankings import make_ranking

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from kaggle_llm.competition.metrics import Metric


EDGE = 1e-6  # of a level's width: so far a position stays from the next level


@dataclass(frozen=True)
class Thresholds:
    """A value's level is labels[number of cuts that it reaches]."""

    labels: tuple[str, ...]
    """From lowest to highest."""
    cuts: tuple[float, ...]
    """One fewer than labels, ascending; ±inf where no fitted row got the level beyond."""

    def __post_init__(self) -> None:
        if len(self.cuts) != len(self.labels) - 1 or list(self.cuts) != sorted(self.cuts):
            raise ValueError(f"cuts = {self.cuts} between {self.labels}: give one fewer than labels, ascending")

    def fit(self, values: pl.DataFrame, truth: pl.DataFrame, metric: Metric) -> Thresholds:
        """Fit quadratic weighted kappa, whatever the metric is; unchanged where all rows have the same level.

        truth: one label a row.
        """
        import numpy as np

        right = dict(truth.select("id", "items").iter_rows())
        levels = np.array([self.labels.index(right[row][0]) for row in values["id"].to_list()])
        if len(set(levels.tolist())) < 2:
            return self
        cuts = fit_thresholds(values["values"].list.first().to_numpy(), levels, len(self.labels))
        return replace(self, cuts=tuple(cuts.tolist()))

    def apply(self, values: pl.DataFrame) -> pl.DataFrame:
        """VALUES, of which the first target counts → RANKING of all labels; scores are −|label's level − position|.

        position: see `find_positions`. So members of an ensemble have labels in common, and one that is nearly sure of
        the next level says so: the mean of their scores is highest at their median position.
        """
        import numpy as np

        positions = find_positions(values["values"].list.first().to_numpy(), np.array(self.cuts))
        scores = -abs(np.arange(len(self.labels)) - positions[:, None])
        return make_ranking(values["id"].to_list(), [self.labels] * len(positions), scores.tolist())


def round_levels(labels: Sequence[str]) -> Thresholds:
    """Thresholds that round values to the nearest level, counted from 0."""
    return Thresholds(tuple(labels), tuple(level + 0.5 for level in range(len(labels) - 1)))


def fit_thresholds(values: np.ndarray, levels: np.ndarray, k: int) -> np.ndarray:
    """[k−1] ascending cuts whose levels have the highest quadratic weighted kappa that any cuts reach on these rows.

    values: [n] finite; levels: [n] whole numbers 0 … k−1, two or more different ones. Cuts lie half-way between two
    values; −inf or inf where it is best that all rows, or none, reach a cut.

    kappa = 2 Σp(y−ȳ) / Σ(p²−2pȳ+y²) for levels p of cuts and true levels y: a ratio of two sums over rows. By
    Dinkelbach, On nonlinear fractional programming, Management Science 13 (1967), its maximum is where
    numerator − kappa·denominator, which dynamic programming over the sorted values maximises exactly, becomes 0.
    """
    import numpy as np

    values, levels = _check_levels(values, levels, k)
    order = np.argsort(values, kind="stable")
    values, levels = values[order], levels[order].astype(float)
    cuts, kappa = np.full(k - 1, np.inf), 0.0  # all rows get the lowest level
    while True:
        better = _maximise_gain(values, levels, k, kappa)
        reached = quadratic_kappa(apply_thresholds(values, better), levels)
        if reached <= kappa:
            return cuts
        cuts, kappa = better, reached


def apply_thresholds(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """[n] values → [n] levels: the number of thresholds (ascending) that a value reaches. Raises ValueError for NaN."""
    import numpy as np

    if np.isnan(values).any():
        raise ValueError(f"{np.isnan(values).sum()} of {len(values)} values are NaN: a level needs a number")
    return np.searchsorted(thresholds, values, side="right")


def find_positions(values: np.ndarray, cuts: np.ndarray) -> np.ndarray:
    """[n] values → [n] numbers that round to their levels: level − ½ at the cut below, level + ½ at the one above.

    A level without a cut on one side is as wide as one level of `round_levels`.
    """
    import numpy as np

    levels = apply_thresholds(values, cuts)
    edges = np.concatenate([[-np.inf], cuts, [np.inf]])
    low, high = edges[levels], edges[levels + 1]
    low, high = np.where(np.isinf(low), high - 1, low), np.where(np.isinf(high), low + 1, high)
    low, high = np.where(np.isinf(low), levels - 0.5, low), np.where(np.isinf(high), levels + 0.5, high)
    with np.errstate(all="ignore"):  # near 1e300 a width is inf, and from 1e16 on a number plus 1 is the same number
        shares = np.nan_to_num((values - low) / (high - low), nan=0.5)
    return np.asarray(levels - 0.5 + np.clip(shares, EDGE, 1 - EDGE))


def _maximise_gain(values: np.ndarray, levels: np.ndarray, k: int, kappa: float) -> np.ndarray:
    """[k−1] cuts with the highest Σ 2p(y−ȳ) − kappa·(p²−2pȳ); values sorted, levels in their order.

    best[c]: the largest gain of the first c rows with levels up to the current one.
    """
    import numpy as np

    mean = levels.mean()
    places = np.flatnonzero(np.diff(values, prepend=-np.inf, append=np.inf))  # equal values stay together
    best, sources = np.zeros(len(places)), []  # the lowest level gains nothing
    for level in range(1, k):
        gains = 2 * level * (levels - mean) - kappa * (level**2 - 2 * level * mean)
        sums = np.concatenate([[0.0], np.cumsum(gains)])[places]
        start = best - sums
        peaks = np.maximum.accumulate(start)
        sources.append(np.maximum.accumulate(np.where(start == peaks, np.arange(len(places)), 0)))
        best = sums + peaks
    chosen, end = [], len(places) - 1
    for source in reversed(sources):
        end = source[end]
        chosen.append(places[end])
    return np.array([_place_cut(values, c) for c in reversed(chosen)])


def _place_cut(values: np.ndarray, below: int) -> float:
    """A cut with `below` of the sorted values below it."""
    if below in (0, len(values)):
        return float("-inf") if below == 0 else float("inf")
    low, high = float(values[below - 1]), float(values[below])
    middle = low + (high - low) / 2
    return middle if middle > low else high  # no float lies between neighbouring floats


def _check_levels(values: np.ndarray, levels: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    values, distinct = np.asarray(values, dtype=np.float64), np.unique(levels)
    if values.ndim != 1 or values.shape != levels.shape:
        raise ValueError(f"values {values.shape} and levels {levels.shape}: give one level for each value")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} values are NaN or infinite")
    if len(distinct) < 2:
        raise ValueError(
            f"all {len(values)} rows have the level {distinct.tolist()}: thresholds need two different ones"
        )
    if not np.isin(distinct, np.arange(k)).all():
        raise ValueError(f"levels {distinct.tolist()} with k = {k}: they must be whole numbers from 0 to {k - 1}")
    return values, np.asarray(levels)
