"""Measures how long models load, the part of a prediction's time that does not grow with its rows, in all processes.

Appends a line for each load, "start end" in seconds since the epoch, to the file that the variable KAGGLE_LLM_LOADS
names; without it nothing is written.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LOADS_VARIABLE = "KAGGLE_LLM_LOADS"


@contextmanager
def note_loading() -> Iterator[None]:
    """Record the time spent inside as loading; nested and parallel loads count once."""
    start = time.time()
    yield
    if path := os.environ.get(LOADS_VARIABLE):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{start} {time.time()}\n")


def count_loading(path: Path) -> float:
    """Seconds during which anything was loading."""
    loads = sorted(tuple(map(float, line.split())) for line in path.read_text(encoding="utf-8").splitlines())
    total, until = 0.0, 0.0
    for start, end in loads:
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total
