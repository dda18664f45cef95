"""demo-misconceptions: find the misconception behind a wrong answer. Copy this module for a new competition."""

from __future__ import annotations

from typing import ClassVar

from kaggle_llm.competition.forms import RankedItems
from kaggle_llm.competition.metrics import mean_average_precision, recall
from kaggle_llm.competition.table import Table

CUT = 25  # items in a submission's cell


class DemoMisconceptions(RankedItems):
    """One row a wrong answer; the cell lists up to 25 misconception ids, best first. MAP@25."""

    texts = ("question", "correct_answer", "wrong_answer")
    tables: ClassVar = {
        "train": Table("id", texts, target="misconception_id"),
        "test": Table("id", texts),
        "misconceptions": Table("misconception_id", ("text",)),
    }
    documents = "misconceptions"
    new_targets = 0.3
    cut = CUT
    metric = mean_average_precision(CUT)
    also = tuple(recall(k) for k in (1, 5, 8, 25))


COMPETITION = DemoMisconceptions
