"""A temperature is the one that calibrates; reliability counts what was said and what came true."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from kaggle_llm.competition.metrics import Metric, accuracy, log_loss
from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.decisions.temperature import Temperature
from kaggle_llm.experiment.reliability import Bin, draw_reliability, measure_reliability
from kaggle_llm.inference.cross_fit import cross_fit

LABELS = ("a", "b", "tie")
METRIC = log_loss(LABELS)


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


@pytest.mark.parametrize("temperature", [0.5, 2.5])
def test_the_temperature_that_drew_the_labels_is_found(temperature: float) -> None:
    ranking, truth = drawn(temperature)
    assert Temperature().fit(ranking, truth, METRIC).value == pytest.approx(temperature, rel=0.15)


@pytest.mark.parametrize("metric", [accuracy(), Metric("even", True, lambda ranking, truth: 1.0)])
def test_whatever_the_competition_s_metric_is_probabilities_are_made_honest(metric: Metric) -> None:
    """Accuracy does not move with a temperature."""
    ranking, truth = drawn(2.5, 300)
    assert Temperature().fit(ranking, truth, metric) == Temperature().fit(ranking, truth, METRIC) != Temperature()


def test_what_a_fit_starts_from_does_not_matter() -> None:
    ranking, truth = drawn(0.5, 300)
    assert Temperature(7.0).fit(ranking, truth, METRIC) == Temperature().fit(ranking, truth, METRIC)


def test_no_temperature_of_a_grid_is_better_and_the_order_stays() -> None:
    ranking, truth = drawn(1.7, 300)
    found = Temperature().fit(ranking, truth, METRIC)
    best = METRIC.score(found.apply(ranking), truth)
    assert all(best <= METRIC.score(Temperature(t).apply(ranking), truth) + 1e-9 for t in np.geomspace(0.1, 10, 60))
    assert found.apply(ranking)["items"].to_list() == ranking["items"].to_list()
    sums = [sum(map(math.exp, row)) for row in found.apply(ranking)["scores"].to_list()]
    assert sums == pytest.approx([1.0] * 300)


def test_without_rows_probabilities_stay_as_they_are() -> None:
    ranking, truth = drawn(1.0, 2)
    decided, shipped, notes = cross_fit(Temperature(), ranking.clear(), truth, {}, METRIC)
    assert shipped.value == Temperature(1.0) and set(decided.parts) == {Temperature(1.0)}
    assert len(notes) == 1 and notes[0].endswith("fewer than 8 groups to fit on")
    assert decided.apply(ranking.clear()).equals(ranking.clear())


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
    mended = measure_reliability(Temperature().fit(ranking, truth, METRIC).apply(ranking), truth)
    assert mended.error < 0.03 < 0.1 < raw.error
    draw_reliability({"raw": raw, "mended": mended}, tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").read_bytes().startswith(b"\x89PNG")
