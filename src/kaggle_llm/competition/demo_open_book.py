"""demo-open-book: questions with five options and an encyclopedia. Copy this module for open-book exams."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from kaggle_llm.competition.competition import Competition, Table
from kaggle_llm.competition.metrics import accuracy, mean_average_precision

LETTERS = ("A", "B", "C", "D", "E")
CUT = 3  # letters in a submission's cell


class DemoOpenBook(Competition):
    """One row a question; the cell lists up to three letters, best first. MAP@3. The answers are in articles.csv."""

    texts = ("question", *LETTERS)
    tables: ClassVar = {
        "train": Table("id", texts, target="answer", group="article"),
        "test": Table("id", texts),
        "articles": Table("article_id", ("title", "text")),
    }
    metric = mean_average_precision(CUT)
    also = (accuracy(),)

    def legal_items(self) -> list[str]:
        return list(LETTERS)

    def cell(self, items: Sequence[str]) -> str:
        return " ".join(items[:CUT])

    def items_in(self, cell: str) -> list[str]:
        return cell.split()


COMPETITION = DemoOpenBook
