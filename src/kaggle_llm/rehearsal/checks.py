"""What a rehearsal checks: one result each, for the report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from kaggle_llm.competition.rankings import is_values, read_rows

if TYPE_CHECKING:
    import polars as pl

Row = dict[str, float]  # item → score, or place → value
TOLERANCE = 1e-4  # of a score (a log-probability or a sum of such), in fp32


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    detail: str


def compare_rankings(found: pl.DataFrame, expected: pl.DataFrame) -> list[str]:
    """Rows of two RANKINGs that differ in their items, or in an item's score by more than TOLERANCE, and rows of VALUES
    of which one differs by more than that share of it; [] where none do.

    Each list is sorted by its scores, so items whose scores are that close may change places: rounding decides there.
    """
    known, rows = read_rows(expected), read_rows(found)
    problems = [f"row {i} is missing" for i in known if i not in rows]
    for i, row in rows.items():
        if i not in known:
            problems.append(f"row {i} was not expected")
            continue
        worst = _difference(row, known[i], is_values(found))
        if worst <= TOLERANCE:
            continue
        place = next((n for n, pair in enumerate(zip_longest(row, known[i]), 1) if pair[0] != pair[1]), None)
        problems.append(
            f"row {i}: " + (f"another list from place {place} on" if place else f"a score differs by {worst:.1e}")
        )
    return problems


def largest_difference(found: pl.DataFrame, expected: pl.DataFrame) -> float:
    """Largest |Δ score| of an item, or of a value, in two answers to the same rows; inf where their items differ."""
    known, values = read_rows(expected), is_values(found)
    return max((_difference(row, known[i], values) for i, row in read_rows(found).items()), default=0.0)


def count_moved(found: pl.DataFrame, expected: pl.DataFrame) -> int:
    """Rows whose items stand in another order."""
    known = read_rows(expected)
    return sum(list(row) != list(known[i]) for i, row in read_rows(found).items())


def _difference(found: Row, expected: Row, values: bool) -> float:
    """Largest |Δ score| of an item, or of a value, of which above 1 its share counts; inf where one has no number, or
    the items are not the same."""
    if found.keys() != expected.keys():
        return math.inf
    sizes = {item: max(1.0, abs(score)) if values else 1.0 for item, score in expected.items()}
    differences = [abs(score - expected[item]) / sizes[item] for item, score in found.items()]
    return max(differences, default=0.0) if all(map(math.isfinite, differences)) else math.inf
