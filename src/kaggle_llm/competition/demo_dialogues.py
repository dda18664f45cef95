"""demo-dialogues: summarise a chat. Copy this module where the answer is a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from kaggle_llm.competition.forms import Texts
from kaggle_llm.competition.metrics import repetition, rouge, words
from kaggle_llm.competition.table import Table

if TYPE_CHECKING:
    import polars as pl


class DemoDialogues(Texts):
    """One row a chat; the cell is its summary. ROUGE-L, the best over the references, one a line in train.csv."""

    texts = ("dialogue",)
    tables: ClassVar = {
        "train": Table("id", texts, target="summary", group="thread"),
        "test": Table("id", texts),
    }
    metric = rouge("rougeL")
    also = (rouge("rouge1"), rouge("rouge2"), words(), repetition())

    def truth(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select("id", items=rows["summary"].str.split("\n"))


COMPETITION = DemoDialogues
