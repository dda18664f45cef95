"""The reranker's score blended with the retrieval's rank: the decision of a reranking experiment."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kaggle_llm.competition.rankings import make_ranking, read_rows

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from kaggle_llm.competition.metrics import Metric

LARGEST = 20.0  # weight of the reranker that a fit can find


def loss_of_right(scores: np.ndarray, right: Sequence[int]) -> float:
    """−log p(right items) under the softmax of the scores."""
    import numpy as np

    return float(np.logaddexp.reduce(scores) - np.logaddexp.reduce(scores[list(right)]))


def fit_weights(
    examples: Iterable[tuple[np.ndarray, np.ndarray | float, list[int]]], start: Sequence[float], largest: float
) -> list[float]:
    """The weights of scores with the largest likelihood of right items: a conditional logit, whose loss is convex.

    examples: scores [candidates, weights], what is added to the weighted sum, and the indices of the right candidates;
    without any the weights stay.
    """
    import numpy as np
    from scipy.optimize import minimize

    rows = list(examples)
    if not rows:
        return list(start)

    def loss(weights: np.ndarray) -> float:
        return sum(loss_of_right(scores @ weights + prior, right) for scores, prior, right in rows) / len(rows)

    bounds = [(0.0, largest)] * len(start)
    fitted: list[float] = minimize(loss, np.array(start), bounds=bounds, method="L-BFGS-B").x.tolist()
    return fitted


def find_hits(items: Sequence[str], right: Sequence[str]) -> list[int]:
    """Indices of the right items; none where all are right, for then there is nothing to fit."""
    hits = [index for index, item in enumerate(items) if item in right]
    return hits if len(hits) < len(items) else []


def log_ranks(items: Sequence[str], retrieved: Sequence[str]) -> np.ndarray:
    """[items] −log(rank in the retrieval)."""
    import numpy as np

    ranks = {item: rank for rank, item in enumerate(retrieved, 1)}
    return -np.log([ranks[item] for item in items])


@dataclass(frozen=True)
class Reranked:
    """Two RANKINGs of the same rows: all candidates by the retrieval, and the first ones by the reranker, without the
    rows that it did not answer."""

    retrieved: pl.DataFrame
    reranked: pl.DataFrame


@dataclass(frozen=True)
class Blend:
    """score = weight · reranker's score − log(rank in the retrieval), for the candidates that were reranked.

    −log(rank) is the log of Zipf's law, the usual prior of a ranked list. weight 0 keeps the retrieval's order.
    """

    weight: float = 1.0

    def fit(self, scored: Reranked, truth: pl.DataFrame, metric: Metric) -> Blend:
        """The weight with the largest likelihood of right candidates, whatever the metric is; unchanged where none was
        reranked.

        p(candidate) = softmax of the blended scores: a conditional logit with the retrieval's rank as its prior
        (McFadden, Conditional Logit Analysis of Qualitative Choice Behavior, 1974). Its loss is convex in the weight
        and uses every score; a metric of ranks over a hundred rows jumps from weight to weight.
        """
        from scipy.optimize import minimize_scalar

        rows = list(self._list_right(scored, truth))
        if not rows:
            return self

        def loss(weight: float) -> float:
            return sum(loss_of_right(weight * scores + prior, right) for scores, prior, right in rows)

        return replace(self, weight=float(minimize_scalar(loss, bounds=(0.0, LARGEST), method="bounded").x))

    def _list_right(self, scored: Reranked, truth: pl.DataFrame) -> Iterator[tuple[np.ndarray, np.ndarray, list[int]]]:
        """For each row with right and wrong reranked candidates: scores, −log(rank), the indices of the right ones."""
        import numpy as np

        right = dict(truth.select("id", "items").iter_rows())
        retrieved = dict(scored.retrieved.select("id", "items").iter_rows())
        for row, scores in read_rows(scored.reranked).items():
            if hits := find_hits(list(scores), right[row]):
                yield np.array([*scores.values()]), log_ranks(list(scores), retrieved[row]), hits

    def apply(self, scored: Reranked) -> pl.DataFrame:
        """One RANKING of all candidates; those that were not reranked follow in the retrieval's order."""
        reranked = read_rows(scored.reranked)
        retrieved = scored.retrieved.select("id", "items").iter_rows()
        rows = [self._blend(items, reranked.get(row, {})) for row, items in retrieved]
        return make_ranking(scored.retrieved["id"].to_list(), [row[0] for row in rows], [row[1] for row in rows])

    def _blend(self, items: list[str], scores: dict[str, float]) -> tuple[list[str], list[float]]:
        blended = {
            item: self.weight * scores[item] - math.log(rank) for rank, item in enumerate(items, 1) if item in scores
        }
        lowest = min(blended.values(), default=0.0)
        rest = [item for item in items if item not in scores]
        return [*blended, *rest], [*blended.values(), *(lowest - math.log(1 + n) for n in range(1, len(rest) + 1))]
