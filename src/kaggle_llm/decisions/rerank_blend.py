"""What the reranker says beside the place that the retrieval gave: the decision of a reranking experiment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kaggle_llm.competition.rankings import make_ranking

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from kaggle_llm.competition.metrics import Metric

LARGEST = 20.0  # weight that is looked for


def lose_right(scores: np.ndarray, right: Sequence[int]) -> float:
    """−log of the right items' share of the softmax."""
    import numpy as np

    return float(np.logaddexp.reduce(scores) - np.logaddexp.reduce(scores[list(right)]))


@dataclass(frozen=True)
class Reranked:
    """Two RANKINGs of the same rows: all candidates, and the first ones by the reranker, without rows that it was not
    asked about."""

    retrieved: pl.DataFrame
    reranked: pl.DataFrame


@dataclass(frozen=True)
class Blend:
    """score = weight · reranker's score − log(place in the retrieval), for the candidates that were reranked.

    −log(place) is the log of Zipf's law, the usual prior of a ranked list. weight 0 keeps the retrieval's order.
    """

    weight: float = 1.0

    def fit(self, scored: Reranked, truth: pl.DataFrame, metric: Metric) -> Blend:
        """The weight that makes right candidates likeliest, whatever the metric is; as it is where none was reranked.

        p(candidate) = softmax of the blended scores: a conditional logit with the retrieval's place as its prior
        (McFadden, Conditional Logit Analysis of Qualitative Choice Behavior, 1974). Its loss is convex in the weight
        and uses every score; the metric of a hundred rows, which only sees places, jumps from weight to weight.
        """
        from scipy.optimize import minimize_scalar

        rows = list(self._list_right(scored, truth))
        if not rows:
            return self

        def loss(weight: float) -> float:
            return sum(lose_right(weight * scores + prior, right) for scores, prior, right in rows)

        return Blend(float(minimize_scalar(loss, bounds=(0.0, LARGEST), method="bounded").x))

    def _list_right(self, scored: Reranked, truth: pl.DataFrame) -> Iterator[tuple[np.ndarray, np.ndarray, list[int]]]:
        """Of rows whose right candidate was reranked: scores, −log(place), and which of them are right."""
        import numpy as np

        right = dict(truth.select("id", "items").iter_rows())
        retrieved = dict(scored.retrieved.select("id", "items").iter_rows())
        for row, items, scores in scored.reranked.select("id", "items", "scores").iter_rows():
            hits = [place for place, item in enumerate(items) if item in right[row]]
            if hits and len(hits) < len(items):
                places = {item: place for place, item in enumerate(retrieved[row], 1)}
                yield np.array(scores), -np.log([places[item] for item in items]), hits

    def apply(self, scored: Reranked) -> pl.DataFrame:
        """One RANKING of all candidates; what was not reranked keeps its order behind the rest."""
        reranked = scored.reranked.select("id", "items", "scores").iter_rows()
        scores = {i: (items, values) for i, items, values in reranked}
        nothing: tuple[list[str], list[float]] = ([], [])
        retrieved = scored.retrieved.select("id", "items").iter_rows()
        rows = [self._blend(items, *scores.get(i, nothing)) for i, items in retrieved]
        return make_ranking(scored.retrieved["id"].to_list(), [row[0] for row in rows], [row[1] for row in rows])

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
