"""demo-essays: what is a pupil's answer worth, from 1 to 6? Copy this module where the cell is one label."""

from __future__ import annotations

from typing import ClassVar

from kaggle_llm.competition.competition import Table
from kaggle_llm.competition.forms import OneLabel
from kaggle_llm.competition.metrics import accuracy, quadratic_weighted_kappa


class DemoEssays(OneLabel):
    """One row a question with an answer; the cell is its score. Quadratic weighted kappa."""

    labels = ("1", "2", "3", "4", "5", "6")
    texts = ("question", "answer")
    tables: ClassVar = {
        "train": Table("id", texts, target="score", group="question"),
        "test": Table("id", texts),
    }
    metric = quadratic_weighted_kappa(labels)
    also = (accuracy(),)


COMPETITION = DemoEssays
