"""Tags the tokens of rows of texts: with a token head over overlapping windows, or with regular expressions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.competition.spans import (
    Span,
    TokenTags,
    Window,
    WindowSettings,
    bio_tags,
    labels_of,
    parse_item,
    read_tags,
    windows,
)
from kaggle_llm.engines.engine import Engine
from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.progress import answer_rows

if TYPE_CHECKING:
    import polars as pl
    from transformers import PreTrainedTokenizerBase

ROWS_A_CHUNK = 64  # the budget is checked between chunks


@dataclass
class TagSettings:
    types: list[str]
    """Types of the spans."""

    def __post_init__(self) -> None:
        self.tags = bio_tags(self.types)


@dataclass(frozen=True)
class Tagger:
    """Cuts texts into windows of tokens, in the same way for training and prediction."""

    tokenizer: PreTrainedTokenizerBase
    tags: Sequence[str]
    """O, and B- and I- for every type."""
    windows: WindowSettings
    column: str
    """The rows' column with the text."""

    def cut(self, rows: pl.DataFrame) -> list[list[Window]]:
        """The windows of every row's text."""
        return [windows(self.tokenizer, text, self.windows) for text in rows[self.column].to_list()]

    def label(self, rows: pl.DataFrame, items: Sequence[Sequence[str]]) -> list[tuple[Window, list[int]]]:
        """Every window of every text, with the index in `tags` of each token. items: "start:end:TYPE" of every row."""
        return [
            (window, labels_of(window, [parse_item(item) for item in row_items], self.tags))
            for row_windows, row_items in zip(self.cut(rows), items, strict=True)
            for window in row_windows
        ]

    def ask(self, rows: pl.DataFrame, engine: Engine) -> pl.DataFrame:
        """id, text, and starts, ends, outside, tags and scores of its tokens, as in spans.TokenTags."""
        import polars as pl

        cut = self.cut(rows)
        prompts = [window.ids for row_windows in cut for window in row_windows]
        logits = iter(engine.logits(prompts) if prompts else [])
        tagged = [read_tags(row_windows, list(islice(logits, len(row_windows))), self.tags) for row_windows in cut]
        columns = {
            "starts": [[start for start, _ in row.offsets] for row in tagged],
            "ends": [[end for _, end in row.offsets] for row in tagged],
            "outside": [row.outside for row in tagged],
            "tags": [row.tags for row in tagged],
            "scores": [row.scores for row in tagged],
        }
        return pl.DataFrame({"id": rows["id"], "text": rows[self.column], **columns}, schema=tagged_schema())


def tagged_schema() -> dict[str, pl.DataType]:
    import polars as pl

    numbers, offsets = pl.List(pl.Float64()), pl.List(pl.Int64())
    return {
        **{"id": pl.String(), "text": pl.String(), "starts": offsets, "ends": offsets},
        **{"outside": numbers, "tags": pl.List(pl.String()), "scores": numbers},
    }


def list_tags(tagged: pl.DataFrame) -> Iterator[tuple[str, str, TokenTags]]:
    """(id, text, TokenTags) of every row of `Tagger.ask`'s frame."""
    for row_id, text, starts, ends, *rest in tagged.iter_rows():
        yield row_id, text, TokenTags(list(zip(starts, ends, strict=True)), *rest)


def tag_texts(
    rows: pl.DataFrame,
    tagger: Tagger,
    engine: Engine,
    budget: Budget,
    on_progress: Callable[[pl.DataFrame], None] | None = None,
) -> pl.DataFrame:
    """`Tagger.ask`, a chunk of rows at a time; rows that the budget cut are missing.

    Prints the number of texts without a token. on_progress: called with the rows so far, every minute.
    """
    import polars as pl

    def ask(chunk: pl.DataFrame) -> pl.DataFrame:
        tagged = tagger.ask(chunk, engine)
        empty.extend(tagged.filter(pl.col("starts").list.len() == 0)["id"].to_list())
        return tagged

    empty: list[str] = []
    chunks = list(rows.iter_slices(ROWS_A_CHUNK))
    tagged = answer_rows(chunks, ask(rows.clear()), budget, "tagging", ask, on_progress)
    if empty:
        print(f"{len(empty)} row(s) whose text has no token, first {empty[:3]}", flush=True)
    return tagged


def tag_by_rules(rows: pl.DataFrame, column: str, rules: Mapping[str, str]) -> pl.DataFrame:
    """RANKING of the matches of regular expressions, from left to right with score 0. rules: type → expression."""
    items = [[span.to_item() for span in find_by_rules(text, rules)] for text in rows[column].to_list()]
    return make_ranking(rows["id"].to_list(), items, [[0.0] * len(row_items) for row_items in items])


def find_by_rules(text: str, rules: Mapping[str, str]) -> list[Span]:
    """Matches that do not overlap: of two the one that begins first, then the earlier rule's."""
    matches = [
        Span(*match.span(), span_type)
        for span_type, rule in rules.items()
        for match in re.finditer(rule, text)
        if match.end() > match.start()
    ]
    spans: list[Span] = []
    for span in sorted(matches, key=lambda span: span.start):
        if not spans or spans[-1].end <= span.start:
            spans.append(span)
    return spans
