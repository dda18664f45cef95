"""From which probability on a token is outside of all spans: fitted on out-of-fold predictions, applied in prediction.

Where a missed span costs more than a false one (F5), a token has to be surer to be left out. Not as sure as where
single tokens are scored: a token beside a span joins it, and a whole span with a token too much is a miss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.competition.spans import join_tags
from kaggle_llm.tasks.tags import list_tags

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.competition.metrics import Metric

# Those near one half, which is about the likeliest tag, come first.
GRID = (0.5, 0.6, 0.35, 0.7, 0.8, 0.2, 0.1, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)


@dataclass(frozen=True)
class OutsideThreshold:
    """A token is O where p(O) is `value` or more, else it takes its likeliest other tag."""

    value: float = 0.5

    def fit(self, tagged: pl.DataFrame, truth: pl.DataFrame, metric: Metric) -> OutsideThreshold:
        """The threshold of GRID with the best metric on rows that the model was not trained on; of equals the first."""
        return max(map(OutsideThreshold, GRID), key=lambda one: metric.sign * metric.score(one.apply(tagged), truth))

    def apply(self, tagged: pl.DataFrame) -> pl.DataFrame:
        """What `tagging.tag_texts` found → RANKING of spans; scores are mean log-probabilities."""
        found = [(i, join_tags(tags, text, self.value)) for i, text, tags in list_tags(tagged)]
        items = [[span.to_item() for span, _ in spans] for _, spans in found]
        return make_ranking([i for i, _ in found], items, [[score for _, score in spans] for _, spans in found])
