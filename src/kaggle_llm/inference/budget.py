"""The time that a prediction may take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T", bound=Sized)


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
        self.clock = clock
        self.end = clock() + limit - reserve
        self.cut = 0
        """Rows that were left out so far."""

    def left(self) -> float:
        """Seconds until work has to stop; infinite without a limit."""
        return self.end - self.clock()

    def take(self, chunks: Iterable[T]) -> Iterator[T]:
        """Chunks as long as the next one, at the slowest pace per row seen so far, ends in time."""
        slowest = 0.0
        stopped = False
        for chunk in chunks:
            stopped = stopped or slowest * len(chunk) > self.left()
            if stopped:
                self.cut += len(chunk)
                continue
            start = self.clock()
            yield chunk
            slowest = max(slowest, (self.clock() - start) / max(len(chunk), 1))
