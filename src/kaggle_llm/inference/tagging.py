"""Tags of tokens for rows of texts: by a token head over overlapping windows, and by the simplest rules."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import TYPE_CHECKING

from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.engine import Engine
from kaggle_llm.rankings import make_ranking
from kaggle_llm.spans import (
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

if TYPE_CHECKING:
    import polars as pl
    from transformers import PreTrainedTokenizerBase

CHUNK = 32  # texts that are tagged at a time: the grain of the time budget


@dataclass
class TagSettings:
    base: str
    """Folder of the encoder."""
    types: list[str]
    """Of the spans."""

    def __post_init__(self) -> None:
        self.tags = bio_tags(self.types)


def tag_texts(
    rows: pl.DataFrame,
    column: str,
    tokenizer: PreTrainedTokenizerBase,
    engine: Engine,
    tags: Sequence[str],
    settings: WindowSettings,
    budget: Budget,
) -> pl.DataFrame:
    """id, the text, and of its tokens starts, ends, outside, tags and scores, as in spans.TokenTags.

    Texts without a token have none; neither have those that the budget cut. Both are said.
    """
    import polars as pl
    from tqdm import tqdm

    parts = [pl.DataFrame(schema=tagged_schema())]
    chunks = list(rows.select("id", text=column).iter_slices(CHUNK))
    taken = budget.take(chunks, "tagging")
    for chunk in tqdm(taken, "tagging", len(chunks), unit=f" x {CHUNK} rows", mininterval=5.0):
        parts.append(tag_chunk(chunk, tokenizer, engine, tags, settings))
    found = pl.concat(parts)
    empty = found.filter(pl.col("starts").list.len() == 0)["id"]
    if empty.len():
        print(f"{empty.len()} row(s) whose text has no token, first {empty.head(3).to_list()}", flush=True)
    return found


def tagged_schema() -> dict[str, pl.DataType]:
    import polars as pl

    numbers, places = pl.List(pl.Float64()), pl.List(pl.Int64())
    return {
        **{"id": pl.String(), "text": pl.String(), "starts": places, "ends": places},
        **{"outside": numbers, "tags": pl.List(pl.String()), "scores": numbers},
    }


def tag_chunk(
    rows: pl.DataFrame,
    tokenizer: PreTrainedTokenizerBase,
    engine: Engine,
    tags: Sequence[str],
    settings: WindowSettings,
) -> pl.DataFrame:
    import polars as pl

    cut = [windows(tokenizer, text, settings) for text in rows["text"].to_list()]
    prompts = [window.ids for text in cut for window in text]
    logits = iter(engine.logits(prompts) if prompts else [])
    found = [read_tags(text, list(islice(logits, len(text))), tags) for text in cut]
    columns = {
        "starts": [[start for start, _ in one.offsets] for one in found],
        "ends": [[end for _, end in one.offsets] for one in found],
        **{name: [asdict(one)[name] for one in found] for name in ("outside", "tags", "scores")},
    }
    return pl.DataFrame({"id": rows["id"], "text": rows["text"], **columns}, schema=tagged_schema())


def list_tags(tagged: pl.DataFrame) -> Iterator[tuple[str, str, TokenTags]]:
    """Id, text and TokenTags of every row of `tag_texts`."""
    for row_id, text, starts, ends, *others in tagged.iter_rows():
        yield row_id, text, TokenTags(list(zip(starts, ends, strict=True)), *others)


def label_windows(
    rows: pl.DataFrame,
    column: str,
    items: Sequence[Sequence[str]],
    tokenizer: PreTrainedTokenizerBase,
    tags: Sequence[str],
    settings: WindowSettings,
) -> list[tuple[Window, list[int]]]:
    """Every window of every text with the places of its tokens' tags, for training. items: "start:end:TYPE" of each."""
    return [
        (window, labels_of(window, [parse_item(item) for item in own], tags))
        for text, own in zip(rows[column].to_list(), items, strict=True)
        for window in windows(tokenizer, text, settings)
    ]


def tag_by_rules(rows: pl.DataFrame, column: str, rules: Mapping[str, str]) -> pl.DataFrame:
    """RANKING of what regular expressions find, score 0; rules: type → expression. Of two that overlap the first rule
    wins."""
    found = [find_by_rules(text, rules) for text in rows[column].to_list()]
    items = [[span.to_item() for span in spans] for spans in found]
    return make_ranking(rows["id"].to_list(), items, [[0.0] * len(own) for own in items])


def find_by_rules(text: str, rules: Mapping[str, str]) -> list[Span]:
    spans: list[Span] = []
    for kind, rule in rules.items():
        for match in re.finditer(rule, text):
            start, end = match.span()
            if start < end and all(end <= span.start or span.end <= start for span in spans):
                spans.append(Span(start, end, kind))
    return sorted(spans, key=lambda span: span.start)
