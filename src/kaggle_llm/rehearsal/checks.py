"""What a rehearsal checks: one result each, for the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

TOLERANCE = 1e-4  # of a score (a log-probability or a sum of such), in fp32


@dataclass(frozen=True)
class Check:
    name: str
    ok: bool
    detail: str


def compare_rankings(found: pl.DataFrame, expected: pl.DataFrame) -> list[str]:
    """Rows of two RANKINGs that differ in their list, or in a score by more than TOLERANCE; [] where none does."""
    known = {i: (items, scores) for i, items, scores in expected.select("id", "items", "scores").iter_rows()}
    problems = [f"row {i} is missing" for i in known if i not in set(found["id"])]
    for i, items, scores in found.select("id", "items", "scores").iter_rows():
        if i not in known:
            problems.append(f"row {i} was not expected")
        elif items != known[i][0]:
            place = next(
                n for n, (a, b) in enumerate(zip([*items, None], [*known[i][0], None], strict=False)) if a != b
            )
            problems.append(f"row {i}: another list from place {place + 1} on")
        else:
            worst = max((abs(a - b) for a, b in zip(scores, known[i][1], strict=True)), default=0.0)
            if not worst <= TOLERANCE:
                problems.append(f"row {i}: a score differs by {worst:.1e}")
    return problems


def largest_difference(found: pl.DataFrame, expected: pl.DataFrame) -> float:
    """Largest |Δ score| of two RANKINGs with the same rows and lists."""
    known = dict(expected.select("id", "scores").iter_rows())
    return max(
        (
            abs(a - b)
            for i, scores in found.select("id", "scores").iter_rows()
            for a, b in zip(scores, known[i], strict=True)
        ),
        default=0.0,
    )
