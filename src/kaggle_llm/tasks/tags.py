"""Tags of tokens for rows of texts: by a token head over overlapping windows, and by the simplest rules."""

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
from kaggle_llm.inference.progress import work_through

if TYPE_CHECKING:
    import polars as pl
    from transformers import PreTrainedTokenizerBase

CHUNK = 64  # texts that are tagged at a time: the grain of the time budget


@dataclass
class TagSettings:
    types: list[str]
    """Of the spans."""

    def __post_init__(self) -> None:
        self.tags = bio_tags(self.types)


@dataclass(frozen=True)
class Tagger:
    """The way from a text to the tokens of its windows, for training and prediction alike."""

    tokenizer: PreTrainedTokenizerBase
    tags: Sequence[str]
    """O, and B- and I- of every type."""
    windows: WindowSettings
    column: str
    """Of the rows, with the text."""

    def cut(self, rows: pl.DataFrame) -> list[list[Window]]:
        """The windows of every row's text."""
        return [windows(self.tokenizer, text, self.windows) for text in rows[self.column].to_list()]

    def label(self, rows: pl.DataFrame, items: Sequence[Sequence[str]]) -> list[tuple[Window, list[int]]]:
        """Every window of every text, each with its tokens' places in `tags`. items: "start:end:TYPE" of every row."""
        return [
            (window, labels_of(window, [parse_item(item) for item in own], self.tags))
            for cut, own in zip(self.cut(rows), items, strict=True)
            for window in cut
        ]

    def ask(self, rows: pl.DataFrame, engine: Engine) -> pl.DataFrame:
        """id, the text, and of its tokens starts, ends, outside, tags and scores, as in spans.TokenTags."""
        import polars as pl

        cut = self.cut(rows)
        prompts = [window.ids for own in cut for window in own]
        logits = iter(engine.logits(prompts) if prompts else [])
        found = [read_tags(own, list(islice(logits, len(own))), self.tags) for own in cut]
        columns = {
            "starts": [[start for start, _ in one.offsets] for one in found],
            "ends": [[end for _, end in one.offsets] for one in found],
            "outside": [one.outside for one in found],
            "tags": [one.tags for one in found],
            "scores": [one.scores for one in found],
        }
        return pl.DataFrame({"id": rows["id"], "text": rows[self.column], **columns}, schema=tagged_schema())


def tagged_schema() -> dict[str, pl.DataType]:
    import polars as pl

    numbers, places = pl.List(pl.Float64()), pl.List(pl.Int64())
    return {
        **{"id": pl.String(), "text": pl.String(), "starts": places, "ends": places},
        **{"outside": numbers, "tags": pl.List(pl.String()), "scores": numbers},
    }


def list_tags(tagged: pl.DataFrame) -> Iterator[tuple[str, str, TokenTags]]:
    """Id, text and TokenTags of every row that `Tagger.ask` gave."""
    for row_id, text, starts, ends, *others in tagged.iter_rows():
        yield row_id, text, TokenTags(list(zip(starts, ends, strict=True)), *others)


def tag_texts(
    rows: pl.DataFrame,
    tagger: Tagger,
    engine: Engine,
    budget: Budget,
    on_progress: Callable[[pl.DataFrame], None] | None = None,
) -> pl.DataFrame:
    """What `Tagger.ask` says, some rows at a time; what the budget cut is not in it.

    Texts without a token are told. on_progress: called with what there is so far, every minute.
    """
    import polars as pl

    def ask(chunk: pl.DataFrame) -> pl.DataFrame:
        tagged = tagger.ask(chunk, engine)
        empty.extend(tagged.filter(pl.col("starts").list.len() == 0)["id"].to_list())
        return tagged

    def tell(parts: Sequence[pl.DataFrame]) -> None:
        if on_progress:
            on_progress(pl.concat(parts))

    empty: list[str] = []
    nothing = ask(rows.clear())
    parts = work_through(list(rows.iter_slices(CHUNK)), budget, "tagging", ask, tell)
    if empty:
        print(f"{len(empty)} row(s) whose text has no token, first {empty[:3]}", flush=True)
    return pl.concat([nothing, *parts])


def tag_by_rules(rows: pl.DataFrame, column: str, rules: Mapping[str, str]) -> pl.DataFrame:
    """RANKING of what regular expressions find, from left to right with score 0. rules: type → expression."""
    found = [find_by_rules(text, rules) for text in rows[column].to_list()]
    items = [[span.to_item() for span in spans] for spans in found]
    return make_ranking(rows["id"].to_list(), items, [[0.0] * len(own) for own in items])


def find_by_rules(text: str, rules: Mapping[str, str]) -> list[Span]:
    """Spans that do not overlap: of two the one that begins first, then the earlier rule's."""
    found = [
        Span(*match.span(), kind)
        for kind, rule in rules.items()
        for match in re.finditer(rule, text)
        if match.end() > match.start()
    ]
    spans: list[Span] = []
    for span in sorted(found, key=lambda span: span.start):
        if not spans or spans[-1].end <= span.start:
            spans.append(span)
    return spans
