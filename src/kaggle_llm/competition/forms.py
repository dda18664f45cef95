"""What a submission's cells hold, a class for each kind: subclass the one that fits in competition/<name>.py.

docs/competition.md has a table of them; forms of spans are in span_forms.py.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from kaggle_llm.competition.competition import TRAIN, Competition
from kaggle_llm.competition.data_files import as_text, find_file, read_file, strip_zeros
from kaggle_llm.competition.rankings import make_ranking, make_values
from kaggle_llm.competition.table import Table

if TYPE_CHECKING:
    import polars as pl

LABELS = Table("label", ("text",))  # the table of RankedLabels' documents
SHARES_TOLERANCE = 1e-3  # of the sum of shares, which may be rounded


class RankedItems(Competition):
    """Items in one cell, best first, separated by spaces: ids of documents, or labels."""

    cut: ClassVar[int]
    """Items in a cell, at most."""

    def cell(self, items: Sequence[str]) -> str:
        return " ".join(items[: self.cut]) or self.nothing

    def items_in(self, cell: str) -> list[str]:
        """Raises ValueError for more items than `cut`."""
        items = [] if cell == self.nothing else cell.split()
        if len(items) > self.cut:
            raise ValueError(f"{len(items)} items, {self.cut} are allowed")
        return items


class SeveralItems(RankedItems):
    """RankedItems where a row has several right items, or none: its target's cell lists them, separated by spaces.

    `pairs` names a file with a line for each pair, where there is one. Folds keep no targets whole, because shared
    targets would chain most rows together: name a group in the training Table where a hidden test has new ones.
    """

    pairs: ClassVar[tuple[str, str, str]] = ("", "", "")
    """A file without its ending, such as "qrels", its column of the training table's ids, and that of the items."""

    def read(self, name: str) -> pl.DataFrame:
        """The table; the training table with its right items, "" where a row has none."""
        import polars as pl

        rows, spec = super().read(name), self.tables[name]
        if name != TRAIN:
            return rows
        if self.pairs[0]:
            rows = rows.join(self._read_pairs(spec.id), on=spec.id, how="left", maintain_order="left")
        return rows.with_columns(pl.col(spec.target).fill_null(""))

    def _read_pairs(self, id_column: str) -> pl.DataFrame:
        """The columns id and target: a row's items separated by spaces, each once."""
        import polars as pl

        file, own, item = self.pairs
        pairs = as_text(read_file(find_file(self.folder, file))).select(own, item)
        cells = pairs.with_columns(strip_zeros(pairs[own]), strip_zeros(pairs[item])).group_by(own, maintain_order=True)
        target = pl.col(item).unique(maintain_order=True).str.join(" ").alias(self.target)
        return cells.agg(target).rename({own: id_column})

    @property
    def group(self) -> str:
        return self.tables[TRAIN].group

    def truth(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Columns id and items, [] for a row without a right item."""
        import polars as pl

        items = [cell.split() for cell in rows[self.target]]
        return rows.select("id", items=pl.Series(items, dtype=pl.List(pl.String)))

    def groups(self, train: pl.DataFrame, valid: pl.DataFrame) -> pl.Series:
        """[rows] "seen" where an item is right for a training row too, else "unseen"; "none" without a right item."""
        import polars as pl

        known = {item for items in self.truth(train)["items"].to_list() for item in items}
        names = [
            "none" if not items else "unseen" if known.isdisjoint(items) else "seen"
            for items in self.truth(valid)["items"].to_list()
        ]
        return pl.Series("group", names, dtype=pl.String())

    def _check_targets(self, frame: pl.DataFrame, target: str, file: str) -> None:
        import polars as pl

        items = frame.select("id", pl.col(target).str.split(" ")).explode(target).filter(pl.col(target) != "")
        super()._check_targets(items, target, file)


class RankedLabels(RankedItems):
    """The targets that the training table has, as documents: id = the target, text = the target in words.

    So retrieval and rerankers find them. Add LABELS to `tables`.
    """

    documents = "labels"

    def read(self, name: str) -> pl.DataFrame:
        import polars as pl

        if name != self.documents:
            return super().read(name)
        targets = self.read(TRAIN)[self.target].drop_nulls().unique().sort()
        words = targets.str.replace_all(r"[_:]+", " ")
        return pl.DataFrame({LABELS.id: targets, LABELS.texts[0]: words})


class Texts(Competition):
    """A text in the cell."""

    def cell(self, items: Sequence[str]) -> str:
        return items[0]

    def items_in(self, cell: str) -> list[str]:
        return [cell] if cell else []


class OneLabel(Texts):
    """The likeliest of `labels` in the cell."""


class OneProbability(Competition):
    """The probability of the second label in the cell: the softmax of the two labels' scores."""

    labels: ClassVar[tuple[str, str]] = ("0", "1")
    """The labels as the target's column has them; the second one's probability is submitted."""
    every_label = True

    def cells(self, items: Sequence[str], scores: Sequence[float]) -> list[str]:
        first, second = (dict(zip(items, scores, strict=True))[label] for label in self.labels)
        return [repr(1 / (1 + math.exp(min(first - second, 700))))]

    def answer_in(self, cells: Sequence[str]) -> tuple[list[str], list[float]]:
        """Both labels with their log-probabilities; raises ValueError for a cell that is no probability."""
        (cell,) = cells
        probability = read_probability(cell)
        scores = [math.log(max(share, 1e-15)) for share in (1 - probability, probability)]
        return list(self.labels), scores


class LabelColumns(Competition):
    """A submission with a probability for each label, and a train.csv with each label's share in such columns.

    The shares are 1 for the right label, or shares of votes that sum to 1. `read` adds the target `label`, the label
    with the largest share. Where train.csv has a column of labels instead, that is the target, and `read` adds the
    columns.
    """

    labels: ClassVar[Mapping[str, str]]
    """Label → its column, in the sample's order."""
    every_label = True

    def cell_columns(self) -> list[str]:
        return list(self.labels.values())

    def read(self, name: str) -> pl.DataFrame:
        """The table; the training table with shares and label, null where a row has none.

        Raises ValueError for shares that do not sum to 1.
        """
        import polars as pl

        raw, columns = super().read(name), self.cell_columns()
        if name != TRAIN:
            return raw
        if not set(columns) & set(raw.columns):
            right_label = pl.col(self.target)
            return raw.with_columns(
                (right_label == label).cast(pl.Int8()).cast(pl.String()).alias(column)
                for label, column in self.labels.items()
            )
        shares = raw.select(pl.col(columns).cast(pl.Float64, strict=False)).to_numpy()
        right = (shares >= 0).all(axis=1) & (abs(shares.sum(axis=1) - 1) < SHARES_TOLERANCE)
        empty = raw.select(pl.all_horizontal(pl.col(columns).is_null())).to_series()
        wrong = raw.filter(~(pl.Series(right) | empty))
        if wrong.height:
            raise ValueError(
                f"{self.file_name(name)}: {wrong.height} row(s) whose {', '.join(columns)} are not shares "
                f"that sum to 1, first {wrong[self.tables[TRAIN].id][0]!r} with {wrong.select(columns).row(0)}"
            )
        labels = list(self.labels)
        likeliest = pl.Series([labels[column] for column in shares.argmax(axis=1)], dtype=pl.String())
        return raw.with_columns(label=pl.when(~empty).then(likeliest))

    def truth(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Columns id, items (the labels with a share above 0) and shares."""
        shares = [[float(share) for share in row] for row in rows.select(*self.labels.values()).iter_rows()]
        items = [[label for label, share in zip(self.labels, row, strict=True) if share > 0] for row in shares]
        positive = [[share for share in row if share > 0] for row in shares]
        return make_ranking(rows["id"].to_list(), items, positive).rename({"scores": "shares"})

    def cells(self, items: Sequence[str], scores: Sequence[float]) -> list[str]:
        """Probabilities: the softmax of the scores."""
        peak = max(scores)
        weights = {item: math.exp(score - peak) for item, score in zip(items, scores, strict=True)}
        return [repr(weights[label] / sum(weights.values())) for label in self.labels]

    def answer_in(self, cells: Sequence[str]) -> tuple[list[str], list[float]]:
        """The labels and their log-probabilities, at least log 1e-15."""
        pairs = zip(self.labels, map(read_probability, cells), strict=True)
        ranked = sorted(pairs, key=lambda pair: -pair[1])
        return [label for label, _ in ranked], [math.log(max(probability, 1e-15)) for _, probability in ranked]


class NumberColumns(Competition):
    """A submission of one or more numbers a row, and a train.csv with the right ones in columns of the same names.

    Answers are VALUES. `numbers` of the training table are the columns, in the sample's order.
    """

    @property
    def columns(self) -> tuple[str, ...]:
        return self.tables[TRAIN].numbers

    def cell_columns(self) -> list[str]:
        return list(self.columns)

    def read_row(self, cells: Sequence[str | None]) -> list[float]:
        """Raises ValueError for a cell that is no finite number."""
        return [read_number(cell) for cell in cells]

    def truth(self, rows: pl.DataFrame) -> pl.DataFrame:
        """VALUES; raises as `read_row` does."""
        return make_values(rows["id"].to_list(), map(self.read_row, rows.select(*self.columns).iter_rows()))

    def submission(self, ranking: pl.DataFrame) -> pl.DataFrame:
        """VALUES of the test rows → submission.csv's rows."""
        return self._as_submission(ranking)

    def cells_of(self, answer: pl.DataFrame) -> list[list[str]]:
        return [[repr(value) for value in row] for row in answer["values"].to_list()]

    def ranking_of(self, submission: pl.DataFrame) -> pl.DataFrame:
        """A submission → VALUES."""
        rows = list(submission.iter_rows())
        return make_values([row[0] for row in rows], [self.read_row(row[1:]) for row in rows])

    def _find_fault(self, cells: Sequence[str], legal: Collection[str] | None) -> str:
        try:
            self.read_row(cells)
        except ValueError as error:
            return str(error)
        return ""


class ProbabilityColumns(NumberColumns):
    """A submission of the probability of each label of a row that may have none, one or several of them.

    train.csv has columns of 0 and 1, or of probabilities, of the same names.
    """

    def read_row(self, cells: Sequence[str | None]) -> list[float]:
        """Raises ValueError for a cell that is no probability."""
        return [read_probability(cell) for cell in cells]


def read_number(cell: str | None) -> float:
    """Raises ValueError for a cell that is no finite number."""
    number = to_number(cell)
    if not math.isfinite(number):
        raise ValueError(f"{cell!r} is no finite number")
    return number


def read_probability(cell: str | None) -> float:
    """Raises ValueError for a cell that is no number between 0 and 1."""
    number = to_number(cell)
    if not 0 <= number <= 1:
        raise ValueError(f"{cell or ''!r} is no probability")
    return number


def to_number(cell: str | None) -> float:
    """NaN for a cell that is none."""
    try:
        return float(cell or "")
    except ValueError:
        return math.nan
