"""The weights of two retrievals' scores: the decision of an experiment that fuses them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kaggle_llm.decisions.rerank_blend import find_hits, fit_weights
from kaggle_llm.retrieval.fusion import Retrieved, fuse_by_score, scale_scores

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from kaggle_llm.competition.metrics import Metric

LARGEST = 50.0  # weight that a fit can find: scores are scaled to 0 to 1


@dataclass(frozen=True)
class FusionWeights:
    """score = lexical · BM25's scaled score + dense · the scaled cosine; the first k items."""

    lexical: float = 1.0
    dense: float = 1.0
    k: int = 25

    def fit(self, scored: Retrieved, truth: pl.DataFrame, metric: Metric) -> FusionWeights:
        """The weights with the largest likelihood of right items, whatever the metric is; unchanged where no row has a
        right item among its candidates.

        p(candidate) = softmax of the weighted scores: a conditional logit (McFadden, 1974). Its loss is convex.
        """
        rows = ((scores, 0.0, right) for scores, right in list_candidates(scored, truth))
        lexical, dense = fit_weights(rows, [self.lexical, self.dense], LARGEST)
        return replace(self, lexical=lexical, dense=dense)

    def apply(self, scored: Retrieved) -> pl.DataFrame:
        """One RANKING of the first k items."""
        return fuse_by_score([scored.lexical, scored.dense], [self.lexical, self.dense], self.k)


def list_candidates(scored: Retrieved, truth: pl.DataFrame) -> Iterator[tuple[np.ndarray, list[int]]]:
    """For each row with right and wrong candidates: scaled scores [candidates, 2] and the indices of right ones."""
    import numpy as np

    right = dict(truth.select("id", "items").iter_rows())
    frames = scored.lexical, scored.dense
    for rankings in zip(*(frame.select("id", "items", "scores").iter_rows() for frame in frames), strict=True):
        scaled = [dict(zip(items, scale_scores(scores), strict=True)) for _, items, scores in rankings]
        candidates = list(dict.fromkeys(item for scores in scaled for item in scores))
        if hits := find_hits(candidates, right[rankings[0][0]]):
            yield np.array([[scores.get(item, 0.0) for scores in scaled] for item in candidates]), hits
