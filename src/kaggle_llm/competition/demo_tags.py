"""demo-tags: find the personal data in a text. Copy this module where the answer is spans of characters."""

from __future__ import annotations

from typing import ClassVar

from kaggle_llm.competition.metrics import span_f_beta
from kaggle_llm.competition.span_forms import CharacterSpans
from kaggle_llm.competition.table import Table


class DemoTags(CharacterSpans):
    """One row a text; the cell lists its spans, "start:end:TYPE", or "-". Micro F5 over all spans."""

    texts = ("text",)
    tables: ClassVar = {
        "train": Table("id", texts, target="spans", group="source"),
        "test": Table("id", texts),
    }
    metric = span_f_beta(5)
    also = (span_f_beta(1),)


COMPETITION = DemoTags
