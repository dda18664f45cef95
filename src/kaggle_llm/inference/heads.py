"""What a sequence head says, as a ranking; and the simplest rules that it has to beat.

One path before and after training: rank_* of Engine.logits. A head that starts at random has no "before" of its own:
it is rank_prior or rank_mean of the training fold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kaggle_llm.rankings import make_ranking

if TYPE_CHECKING:
    import polars as pl


def rank_classes(ids: Sequence[str], logits: Sequence[np.ndarray], labels: Sequence[str]) -> pl.DataFrame:
    """A RANKING of all labels; scores are log-probabilities. logits: [labels] a row."""
    scores = [row - np.logaddexp.reduce(row) for row in _as_rows(logits, len(labels))]
    return make_ranking(ids, [list(labels)] * len(scores), scores)


def rank_values(ids: Sequence[str], logits: Sequence[np.ndarray]) -> pl.DataFrame:
    """A RANKING whose one item is the value as text, with score 0. logits: [1] a row."""
    return _rank_numbers(ids, _as_rows(logits, 1)[:, 0])


def rank_levels(ids: Sequence[str], logits: Sequence[np.ndarray], levels: int) -> pl.DataFrame:
    """A RANKING whose one item is the expected level, counted from 0, as text; cv/thresholds.py makes levels of it.

    logits: [levels − 1] a row.
    """
    return _rank_numbers(ids, expected_level(_as_rows(logits, levels - 1)))


def expected_level(logits: np.ndarray) -> np.ndarray:
    """[n]: Σⱼ P(level > j) = Σⱼ σ(zⱼ), of logits [n, levels − 1]."""
    return np.exp(-np.logaddexp(0.0, -logits)).sum(axis=1)


def rank_prior(ids: Sequence[str], labels: Sequence[str], targets: Sequence[Sequence[float]]) -> pl.DataFrame:
    """The training rows' shares of the labels as everyone's RANKING; targets [rows, labels].

    One is added to every count (Laplace), so that a label that no row has keeps a finite score.
    """
    counts = np.asarray(targets, dtype=np.float64).reshape(-1, len(labels)).sum(axis=0) + 1
    return make_ranking(ids, [list(labels)] * len(ids), [np.log(counts / counts.sum())] * len(ids))


def rank_mean(ids: Sequence[str], values: Sequence[float]) -> pl.DataFrame:
    """The training rows' mean value or level as everyone's RANKING."""
    return _rank_numbers(ids, np.full(len(ids), np.mean(values)))


def _rank_numbers(ids: Sequence[str], values: np.ndarray) -> pl.DataFrame:
    return make_ranking(ids, [[repr(float(value))] for value in values], [[0.0]] * len(values))


def _as_rows(logits: Sequence[np.ndarray], width: int) -> np.ndarray:
    """[n, width] in fp64; raises ValueError for a head of another width."""
    wrong = {np.shape(row) for row in logits} - {(width,)}
    if wrong:
        raise ValueError(f"logits of shape {sorted(wrong)}: this head has {width} a row; another model's?")
    return np.asarray(logits, dtype=np.float64).reshape(-1, width)
