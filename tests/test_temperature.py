"""A temperature is the one that calibrates; reliability counts what was said and what came true."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from kaggle_llm.cv.reliability import Bin, draw_reliability, measure_reliability
from kaggle_llm.cv.temperature import Temperature, fit_temperature
from kaggle_llm.metrics import log_loss
from kaggle_llm.rankings import make_ranking

LABELS = ("a", "b", "tie")


def drawn(true_temperature: float, rows: int = 1200) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows whose labels are drawn with the probabilities softmax(scores / temperature)."""
    rng = np.random.default_rng(0)
    scores = 3 * rng.normal(size=(rows, 3))
    chances = np.exp(scores / true_temperature)
    chances /= chances.sum(axis=1, keepdims=True)
    right = [LABELS[rng.choice(3, p=row)] for row in chances]
    ids = [f"r{n}" for n in range(rows)]
    truth = pl.DataFrame({"id": ids, "items": [[label] for label in right]})
    return make_ranking(ids, [list(LABELS)] * rows, scores.tolist()), truth


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_that_drew_the_labels_is_found(temperature: float) -> None:
    ranking, truth = drawn(temperature)
    assert fit_temperature(ranking, truth).value == pytest.approx(temperature, rel=0.15)


def test_no_temperature_of_a_grid_is_better_and_the_order_stays() -> None:
    ranking, truth = drawn(1.7, 300)
    metric, found = log_loss(LABELS), fit_temperature(*drawn(1.7, 300))
    best = metric.score(found.apply(ranking), truth)
    assert all(best <= metric.score(Temperature(t).apply(ranking), truth) + 1e-9 for t in np.geomspace(0.1, 10, 60))
    assert found.apply(ranking)["items"].to_list() == ranking["items"].to_list()
    sums = [sum(map(math.exp, row)) for row in found.apply(ranking)["scores"].to_list()]
    assert sums == pytest.approx([1.0] * 300)


def test_a_temperature_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    Temperature(1.25).save(tmp_path)
    assert Temperature.load(tmp_path) == Temperature(1.25)


def test_without_rows_there_is_no_temperature() -> None:
    ranking, truth = drawn(1.0, 2)
    with pytest.raises(ValueError, match="no row to fit a temperature on"):
        fit_temperature(ranking.clear(), truth)


def test_reliability_of_a_case_by_hand() -> None:
    """Two rows say 0.75 and 0.25; once the 0.75 is right, once the votes are split in halves."""
    scores = [[math.log(0.75), math.log(0.25)]] * 2
    ranking = make_ranking(["r0", "r1"], [["a", "b"]] * 2, scores)
    truth = pl.DataFrame({"id": ["r0", "r1"], "items": [["a"], ["a", "b"]], "shares": [[1.0], [0.5, 0.5]]})
    found = measure_reliability(ranking, truth)
    assert found.bins == (Bin(0.25, 0.25, 2), Bin(0.75, 0.75, 2))
    assert found.error == pytest.approx(0.0)
    hard = measure_reliability(ranking, truth.select("id", items=pl.Series([["a"], ["b"]])))
    assert hard.bins[0].true == 0.5 and hard.error == pytest.approx(0.25)


def test_what_is_calibrated_has_a_small_error_and_a_picture(tmp_path: Path) -> None:
    ranking, truth = drawn(2.5)
    raw = measure_reliability(Temperature().apply(ranking), truth)
    mended = measure_reliability(fit_temperature(ranking, truth).apply(ranking), truth)
    assert mended.error < 0.03 < 0.1 < raw.error
    draw_reliability({"raw": raw, "mended": mended}, tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
