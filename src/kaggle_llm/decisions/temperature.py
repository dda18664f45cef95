"""Temperature scaling: one number that calibrates probabilities, fitted on out-of-fold predictions."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kaggle_llm.competition.metrics import log_loss
from kaggle_llm.competition.rankings import make_ranking

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.competition.metrics import Metric

RANGE = 0.05, 20.0  # lowest and highest temperature that a fit can find


@dataclass(frozen=True)
class Temperature:
    """Log-probabilities are divided by `value`: above 1 they become less certain."""

    value: float = 1.0

    def fit(self, ranking: pl.DataFrame, truth: pl.DataFrame, metric: Metric) -> Temperature:
        """The temperature with the least log loss on these rows, whatever the metric is.

        Source: Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks, ICML 2017, section 4.2. The loss
        is convex in 1/T, so it has one minimum.
        """
        from scipy.optimize import minimize_scalar

        labels = sorted(ranking["items"][0].to_list())

        def loss(inverse: float) -> float:
            return log_loss(labels).score(Temperature(1 / inverse).apply(ranking), truth)

        low, high = RANGE
        result = minimize_scalar(loss, bounds=(1 / high, 1 / low), method="bounded", options={"xatol": 1e-6})
        return replace(self, value=1 / float(result.x))

    def apply(self, ranking: pl.DataFrame) -> pl.DataFrame:
        """RANKING of log-probabilities (up to a constant in each row) → RANKING of scaled, normalised ones."""
        import numpy as np

        scaled = [np.array(scores) / self.value for scores in ranking["scores"].to_list()]
        normalised = [row - np.logaddexp.reduce(row) if row.size else row for row in scaled]
        return make_ranking(ranking["id"].to_list(), ranking["items"].to_list(), [row.tolist() for row in normalised])
