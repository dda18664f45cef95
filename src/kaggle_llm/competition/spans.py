"""Character spans ↔ BIO tags of tokens, for training and prediction of token classification.

A long text is cut into overlapping windows of tokens; in prediction a token's logits are those of the window where it
is farthest from an edge. Spans that begin and end at token boundaries come back exactly, without white space at their
ends; a span that cuts a token is widened to the whole token.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from kaggle_llm.base.plain_text import list_special_tokens, text_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

Offset = tuple[int, int]

OUTSIDE = "O"
NO_LABEL = -100  # ignored by the loss of transformers


@dataclass(frozen=True)
class Span:
    """Characters start … end−1 of a text."""

    start: int
    end: int
    type: str

    def __post_init__(self) -> None:
        if not (0 <= self.start < self.end and self.type):
            raise ValueError(f"{self}: a span has one character or more and a type")

    def to_item(self) -> str:
        """The item of a ranking: "start:end:TYPE"."""
        return f"{self.start}:{self.end}:{self.type}"


def parse_item(item: str) -> Span:
    """The span of "start:end:TYPE"."""
    start, end, kind = [*item.split(":", 2), "", ""][:3]
    if not (start.isdecimal() and end.isdecimal()):
        raise ValueError(f"{item!r} is no span: it is written start:end:TYPE")
    return Span(int(start), int(end), kind)


def find_runs(tags: Sequence[str]) -> list[tuple[int, int, str]]:
    """(first, last, type) of every run of BIO tags; an I-x that follows neither B-x nor I-x starts one.

    Raises ValueError for tags other than O, B-x and I-x.
    """
    runs: list[tuple[int, int, str]] = []
    for index, tag in enumerate(tags):
        if tag == OUTSIDE:
            continue
        prefix, dash, kind = tag.partition("-")
        if prefix not in ("B", "I") or not dash or not kind:
            raise ValueError(f"tag {tag!r}: there are O, B-TYPE and I-TYPE")
        if prefix == "I" and runs and runs[-1][1:] == (index - 1, kind):
            runs[-1] = (runs[-1][0], index, kind)
        else:
            runs.append((index, index, kind))
    return runs


def label_tokens(tokens: Sequence[Offset], spans: Sequence[Span]) -> list[tuple[int, str]]:
    """(token, B-TYPE or I-TYPE) of the tokens that a span touches, in their order; the first span of a token counts."""
    labels: dict[int, str] = {}
    for span in spans:
        touched = [n for n, (start, end) in enumerate(tokens) if start < span.end and end > span.start]
        for position, token in enumerate(touched):
            labels.setdefault(token, f"{'I' if position else 'B'}-{span.type}")
    return sorted(labels.items())


def bio_tags(types: Sequence[str]) -> list[str]:
    """["O", "B-x", "I-x", …]: the labels of a token head, in its order."""
    if not types or len(set(types)) < len(types) or not all(types):
        raise ValueError(f"types = {list(types)}: name one or more, each once")
    return [OUTSIDE, *(f"{prefix}-{kind}" for kind in types for prefix in "BI")]


@dataclass
class WindowSettings:
    max_tokens: int = 256
    """Tokens of a window, with special tokens."""
    overlap: int = 64
    """Tokens that a window shares with the next one; the last two share more."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.max_tokens:
            raise ValueError(f"overlap = {self.overlap}, max_tokens = {self.max_tokens}: 0 ≤ overlap < max_tokens")


@dataclass(frozen=True)
class Window:
    """Consecutive tokens of a text, as the model sees them."""

    ids: list[int]
    """Token ids, with the tokenizer's special tokens."""
    offsets: list[Offset | None]
    """The characters of every token, without white space at its ends; None for special tokens."""
    before: Offset | None
    """The token before the window's first one; None at the start of the text."""
    owned: slice
    """The tokens whose logits count in prediction: each token of the text is owned by one window."""


def windows(tokenizer: PreTrainedTokenizerBase, text: str, settings: WindowSettings) -> list[Window]:
    """The windows of a text from left to right; [] for a text without tokens.

    Control tokens that are written in the text are tokenized as text. The last window begins earlier, to be as long as
    the others.
    Raises ValueError for a tokenizer without offsets, and where the special tokens leave no room for the overlap.
    """
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} has no character offsets: use its fast version (tokenizer.json)")
    encoded = text_tokenizer(tokenizer)(
        text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
    )
    ids, offsets = list(encoded["input_ids"]), _cover(text, encoded["offset_mapping"])
    head, tail = list_special_tokens(tokenizer)
    room = settings.max_tokens - len(head) - len(tail)
    if room <= settings.overlap:
        raise ValueError(
            f"max_tokens = {settings.max_tokens} leaves {room} beside {len(head) + len(tail)} special tokens: "
            f"more than overlap = {settings.overlap} are needed"
        )
    cut = []
    for start, own, end in _stretches(len(ids), room, settings.overlap):
        part = slice(start, start + room)
        cut.append(
            Window(
                [*head, *ids[part], *tail],
                [*[None] * len(head), *offsets[part], *[None] * len(tail)],
                offsets[start - 1] if start else None,
                slice(own - start + len(head), end - start + len(head)),
            )
        )
    return cut


def _stretches(count: int, room: int, overlap: int) -> list[tuple[int, int, int]]:
    """(start, start of the owned tokens, end of the owned tokens) of every window on `count` tokens."""
    if count <= room:
        return [(0, 0, count)] if count else []
    last = count - room
    starts = [*range(0, last, room - overlap), last]
    # Two windows share their overlap: each owns the half that is farther from its edge.
    middles = [(first + room + second) // 2 for first, second in pairwise(starts)]
    return list(zip(starts, [0, *middles], [*middles, count], strict=True))


def _cover(text: str, raw: Sequence[Offset]) -> list[Offset]:
    """Offsets that together cover the text, except for white space.

    Tokens that share a character (the bytes of an emoji) are one unit and get the same offsets. A character that the
    tokenizer drops (an accent, a zero-width joiner) goes to the unit before it, else to the one after it.
    """
    units: list[list[int]] = []  # start, end, number of tokens
    for start, end in (_trim(text, *offset) for offset in raw):
        if units and (start < units[-1][1] or [start, end] == units[-1][:2]):
            units[-1] = [min(start, units[-1][0]), max(end, units[-1][1]), units[-1][2] + 1]
        else:
            units.append([start, end, 1])
    for index, unit in enumerate(units):
        limit = units[index + 1][0] if index + 1 < len(units) else len(text)
        while unit[1] < limit and not text[unit[1]].isspace():
            unit[1] += 1
        stop = units[index - 1][1] if index else 0
        while unit[0] > stop and not text[unit[0] - 1].isspace():
            unit[0] -= 1
    return [(start, end) for start, end, count in units for _ in range(count)]


def _trim(text: str, start: int, end: int) -> Offset:
    """The offsets without white space at the ends; unchanged where there is nothing else."""
    inner = text[start:end].strip()
    if not inner:
        return start, end
    start += len(text[start:end]) - len(text[start:end].lstrip())
    return start, start + len(inner)


def labels_of(window: Window, spans: Sequence[Span], tags: Sequence[str]) -> list[int]:
    """[tokens] the index in `tags` of every token's BIO tag, NO_LABEL for special tokens.

    spans: of the whole text, without overlaps. A token that two spans share belongs to the first; a span without a
    token of its own gets no label. A span that began before the window goes on with I.
    """
    ordered = sorted(spans, key=lambda span: span.start)
    for first, second in pairwise(ordered):
        if first.end > second.start:
            raise ValueError(f"{first} and {second} overlap: a token has one tag, drop one of them")
    indices = {tag: index for index, tag in enumerate(tags)}
    unknown = sorted({span.type for span in spans if f"B-{span.type}" not in indices})
    if unknown:
        raise ValueError(f"spans of the types {unknown}, the tags are {list(tags)}")
    labels = []
    previous = _owner(window.before, ordered)
    for offset in window.offsets:
        if offset is None:
            labels.append(NO_LABEL)
            continue
        owner = _owner(offset, ordered)
        prefix = "I" if owner == previous else "B"
        labels.append(indices[f"{prefix}-{owner.type}" if owner else OUTSIDE])
        previous = owner
    return labels


def _owner(offset: Offset | None, spans: Sequence[Span]) -> Span | None:
    """The first span that shares a character with the token, or holds an empty token."""
    if offset is None:
        return None
    start, end = offset
    return next((span for span in spans if span.start < end and start < span.end), None)


@dataclass(frozen=True)
class TokenTags:
    """Predictions for a text's tokens from left to right; of tokens that share a character only the first is kept."""

    offsets: list[Offset]
    outside: list[float]
    """Log-probability of O."""
    tags: list[str]
    """The likeliest other tag."""
    scores: list[float]
    """Its log-probability."""


def read_tags(windows: Sequence[Window], logits: Sequence[np.ndarray], tags: Sequence[str]) -> TokenTags:
    """windows: all of the text, in order; logits: of each window [tokens, tags], where tags[0] is O."""
    units = list(_units(windows, logits, tags))
    likeliest = [int(scores[1:].argmax()) + 1 for _, scores in units]
    return TokenTags(
        [offset for offset, _ in units],
        [float(scores[0]) for _, scores in units],
        [tags[tag] for tag in likeliest],
        [float(scores[tag]) for (_, scores), tag in zip(units, likeliest, strict=True)],
    )


def join_tags(tagged: TokenTags, text: str, threshold: float) -> list[tuple[Span, float]]:
    """Spans of a text with their mean log-probability per token, best first.

    threshold: the probability of O from which a token is O, else it takes its likeliest other tag. An I-x that follows
    neither B-x nor I-x starts a span. Spans of white space are left out.
    """
    chosen = [
        OUTSIDE if outside >= math.log(threshold) else tag
        for outside, tag in zip(tagged.outside, tagged.tags, strict=True)
    ]
    spans = []
    for first, last, kind in find_runs(chosen):
        start, end = _trim(text, tagged.offsets[first][0], tagged.offsets[last][1])
        if text[start:end].strip():
            spans.append((Span(start, end, kind), sum(tagged.scores[first : last + 1]) / (last + 1 - first)))
    return sorted(spans, key=lambda pair: -pair[1])


def _units(
    windows: Sequence[Window], logits: Sequence[np.ndarray], tags: Sequence[str]
) -> Iterator[tuple[Offset, np.ndarray]]:
    """Offset and log-probabilities [tags] of every unit's first token, from the window that owns it."""
    import numpy as np

    previous = None
    for window, scores in zip(windows, logits, strict=True):
        if scores.shape != (len(window.ids), len(tags)):
            raise ValueError(f"logits {scores.shape} of a window with {len(window.ids)} tokens and {len(tags)} tags")
        values = scores[window.owned].astype(np.float64)
        values -= np.logaddexp.reduce(values, axis=1, keepdims=True)
        for offset, row in zip(window.offsets[window.owned], values, strict=True):
            assert offset is not None, "a special token is owned by no window"
            if offset != previous:
                yield offset, row
            previous = offset
