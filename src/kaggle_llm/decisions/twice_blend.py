"""Scores of single candidates and of windows, blended with the retrieval's rank: the decision of a reranker of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kaggle_llm.competition.rankings import make_ranking, read_rows
from kaggle_llm.decisions.rerank_blend import LARGEST, Blend, Reranked, find_hits, fit_weights, log_ranks

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

    from kaggle_llm.competition.metrics import Metric


@dataclass(frozen=True)
class TwiceReranked(Reranked):
    """`reranked` is by single candidates; `windows` is a RANKING of the same candidates, without the rows whose windows
    the time cut."""

    windows: pl.DataFrame


@dataclass(frozen=True)
class TwiceBlend:
    """score = pointwise · log-odds + windows · log-probability − log(rank in the retrieval), of reranked candidates.

    A row without windows goes without their part.
    """

    pointwise: float = 1.0
    windows: float = 1.0

    def fit(self, scored: TwiceReranked, truth: pl.DataFrame, metric: Metric) -> TwiceBlend:
        """The weights with the largest likelihood of right candidates, as Blend.fit; unchanged where no row has both
        scores."""
        rows = self._list_right(scored, truth)
        pointwise, windows = fit_weights(rows, [self.pointwise, self.windows], LARGEST)
        return replace(self, pointwise=pointwise, windows=windows)

    def apply(self, scored: TwiceReranked) -> pl.DataFrame:
        """One RANKING of all candidates; those that were not reranked follow in the retrieval's order."""
        windows, rows = read_rows(scored.windows), read_rows(scored.reranked)
        summed = [
            [self.pointwise * score + self.windows * windows.get(row, {}).get(item, 0.0) for item, score in own.items()]
            for row, own in rows.items()
        ]
        weighed = make_ranking(list(rows), [list(own) for own in rows.values()], summed)
        return Blend().apply(Reranked(scored.retrieved, weighed))

    def _list_right(
        self, scored: TwiceReranked, truth: pl.DataFrame
    ) -> Iterator[tuple[np.ndarray, np.ndarray, list[int]]]:
        """For each row with both scores: scores [candidates, 2], −log(rank), the indices of the right candidates."""
        import numpy as np

        right = dict(truth.select("id", "items").iter_rows())
        retrieved = dict(scored.retrieved.select("id", "items").iter_rows())
        windows = read_rows(scored.windows)
        for row, own in read_rows(scored.reranked).items():
            items = list(own)
            if row in windows and (hits := find_hits(items, right[row])):
                scores = np.array([[own[item], windows[row][item]] for item in items])
                yield scores, log_ranks(items, retrieved[row]), hits
