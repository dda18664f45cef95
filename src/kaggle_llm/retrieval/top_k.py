"""The best k of many scores, without sorting the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def find_top(scores: np.ndarray, k: int) -> np.ndarray:
    """[min(k, n)] places of the highest of [n] scores, best first; equal scores in the order of their places."""
    import numpy as np

    if k >= len(scores):
        return np.argsort(-scores, kind="stable")
    last = np.partition(scores, len(scores) - k)[len(scores) - k]
    places = np.flatnonzero(scores >= last)  # more than k where the last score occurs again
    return places[np.argsort(-scores[places], kind="stable")][:k]
