"""demo-tags: find the personal data in a text. Copy this module where the answer is spans of characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from kaggle_llm.competition.competition import TEST, TRAIN, Competition, Table
from kaggle_llm.competition.metrics import span_f_beta
from kaggle_llm.competition.spans import parse_item

if TYPE_CHECKING:
    import polars as pl


class DemoTags(Competition):
    """One row a text; the cell lists its spans, "start:end:TYPE", or "-". Micro F5 over all spans.

    start and end count characters (code points) of the text as read from the CSV; \\r\\n are two.
    """

    texts = ("text",)
    nothing = "-"
    tables: ClassVar = {
        "train": Table("id", texts, target="spans", group="source"),
        "test": Table("id", texts),
    }
    metric = span_f_beta(5)
    also = (span_f_beta(1),)

    def cell(self, items: Sequence[str]) -> str:
        return " ".join(items) or self.nothing

    def items_in(self, cell: str) -> list[str]:
        """Raises ValueError for an item that is no span."""
        items = [] if cell == self.nothing else cell.split()
        return [parse_item(item).to_item() for item in items]

    def truth(self, rows: pl.DataFrame) -> pl.DataFrame:
        import polars as pl

        items = [self.items_in(cell) for cell in rows["spans"].to_list()]
        return rows.select("id", items=pl.Series(items, dtype=pl.List(pl.String())))

    def check(self) -> None:
        """Raises ValueError also for a span of train.csv that ends behind its text."""
        super().check()
        train = self.table(TRAIN)
        problems = find_late_spans(train.select("id", *self.texts), self.truth(train))
        if problems:
            raise ValueError(f"train.csv: {len(problems)} span(s) end behind their text, first {problems[0]}")

    def check_submission(self, submission: pl.DataFrame) -> list[str]:
        """Also: spans that end behind their text."""
        problems = super().check_submission(submission)
        return problems or find_late_spans(self.table(TEST), self.ranking_of(submission))


def find_late_spans(rows: pl.DataFrame, answers: pl.DataFrame) -> list[str]:
    """A line for each span that ends behind its text. rows: id, text; answers: id, items."""
    lengths = {row: len(text) for row, text in rows.iter_rows()}
    return [
        f"row {row}: {item} ends behind its text of {lengths[row]} characters"
        for row, items in answers.select("id", "items").iter_rows()
        for item in items
        if parse_item(item).end > lengths[row]
    ]


COMPETITION = DemoTags
