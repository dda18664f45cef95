"""Cuts that turn the values of an ordinal task into levels, fitted on out-of-fold values for quadratic weighted kappa.

What is fitted here is optimistic on its own rows; `nested_score` says by how much.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm import records
from kaggle_llm.metrics import quadratic_kappa, row_values
from kaggle_llm.rankings import make_ranking

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


@dataclass(frozen=True)
class Thresholds:
    """A value's level is the label behind the cuts that it reaches."""

    labels: tuple[str, ...]
    """From lowest to highest."""
    cuts: tuple[float, ...]
    """One fewer than labels, ascending; ±inf where no fitted row got the level beyond."""

    def __post_init__(self) -> None:
        if len(self.cuts) != len(self.labels) - 1 or list(self.cuts) != sorted(self.cuts):
            raise ValueError(f"cuts = {self.cuts} between {self.labels}: give one fewer than labels, ascending")

    def apply(self, ranking: pl.DataFrame) -> pl.DataFrame:
        """RANKING of values → RANKING of labels, score 0; a row without a value is an error."""
        import numpy as np

        levels = apply_thresholds(row_values(ranking), np.array(self.cuts)).tolist()
        return make_ranking(ranking["id"].to_list(), [[self.labels[level]] for level in levels], [[0.0]] * len(levels))

    def save(self, folder: Path) -> None:
        records.write_json(folder / "thresholds.json", {"labels": self.labels, "cuts": self.cuts})

    @classmethod
    def load(cls, folder: Path) -> Thresholds:
        saved = records.read_json(folder / "thresholds.json")
        return cls(tuple(saved["labels"]), tuple(float(cut) for cut in saved["cuts"]))


@dataclass(frozen=True)
class NestedScore:
    """Kappa of thresholds on the rows that they were fitted on, and on rows that they were not."""

    fitted: float
    nested: float

    @property
    def optimism(self) -> float:
        """What the fitted kappa promises too much."""
        return self.fitted - self.nested


def fit_thresholds(values: np.ndarray, levels: np.ndarray, k: int) -> np.ndarray:
    """[k−1] ascending cuts whose levels have the highest quadratic weighted kappa that any cuts reach on these rows.

    values: [n] finite; levels: [n] whole numbers 0 … k−1, two or more different ones. Cuts lie half-way between two
    values; −inf or inf where a level is best given to all, or to none, of the rows on one side.

    kappa = 2 Σp(y−ȳ) / Σ(p²−2pȳ+y²) for levels p of cuts and true levels y: a ratio of two sums over rows. By
    Dinkelbach, On nonlinear fractional programming, Management Science 13 (1967), its maximum is where
    numerator − kappa·denominator, which dynamic programming over the sorted values maximises exactly, becomes 0.
    """
    import numpy as np

    values, levels = _check(values, levels, k)
    order = np.argsort(values, kind="stable")
    values, levels = values[order], levels[order].astype(float)
    cuts, kappa = np.full(k - 1, np.inf), 0.0  # the lowest level for all
    while True:
        better = _maximise_gain(values, levels, k, kappa)
        reached = quadratic_kappa(apply_thresholds(values, better), levels)
        if reached <= kappa:
            return cuts
        cuts, kappa = better, reached


def apply_thresholds(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """[n] values → [n] levels: the number of thresholds (ascending) that a value reaches; NaN is an error."""
    import numpy as np

    if np.isnan(values).any():
        raise ValueError(f"{np.isnan(values).sum()} of {len(values)} values are NaN: a level needs a number")
    return np.searchsorted(thresholds, values, side="right")


def nested_score(values: np.ndarray, levels: np.ndarray, fold: np.ndarray, k: int) -> NestedScore:
    """Thresholds fitted on all rows and scored on them; fitted on the other folds' rows and scored on each fold's.

    values, levels: as in fit_thresholds; fold: [n], two or more different ones. The nested kappa is one over all rows.
    """
    import numpy as np

    names = np.unique(fold)
    if len(fold) != len(values) or len(names) < 2:
        raise ValueError(f"fold has {len(fold)} rows of {len(values)} in the folds {names.tolist()}: two are needed")
    nested = np.empty(len(values), dtype=np.int64)
    for name in names:
        held = fold == name
        nested[held] = apply_thresholds(values[held], fit_thresholds(values[~held], levels[~held], k))
    fitted = apply_thresholds(values, fit_thresholds(values, levels, k))
    return NestedScore(quadratic_kappa(fitted, levels), quadratic_kappa(nested, levels))


def _maximise_gain(values: np.ndarray, levels: np.ndarray, k: int, kappa: float) -> np.ndarray:
    """[k−1] cuts with the highest Σ 2p(y−ȳ) − kappa·(p²−2pȳ); values sorted, levels in their order.

    best[c] is what the first c rows gain at most with levels up to the current one.
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
    chosen, place = [], len(places) - 1
    for source in reversed(sources):
        place = source[place]
        chosen.append(places[place])
    return np.array([_cut(values, c) for c in reversed(chosen)])


def _cut(values: np.ndarray, below: int) -> float:
    """A cut with so many of the sorted values below it."""
    if below in (0, len(values)):
        return float("-inf") if below == 0 else float("inf")
    low, high = float(values[below - 1]), float(values[below])
    middle = low + (high - low) / 2
    return middle if middle > low else high  # neighbours among floats have nothing between them


def _check(values: np.ndarray, levels: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    import numpy as np

    values, found = np.asarray(values, dtype=np.float64), np.unique(levels)
    if values.ndim != 1 or values.shape != levels.shape:
        raise ValueError(f"values {values.shape} and levels {levels.shape}: give one level for each value")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} values are NaN or infinite")
    if len(found) < 2:
        raise ValueError(f"all {len(values)} rows have the level {found.tolist()}: thresholds need two different ones")
    if not np.isin(found, np.arange(k)).all():
        raise ValueError(f"levels {found.tolist()} with k = {k}: they must be whole numbers from 0 to {k - 1}")
    return values, np.asarray(levels)
