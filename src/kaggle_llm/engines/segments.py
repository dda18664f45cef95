"""The segments of a packed row: which tokens attend to which. Pure functions, except for what a Layout remembers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

T = TypeVar("T")
TokenRange = tuple[int, int]  # begin, end


@dataclass(frozen=True)
class Segment:
    """Adjacent tokens of a packed row, with causal attention among themselves."""

    begin: int
    end: int
    before: tuple[TokenRange, ...] = ()
    """Earlier ranges of the row that they see completely, in this order: the parent nodes in a prefix tree."""

    @property
    def visible(self) -> tuple[TokenRange, ...]:
        return (*self.before, (self.begin, self.end))

    def __len__(self) -> int:
        return self.end - self.begin


@dataclass
class Layout:
    """The segments of one row, which they cover in order, and what was made of them once for all layers."""

    segments: Sequence[Segment]
    _made: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """make(), at the first call with this key; the same object later."""
        if key not in self._made:
            self._made[key] = make()
        made: T = self._made[key]
        return made

    @cached_property
    def longest(self) -> int:
        """Tokens that the last token of a segment sees, itself included."""
        return max(sum(end - begin for begin, end in segment.visible) for segment in self.segments)

    def blocks(self, tokens: int) -> Iterator[list[Segment]]:
        """Runs of whole trees of at most `tokens` tokens together; a single tree may have more."""
        block: list[Segment] = []
        for tree in self._trees():
            if block and tree[-1].end - block[0].begin > tokens:
                yield block
                block = []
            block += tree
        yield block

    def _trees(self) -> Iterator[list[Segment]]:
        """A root, which sees no other segment, with all that follow until the next."""
        tree: list[Segment] = []
        for segment in self.segments:
            if tree and not segment.before:
                yield tree
                tree = []
            tree.append(segment)
        yield tree


def join_ranges(ranges: Sequence[TokenRange]) -> list[TokenRange]:
    """The same tokens, adjacent ranges joined and empty ones removed."""
    joined: list[TokenRange] = []
    for begin, end in ranges:
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        elif begin < end:
            joined.append((begin, end))
    return joined
