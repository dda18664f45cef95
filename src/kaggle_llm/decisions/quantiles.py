"""Scores as ranks across rows, without looking at other rows: the share of out-of-fold rows with a lower score.

For metrics that compare rows (AUC, Spearman): members whose scores spread differently count alike. A test row's share
is read off the out-of-fold rows that the decision was fitted on, so it is the same alone and among others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

POINTS = 512  # kept of a curve, at most


@dataclass(frozen=True)
class Quantiles:
    """The share of out-of-fold rows below a score; rows with the same score count half."""

    member: int
    item: str
    """A label, or a target's number of VALUES."""
    scores: tuple[float, ...]
    """Ascending, each once."""
    shares: tuple[float, ...]

    def read(self, score: float) -> float:
        """The share at a score: linear between two points, constant beyond the outermost ones."""
        import numpy as np

        return float(np.interp(score, self.scores, self.shares))


def fit_quantiles(member: int, item: str, scores: Sequence[float]) -> Quantiles:
    """The curve of the scores, one for each row."""
    import numpy as np

    ordered = np.sort(np.asarray(scores, dtype=float))
    points = np.unique(ordered)
    if len(points) > POINTS:
        points = points[np.linspace(0, len(points) - 1, POINTS).round().astype(int)]
    below, until = (np.searchsorted(ordered, points, side) for side in ("left", "right"))
    shares = (below + until) / 2 / len(ordered)
    return Quantiles(member, item, tuple(points.tolist()), tuple(shares.tolist()))
