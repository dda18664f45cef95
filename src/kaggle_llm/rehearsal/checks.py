"""What a rehearsal checks: one result each, for the report."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

Row = tuple[list[str], list[float]]  # items and scores
TOLERANCE = 1e-4  # of a score (a log-probability or a sum of such), in fp32


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    detail: str


def compare_rankings(found: pl.DataFrame, expected: pl.DataFrame) -> list[str]:
    """Rows of two RANKINGs that differ in their items, or in an item's score by more than TOLERANCE; [] where none do.

    Each list is sorted by its scores, so items whose scores are that close may change places: rounding decides there.
    """
    known = {i: (items, scores) for i, items, scores in expected.select("id", "items", "scores").iter_rows()}
    problems = [f"row {i} is missing" for i in known if i not in set(found["id"])]
    for i, items, scores in found.select("id", "items", "scores").iter_rows():
        if i not in known:
            problems.append(f"row {i} was not expected")
            continue
        worst = _difference((items, scores), known[i])
        if worst <= TOLERANCE:
            continue
        place = next((n for n, pair in enumerate(zip_longest(items, known[i][0]), 1) if pair[0] != pair[1]), None)
        problems.append(
            f"row {i}: " + (f"another list from place {place} on" if place else f"a score differs by {worst:.1e}")
        )
    return problems


def largest_difference(found: pl.DataFrame, expected: pl.DataFrame) -> float:
    """Largest |Δ score| of an item in two RANKINGs with the same rows; inf where their items differ."""
    known = {i: (items, scores) for i, items, scores in expected.select("id", "items", "scores").iter_rows()}
    rows = found.select("id", "items", "scores").iter_rows()
    return max((_difference((items, scores), known[i]) for i, items, scores in rows), default=0.0)


def _difference(found: Row, expected: Row) -> float:
    """Largest |Δ score| of an item; inf where one has no number, or the items are not the same."""
    one, other = (dict(zip(*row, strict=True)) for row in (found, expected))
    if one.keys() != other.keys():
        return math.inf
    differences = [abs(score - other[item]) for item, score in one.items()]
    return max(differences, default=0.0) if all(map(math.isfinite, differences)) else math.inf
