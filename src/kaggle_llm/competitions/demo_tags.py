"""demo-tags: find the personal data of a text. The example to copy where the answer is spans of characters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from kaggle_llm.competition import TEST, Competition, Table
from kaggle_llm.metrics import span_f_beta
from kaggle_llm.spans import parse_item

if TYPE_CHECKING:
    import polars as pl


class DemoTags(Competition):
    """One row a text; the cell lists its spans, "start:end:TYPE", or "-"; micro F5 over all spans."""

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
        """Raises ValueError for what is no span."""
        items = [] if cell == self.nothing else cell.split()
        return [parse_item(item).to_item() for item in items]

    def truth(self, rows: pl.DataFrame) -> pl.DataFrame:
        import polars as pl

        items = [self.items_in(cell) for cell in rows["spans"].to_list()]
        return rows.select("id", items=pl.Series(items, dtype=pl.List(pl.String())))

    def check_submission(self, submission: pl.DataFrame) -> list[str]:
        """Spans end within their text, too."""
        problems = super().check_submission(submission)
        if problems:
            return problems
        lengths = {i: len(text) for i, text in self.table(TEST).select("id", *self.texts).iter_rows()}
        late = [
            (i, item)
            for i, items in self.ranking_of(submission).select("id", "items").iter_rows()
            for item in items
            if parse_item(item).end > lengths[i]
        ]
        return [f"row {i}: {item} ends behind its text of {lengths[i]} characters" for i, item in late]


COMPETITION = DemoTags
