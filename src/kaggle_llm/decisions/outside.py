"""The probability from which a token counts as outside of all spans, fitted on out-of-fold predictions.

Where a missed span costs more than a false one (F5), the threshold is higher than one half; but lower than it would be
if single tokens were scored, because a token added beside a span makes the whole span wrong.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.competition.spans import join_tags
from kaggle_llm.tasks.tags import list_tags

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.competition.metrics import Metric

# Of equally good thresholds the first is taken, so those near one half (about the likeliest tag) come first.
GRID = (0.5, 0.6, 0.35, 0.7, 0.8, 0.2, 0.1, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)


@dataclass(frozen=True)
class OutsideThreshold:
    """A token is O where p(O) is `value` or more, else it takes its likeliest other tag."""

    value: float = 0.5

    def fit(self, tagged: pl.DataFrame, truth: pl.DataFrame, metric: Metric) -> OutsideThreshold:
        """The first threshold of GRID with the best metric."""
        tried = [replace(self, value=value) for value in GRID]
        return max(tried, key=lambda threshold: metric.sign * metric.score(threshold.apply(tagged), truth))

    def apply(self, tagged: pl.DataFrame) -> pl.DataFrame:
        """The frame of `tags.tag_texts` → RANKING of spans, scored by their mean log-probability."""
        rows = [(row, join_tags(tags, text, self.value)) for row, text, tags in list_tags(tagged)]
        items = [[span.to_item() for span, _ in spans] for _, spans in rows]
        return make_ranking([row for row, _ in rows], items, [[score for _, score in spans] for _, spans in rows])
