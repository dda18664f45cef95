"""The time that a prediction may take."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import TypeVar

S = TypeVar("S")
T = TypeVar("T", bound=Sized)
RESERVE_SHARE, MAX_RESERVE_SECONDS = 0.05, 300.0  # of the time limit, kept for the work after a prediction


class Budget:
    """Stops before the chunk that would end late, and counts the rows it cut.

    limit: seconds from now, infinite in CV. reserve: seconds kept for the work after the last chunk. Killing at the
    deadline is the parent process's job.
    """

    def __init__(
        self, limit: float = math.inf, reserve: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if not (limit >= 0 and reserve >= 0):  # NaN too
            raise ValueError(f"limit = {limit} s, reserve = {reserve} s: both must be 0 or more")
        self.clock, self.reserve = clock, reserve
        self.end = clock() + limit - reserve
        self.start = 0.0
        """Seconds of the longest first chunk so far; it includes loading the model."""
        self.cuts: Counter[str] = Counter()
        """Number of rows cut so far, by the name of the work."""

    def left(self) -> float:
        """Seconds until work has to stop; infinite without a limit."""
        return self.end - self.clock()

    def fork(self) -> Budget:
        """A budget with the same end and first-chunk time that counts its own cuts."""
        fork = Budget(clock=self.clock)
        fork.reserve, fork.end, fork.start = self.reserve, self.end, self.start
        return fork

    def split(self, items: Sequence[S], size: int) -> list[Sequence[S]]:
        """Parts of `size` items, between which the budget may stop; a single part without a limit."""
        size = max(len(items), 1) if math.isinf(self.left()) else size
        return [items[start : start + size] for start in range(0, len(items), size)]

    def take(self, chunks: Iterable[T], work: str = "prediction") -> Iterator[T]:
        """Chunks as long as the next one ends in time, at the slowest pace per row so far.

        The first chunk, in which a model may load, is expected to take as long as the longest first chunk of earlier
        calls; its pace counts only until there is a second one. work: name under which cut rows are counted.
        """
        paces: list[float] = []
        stopped = False
        for chunk in chunks:
            needed = max(paces[1:] or paces) * len(chunk) if paces else self.start
            stopped = stopped or needed > self.left()
            if stopped:
                self.cuts[work] += len(chunk)
                continue
            begin = self.clock()
            yield chunk
            seconds = self.clock() - begin
            self.start = self.start if paces else max(self.start, seconds)
            paces.append(seconds / max(len(chunk), 1))


def budget_until(deadline: float) -> Budget:
    """The budget of a prediction that is killed at `deadline`, in seconds since the epoch."""
    limit = max(deadline - time.time(), 0.0)
    return Budget(limit, min(MAX_RESERVE_SECONDS, RESERVE_SHARE * limit))


def describe_cuts(cuts: Mapping[str, int]) -> str:
    """ "cut by the time limit: reranking of 30 rows", or ""."""
    described = ", ".join(f"{work} of {rows} rows" for work, rows in cuts.items() if rows)
    return f"cut by the time limit: {described}" if described else ""
