"""The time that a prediction may take."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T", bound=Sized)
RESERVE, LARGEST_RESERVE = 0.05, 300.0  # share of a limit, and seconds, that are kept for what follows a prediction


class Budget:
    """Stops before the chunk that would end late. Counts what it cut.

    limit: seconds from now on, infinite in CV. reserve: seconds kept for what follows the last chunk.
    The parent process kills at the deadline, not this object.
    """

    def __init__(
        self, limit: float = math.inf, reserve: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not (limit >= 0 and reserve >= 0):  # also not a number
            raise ValueError(f"limit = {limit} s, reserve = {reserve} s: both must be 0 or more")
        self.clock, self.reserve = clock, reserve
        self.end = clock() + limit - reserve
        self.start = 0.0
        """Seconds of the longest first chunk so far."""
        self.cuts: Counter[str] = Counter()
        """Rows that were left out so far, by what was left out of them."""

    def left(self) -> float:
        """Seconds until work has to stop; infinite without a limit."""
        return self.end - self.clock()

    def fork(self) -> Budget:
        """One with the same end and the same experience, that counts its own cuts."""
        fork = Budget(clock=self.clock)
        fork.reserve, fork.end, fork.start = self.reserve, self.end, self.start
        return fork

    def split(self, items: Sequence[S], size: int) -> list[Sequence[S]]:
        """Parts of `size` items between which the time can run out; one where there is no limit."""
        size = max(len(items), 1) if math.isinf(self.left()) else size
        return [items[at : at + size] for at in range(0, len(items), size)]

    def take(self, chunks: Iterable[T], what: str = "prediction") -> Iterator[T]:
        """Chunks as long as the next one ends in time, at the slowest pace per row seen so far.

        A first chunk, in which a model is loaded, has to have the time that the longest of earlier calls took; its pace
        counts only until there is a second one. what: the name under which the rows of the other chunks are counted.
        """
        paces: list[float] = []
        stopped = False
        for chunk in chunks:
            needed = max(paces[1:] or paces) * len(chunk) if paces else self.start
            stopped = stopped or needed > self.left()
            if stopped:
                self.cuts[what] += len(chunk)
                continue
            begin = self.clock()
            yield chunk
            seconds = self.clock() - begin
            self.start = self.start if paces else max(self.start, seconds)
            paces.append(seconds / max(len(chunk), 1))


def budget_until(deadline: float) -> Budget:
    """Of a prediction whose parent ends it at the deadline, in seconds since the epoch."""
    limit = max(deadline - time.time(), 0.0)
    return Budget(limit, min(LARGEST_RESERVE, RESERVE * limit))


def describe_cuts(cuts: Mapping[str, int]) -> str:
    """ "cut by the time limit: reranking of 30 rows", or ""."""
    found = ", ".join(f"{what} of {rows} rows" for what, rows in cuts.items() if rows)
    return f"cut by the time limit: {found}" if found else ""
