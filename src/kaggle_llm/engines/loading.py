"""How long models load: what of a prediction's time does not grow with its rows, in whatever processes it passes.

Notes a line for each load in the file that KAGGLE_LLM_LOADS names, "start end" in seconds since the epoch; without the
variable it leaves nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VARIABLE = "KAGGLE_LLM_LOADS"


@contextmanager
def note_loading() -> Iterator[None]:
    """What is done inside of it is loading; loads inside of loads, and side by side, count once."""
    start = time.time()
    yield
    if path := os.environ.get(VARIABLE):
        with open(path, "a", encoding="utf-8") as file:
            file.write(f"{start} {time.time()}\n")


def count_loading(path: Path) -> float:
    """Seconds in which anything was loading."""
    spans = sorted(tuple(map(float, line.split())) for line in path.read_text(encoding="utf-8").splitlines())
    total, until = 0.0, 0.0
    for start, end in spans:
        total += max(end - max(start, until), 0.0)
        until = max(until, end)
    return total
