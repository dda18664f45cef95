"""demo-judge: which of two answers do people prefer? Copy this module where each label has a column."""

from __future__ import annotations

from typing import ClassVar

from kaggle_llm.competition.forms import LabelColumns
from kaggle_llm.competition.metrics import accuracy, log_loss
from kaggle_llm.competition.table import Table


class DemoJudge(LabelColumns):
    """One row a problem with two answers; a probability for each outcome. Log loss of the votes' shares."""

    labels: ClassVar = {"a": "winner_a", "b": "winner_b", "tie": "winner_tie"}
    texts = ("problem", "answer_a", "answer_b")
    tables: ClassVar = {
        "train": Table("id", texts, target="label", group="problem", numbers=tuple(labels.values())),
        "test": Table("id", texts),
    }
    metric = log_loss(tuple(labels))
    also = (accuracy(),)


COMPETITION = DemoJudge
