"""The result of a rehearsal's check, and how two answers to the same rows are compared."""

from __future__ import annotations

import math
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.base import paths, records
from kaggle_llm.competition.rankings import is_values, read_rows

if TYPE_CHECKING:
    import polars as pl

ItemScores = dict[str, float]  # item → score, or name → value
TOLERANCE = 1e-4  # of a score (a log-probability or a sum of them) in fp32


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    detail: str


@contextmanager
def note_errors(name: str, checks: list[Check], folder: Path | None = None) -> Iterator[None]:
    """Turn any error inside, also of a competition's module, into a failed check; error.txt has its traceback."""
    try:
        yield
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        if folder is not None:
            records.write_text(folder / "error.txt", "".join(traceback.format_exception(error)))
            detail += f" ({paths.relative(folder / 'error.txt')})"
        checks.append(Check(name, False, detail))


def compare_rankings(ranking: pl.DataFrame, expected: pl.DataFrame) -> list[str]:
    """One message for each row that differs: in the items of a RANKING, or in a score or value by more than TOLERANCE.

    Values above 1 are compared by their relative difference. Items are sorted by their scores, so those whose scores
    differ by less may stand in another order: rounding decides it.
    """
    wanted, rows = read_rows(expected), read_rows(ranking)
    problems = [f"row {i} is missing" for i in wanted if i not in rows]
    for i, row in rows.items():
        if i not in wanted:
            problems.append(f"row {i} was not expected")
            continue
        worst = _difference(row, wanted[i], is_values(ranking))
        if worst <= TOLERANCE:
            continue
        rank = next((n for n, pair in enumerate(zip_longest(row, wanted[i]), 1) if pair[0] != pair[1]), None)
        problems.append(
            f"row {i}: " + (f"the list differs from rank {rank} on" if rank else f"a score differs by {worst:.1e}")
        )
    return problems


def largest_difference(ranking: pl.DataFrame, expected: pl.DataFrame) -> float:
    """Largest |Δ score| of an item or value in two answers to the same rows; inf where their items differ."""
    wanted, values = read_rows(expected), is_values(ranking)
    return max((_difference(row, wanted[i], values) for i, row in read_rows(ranking).items()), default=0.0)


def count_moved(ranking: pl.DataFrame, expected: pl.DataFrame) -> int:
    """Number of rows whose items are in another order."""
    wanted = read_rows(expected)
    return sum(list(row) != list(wanted[i]) for i, row in read_rows(ranking).items())


def _difference(scores: ItemScores, expected: ItemScores, values: bool) -> float:
    """Largest |Δ score| of an item, or difference of a value, relative above 1; inf for NaN and for other items."""
    if scores.keys() != expected.keys():
        return math.inf
    sizes = {item: max(1.0, abs(score)) if values else 1.0 for item, score in expected.items()}
    differences = [abs(score - expected[item]) / sizes[item] for item, score in scores.items()]
    return max(differences, default=0.0) if all(map(math.isfinite, differences)) else math.inf
