"""demo-open-book: questions with five options and an encyclopedia. Copy this module for open-book exams."""

from __future__ import annotations

from typing import ClassVar

from kaggle_llm.competition.forms import RankedItems
from kaggle_llm.competition.metrics import accuracy, mean_average_precision
from kaggle_llm.competition.table import Table

LETTERS = ("A", "B", "C", "D", "E")


class DemoOpenBook(RankedItems):
    """One row a question; the cell lists up to three letters, best first. MAP@3. The answers are in articles.csv."""

    texts = ("question", *LETTERS)
    tables: ClassVar = {
        "train": Table("id", texts, target="answer", group="article"),
        "test": Table("id", texts),
        "articles": Table("article_id", ("title", "text")),
    }
    labels = LETTERS
    cut = 3
    metric = mean_average_precision(3)
    also = (accuracy(),)


COMPETITION = DemoOpenBook
