"""What is fitted on scores of rows that the model was not trained on, and applied in prediction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm import records
from kaggle_llm.rankings import make_ranking

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.metrics import Metric

WEIGHTS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0)


@dataclass(frozen=True)
class Blend:
    """score = weight · reranker's score − log(place in the retrieval), for the candidates that were reranked.

    −log(place) is the log of Zipf's law, the usual prior of a ranked list. weight 0 keeps the retrieval's order.
    """

    weight: float

    def apply(self, retrieved: pl.DataFrame, reranked: pl.DataFrame) -> pl.DataFrame:
        """Two RANKINGs → one for the rows of the first; what was not reranked keeps its order behind the rest."""
        scores = {i: (items, values) for i, items, values in reranked.select("id", "items", "scores").iter_rows()}
        nothing: tuple[list[str], list[float]] = ([], [])
        rows = [self._blend(items, *scores.get(i, nothing)) for i, items in retrieved.select("id", "items").iter_rows()]
        return make_ranking(retrieved["id"].to_list(), [row[0] for row in rows], [row[1] for row in rows])

    def _blend(self, items: list[str], reranked: list[str], scores: list[float]) -> tuple[list[str], list[float]]:
        known = dict(zip(reranked, scores, strict=True))
        blended = {
            item: self.weight * known[item] - math.log(place) for place, item in enumerate(items, 1) if item in known
        }
        floor = min(blended.values(), default=0.0)
        rest = [item for item in items if item not in known]
        return [*blended, *rest], [
            *blended.values(),
            *(floor - math.log(1 + n) for n in range(1, len(rest) + 1)),
        ]

    def save(self, folder: Path) -> None:
        records.write_json(folder / "blend.json", {"weight": self.weight})

    @classmethod
    def load(cls, folder: Path) -> Blend:
        return cls(float(records.read_json(folder / "blend.json")["weight"]))


def fit_blend(retrieved: pl.DataFrame, reranked: pl.DataFrame, truth: pl.DataFrame, metric: Metric) -> Blend:
    """The weight of WEIGHTS with the best metric; among equals the smallest, which trusts the reranker least.

    Fit it on rows that the reranker was not trained on and that are not validated.
    """
    best = max(WEIGHTS, key=lambda weight: _value(Blend(weight), retrieved, reranked, truth, metric))
    return Blend(best)


def _value(blend: Blend, retrieved: pl.DataFrame, reranked: pl.DataFrame, truth: pl.DataFrame, metric: Metric) -> float:
    return metric.sign * metric.score(blend.apply(retrieved, reranked), truth)
