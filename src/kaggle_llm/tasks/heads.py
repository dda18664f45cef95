"""A sequence head's logits as RANKING or VALUES, and the baselines that it has to beat.

A new head starts at random, so its score before training is that of rank_prior or predict_mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from kaggle_llm.competition.rankings import make_ranking, make_values

if TYPE_CHECKING:
    import polars as pl


def rank_classes(ids: Sequence[str], logits: Sequence[np.ndarray], labels: Sequence[str]) -> pl.DataFrame:
    """RANKING of all labels; scores are log-probabilities. logits: [labels] a row."""
    scores = [row - np.logaddexp.reduce(row) for row in _as_rows(logits, len(labels))]
    return make_ranking(ids, [list(labels)] * len(scores), scores)


def predict_values(ids: Sequence[str], logits: Sequence[np.ndarray], targets: int = 1) -> pl.DataFrame:
    """VALUES: the logits as they are. logits: [targets] a row."""
    return make_values(ids, _as_rows(logits, targets))


def predict_levels(ids: Sequence[str], logits: Sequence[np.ndarray], levels: int) -> pl.DataFrame:
    """VALUES: the expected level, from 0 on; thresholds.py rounds it to levels. logits: [levels − 1] a row."""
    return make_values(ids, expected_level(_as_rows(logits, levels - 1))[:, None])


def expected_level(logits: np.ndarray) -> np.ndarray:
    """[n]: Σⱼ P(level > j) = Σⱼ σ(zⱼ), of logits [n, levels − 1]."""
    return np.exp(-np.logaddexp(0.0, -logits)).sum(axis=1)


def rank_prior(ids: Sequence[str], labels: Sequence[str], targets: Sequence[Sequence[float]]) -> pl.DataFrame:
    """RANKING of every row by the labels' shares in training; targets: [training rows, labels].

    One is added to every count (Laplace), so that a label without rows has a finite score.
    """
    counts = np.asarray(targets, dtype=np.float64).reshape(-1, len(labels)).sum(axis=0) + 1
    return make_ranking(ids, [list(labels)] * len(ids), [np.log(counts / counts.sum())] * len(ids))


def predict_mean(ids: Sequence[str], values: Sequence[float]) -> pl.DataFrame:
    """VALUES of every row: the mean value or level of the training rows."""
    return make_values(ids, [[float(np.mean(values))]] * len(ids))


def _as_rows(logits: Sequence[np.ndarray], width: int) -> np.ndarray:
    """[n, width] in fp64; raises ValueError for a head of another width."""
    wrong = {np.shape(row) for row in logits} - {(width,)}
    if wrong:
        raise ValueError(f"logits of shape {sorted(wrong)}: this head has {width} a row; another model's?")
    return np.asarray(logits, dtype=np.float64).reshape(-1, width)
