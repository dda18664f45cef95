"""What a timed run on Kaggle says, and the hours that it foretells for the hidden test."""

from __future__ import annotations

from typing import Any

import pytest

from kaggle_llm.kaggle.timed import describe_timed, extrapolate_hours

TIMING = {"install_seconds": 60.0, "load_seconds": 40.0, "seconds": 140.0, "rows": 10}


@pytest.mark.parametrize(("note", "end"), [("", "0.4000"), ("2 rows were cut", "0.4000 (2 rows were cut)")])
def test_it_tells_the_seconds_and_both_scores(note: str, end: str) -> None:
    timed: dict[str, Any] = {"rows": 10, "timing": TIMING, "score": 0.5, "oof": 0.4, "note": note}
    said = "10 held-out rows on Kaggle: 140 s, 100 s before the first row; score 0.5000, out of fold "
    assert describe_timed(timed) == said + end


@pytest.mark.parametrize(("rows", "seconds"), [(10, 200.0), (1000, 10_100.0), (0, 100.0)])
def test_installing_and_loading_count_once_and_the_rest_by_row(rows: int, seconds: float) -> None:
    """140 s with 40 s of loading: 100 s for 10 rows."""
    assert extrapolate_hours(TIMING, rows) == pytest.approx(seconds / 3600)
    assert extrapolate_hours(TIMING | {"rows": 0}, 0) == pytest.approx(100 / 3600)
