"""One number that makes probabilities honest, fitted on out-of-fold predictions and applied in prediction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kaggle_llm.competition.metrics import log_loss
from kaggle_llm.competition.rankings import make_ranking

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.competition.metrics import Metric

RANGE = 0.05, 20.0  # that a temperature is looked for in


@dataclass(frozen=True)
class Temperature:
    """Scores are log-probabilities; divided by a value above 1 they become less certain."""

    value: float = 1.0

    def fit(self, ranking: pl.DataFrame, truth: pl.DataFrame, metric: Metric) -> Temperature:
        """The temperature with the least log loss on these rows, whatever the metric is.

        Source: Guo, Pleiss, Sun, Weinberger, On Calibration of Modern Neural Networks, ICML 2017, section 4.2. The loss
        is convex in 1/T, so the minimum that is found is the only one.
        """
        from scipy.optimize import minimize_scalar

        labels = sorted(ranking["items"][0].to_list())

        def loss(inverse: float) -> float:
            return log_loss(labels).score(Temperature(1 / inverse).apply(ranking), truth)

        low, high = RANGE
        found = minimize_scalar(loss, bounds=(1 / high, 1 / low), method="bounded", options={"xatol": 1e-6})
        return Temperature(1 / float(found.x))

    def apply(self, ranking: pl.DataFrame) -> pl.DataFrame:
        """RANKING of log-probabilities, up to a constant a row → RANKING of normalised ones."""
        import numpy as np

        scaled = [np.array(scores) / self.value for scores in ranking["scores"].to_list()]
        normalised = [row - np.logaddexp.reduce(row) if row.size else row for row in scaled]
        return make_ranking(ranking["id"].to_list(), ranking["items"].to_list(), [row.tolist() for row in normalised])
