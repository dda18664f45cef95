"""Forms of submissions whose answers are spans of characters: in one cell, or as labels of tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from kaggle_llm.competition.competition import TEST, TRAIN, Competition
from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.competition.spans import Offset, find_runs, label_tokens, parse_item

if TYPE_CHECKING:
    import polars as pl

TOKENS = ("tokens", "trailing_whitespace")
TOKEN = re.compile(r"(\S+|\s)( ?)")


class CharacterSpans(Competition):
    """The spans of a row's text in the cell, "start:end:TYPE" separated by spaces, and `nothing` where there are none.

    start and end count characters (code points) of the text as read, \\r\\n are two. The target holds the same.
    """

    nothing = "-"

    def cell(self, items: Sequence[str]) -> str:
        return " ".join(items) or self.nothing

    def items_in(self, cell: str) -> list[str]:
        """Raises ValueError for an item that is no span."""
        items = [] if cell == self.nothing else cell.split()
        return [parse_item(item).to_item() for item in items]

    def truth(self, rows: pl.DataFrame) -> pl.DataFrame:
        import polars as pl

        items = [self.items_in(cell) for cell in rows[self.target].to_list()]
        return rows.select("id", items=pl.Series(items, dtype=pl.List(pl.String())))

    def check(self) -> None:
        """Raises ValueError also for a span of train.csv that ends past its text."""
        super().check()
        train = self.table(TRAIN)
        (text,) = self.tables[TRAIN].texts
        if problems := find_late_spans(train.select("id", text), self.truth(train)):
            raise ValueError(
                f"{self.file_name(TRAIN)}: {len(problems)} span(s) end past their text, first {problems[0]}"
            )

    def check_submission(self, submission: pl.DataFrame) -> list[str]:
        """The base class's problems, and spans that end past their text."""
        (text,) = self.tables[TEST].texts
        problems = super().check_submission(submission)
        return problems or find_late_spans(self.table(TEST).select("id", text), self.ranking_of(submission))


class TokenSpans(CharacterSpans):
    """Labels of tokens: the submission has a row for each token inside a span, (row number, document, token, label).

    Both tables have lists `tokens` and `trailing_whitespace`, which make up the text; the training table has `labels`,
    BIO tags. `read` makes the target `spans` of them, "start:end:TYPE" as in CharacterSpans: an answer is such spans.
    Keep both lists: Table(…, target="spans", kept=TOKENS).
    """

    columns: ClassVar[Sequence[str]] = ("document", "token", "label")
    """The sample's columns after the row number."""

    def cell_columns(self) -> list[str]:
        return list(self.columns)

    def read(self, name: str) -> pl.DataFrame:
        import polars as pl

        rows = super().read(name)
        if "labels" not in rows.columns:
            return rows
        offsets = list_offsets(rows)
        spans = [
            None if tags is None else self.cell([f"{own[i][0]}:{own[j][1]}:{kind}" for i, j, kind in find_runs(tags)])
            for tags, own in zip(rows["labels"].to_list(), offsets, strict=True)
        ]
        return rows.with_columns(spans=pl.Series(spans, dtype=pl.String()))

    def truth(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Columns id, items (spans) and tokens ("start:end" of each)."""
        import polars as pl

        tokens = [[f"{start}:{end}" for start, end in own] for own in list_offsets(rows)]
        return super().truth(rows).with_columns(tokens=pl.Series(tokens, dtype=pl.List(pl.String())))

    def check(self) -> None:
        """Raises ValueError also where the tokens do not make up the text."""
        super().check()
        (text,) = self.tables[TRAIN].texts
        for name in (TRAIN, TEST):
            rows = self.table(name)
            ends = [own[-1][1] if own else 0 for own in list_offsets(rows, trailing=True)]
            for row, written, end in zip(rows["id"], rows[text], ends, strict=True):
                if end != len(written):
                    raise ValueError(f"row {row!r}: its tokens have {end} characters, its text {len(written)}")

    def sample_of(self, ids: Sequence[str]) -> pl.DataFrame:
        """A sample submission that labels the first token of each document."""
        import polars as pl

        sample = self.sample()
        label = sample[sample.columns[-1]].first() or "B-NONE"
        rows = [(str(number), document, "0", label) for number, document in enumerate(ids)]
        return pl.DataFrame(rows, schema=dict.fromkeys(sample.columns, pl.String()), orient="row")

    def _as_submission(self, answer: pl.DataFrame) -> pl.DataFrame:
        import polars as pl

        tokens, rows = self._tokens(answer["id"].to_list()), []
        for document, items in answer.select("id", "items").iter_rows():
            labels = label_tokens(tokens[document], [parse_item(item) for item in items])
            rows += [(document, str(token), label) for token, label in labels]
        numbered = [(str(number), *row) for number, row in enumerate(rows)]
        return pl.DataFrame(numbered, schema=dict.fromkeys(self.sample().columns, pl.String()), orient="row")

    def ranking_of(self, submission: pl.DataFrame) -> pl.DataFrame:
        """A submission → RANKING of the test set's documents and of others that it names; scores are 0."""
        labels: dict[str, dict[int, str]] = {document: {} for document in self.table(TEST)["id"]}
        for _, document, token, label in submission.iter_rows():
            labels.setdefault(document, {})[int(token)] = label
        tokens, items = self._tokens(list(labels)), []
        for document, own in tokens.items():
            runs = find_runs([labels[document].get(token, "O") for token in range(len(own))])
            items.append([f"{own[first][0]}:{own[last][1]}:{kind}" for first, last, kind in runs])
        return make_ranking(list(tokens), items, [[0.0] * len(spans) for spans in items])

    def check_submission(self, submission: pl.DataFrame) -> list[str]:
        """Columns, documents and tokens of the test set, BIO labels; each token at most once."""
        sample = self.sample()
        if submission.columns != sample.columns:
            return [f"columns {submission.columns}, the sample has {sample.columns}"]
        documents = self.table(TEST)["id"].to_list()
        tokens, problems = self._tokens(documents), []
        for number, document, token, label in submission.iter_rows():
            if document not in tokens:
                problems.append(f"row {number}: document {document!r} is not in the test set")
            elif not (token or "").isdecimal() or int(token) >= len(tokens[document]):
                problems.append(f"row {number}: document {document!r} has no token {token!r}")
            elif not re.fullmatch(r"[BI]-.+", label or ""):
                problems.append(f"row {number}: label {label!r}: B-TYPE or I-TYPE is expected")
        repeated = submission.height - submission.select(sample.columns[1:3]).n_unique() if submission.height else 0
        return problems + ([f"{repeated} token(s) occur more than once"] if repeated else [])

    def replace_texts(self, row: Mapping[str, Any], texts: Mapping[str, str | None]) -> dict[str, Any]:
        """The row with another text and its tokens."""
        (text,) = texts.values()
        pieces = TOKEN.findall(text or "")
        tokens = {"tokens": [token for token, _ in pieces], "trailing_whitespace": [bool(blank) for _, blank in pieces]}
        return {**row, **texts, **tokens}

    def _tokens(self, ids: Sequence[str]) -> dict[str, list[Offset]]:
        """The characters of every document's tokens, of the test set or else of the training table."""
        offsets: dict[str, list[Offset]] = {}
        for name in (TEST, TRAIN):
            if set(ids) - offsets.keys():
                rows = self.read(name).rename({self.tables[name].id: "id"})
                offsets = dict(zip(rows["id"].to_list(), list_offsets(rows), strict=True)) | offsets
        return {document: offsets[document] for document in ids}


def list_offsets(rows: pl.DataFrame, trailing: bool = False) -> list[list[Offset]]:
    """(start, end) of every token of every row, in characters of the text. trailing: with the space after it."""
    offsets = []
    for tokens, blanks in rows.select(*TOKENS).iter_rows():
        own, start = [], 0
        for token, blank in zip(tokens or (), blanks or (), strict=True):
            end = start + len(token)
            own.append((start, end + bool(blank) if trailing else end))
            start = end + bool(blank)
        offsets.append(own)
    return offsets


def find_late_spans(rows: pl.DataFrame, answers: pl.DataFrame) -> list[str]:
    """A line for each span that ends past its text. rows: id, text; answers: id, items."""
    lengths = {row: len(text) for row, text in rows.iter_rows()}
    return [
        f"row {row}: {item} ends past its text of {lengths[row]} characters"
        for row, items in answers.select("id", "items").iter_rows()
        for item in items
        if parse_item(item).end > lengths[row]
    ]
