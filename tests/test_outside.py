"""The O-threshold: a literal rule a token, fitted to the best metric."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from kaggle_llm.competition.metrics import Metric, span_f_beta
from kaggle_llm.decisions.outside import GRID, OutsideThreshold
from kaggle_llm.tasks.tags import tagged_schema

TEXT = "ab cd ef gh"
OFFSETS = [(0, 2), (3, 5), (6, 8), (9, 11)]


def make_tagged(rows: dict[str, list[float]], tags: list[str] | None = None) -> pl.DataFrame:
    """Rows of TEXT with these probabilities of O; the other tag has the rest."""
    columns = {
        "id": list(rows),
        "text": [TEXT] * len(rows),
        "starts": [[start for start, _ in OFFSETS]] * len(rows),
        "ends": [[end for _, end in OFFSETS]] * len(rows),
        "outside": [[math.log(p) for p in row] for row in rows.values()],
        "tags": [tags or ["B-x", "I-x", "B-y", "B-x"]] * len(rows),
        "scores": [[math.log(1 - p) for p in row] for row in rows.values()],
    }
    return pl.DataFrame(columns, schema=tagged_schema())


def make_truth(rows: dict[str, list[str]]) -> pl.DataFrame:
    return pl.DataFrame(
        {"id": list(rows), "items": list(rows.values())}, schema_overrides={"items": pl.List(pl.String)}
    )


def test_a_token_is_outside_from_the_threshold_on() -> None:
    tagged = make_tagged({"r": [0.3, 0.6, 0.9, 0.99]})
    found = {value: set(OutsideThreshold(value).apply(tagged)["items"][0]) for value in (0.2, 0.5, 0.8, 0.95, 0.995)}
    assert found == {
        0.2: set(),
        0.5: {"0:2:x"},
        0.8: {"0:5:x"},
        0.95: {"0:5:x", "6:8:y"},
        0.995: {"0:5:x", "6:8:y", "9:11:x"},
    }


def test_scores_are_mean_log_probabilities_best_first() -> None:
    ranking = OutsideThreshold(0.95).apply(make_tagged({"r": [0.3, 0.6, 0.2, 0.99]}))
    assert ranking["items"][0].to_list() == ["6:8:y", "0:5:x"]
    assert ranking["scores"][0].to_list() == pytest.approx([math.log(0.8), (math.log(0.7) + math.log(0.4)) / 2])


def draw_case(seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    rng = np.random.default_rng(seed)
    rows = {f"r{n}": rng.uniform(0.1, 0.9995, 4).tolist() for n in range(20)}
    right = {row: [item for item in ("0:2:x", "6:8:y", "9:11:x") if rng.random() < 0.5] for row in rows}
    return make_tagged(rows, ["B-x", "I-y", "B-y", "B-x"]), make_truth(right)


@pytest.mark.parametrize(("beta", "seed"), [(0.5, 0), (1.0, 1), (5.0, 2)])
def test_no_other_threshold_is_better(beta: float, seed: int) -> None:
    tagged, truth = draw_case(seed)
    metric = span_f_beta(beta)
    scores = [metric.score(OutsideThreshold(value).apply(tagged), truth) for value in GRID]
    fitted = OutsideThreshold().fit(tagged, truth, metric)
    assert fitted.value == GRID[int(np.argmax(scores))]
    lower = replace(metric, greater_is_better=False, score=lambda *frames: -metric.score(*frames))
    assert OutsideThreshold().fit(tagged, truth, lower) == fitted
    assert OutsideThreshold(0.999).fit(tagged, truth, metric) == fitted, "wherever it starts"


def test_where_a_miss_costs_more_the_threshold_is_higher() -> None:
    """A span at p(O) = 0.97 among two false ones at 0.9: precision leaves them all out, recall takes them all."""
    tagged = make_tagged({"r": [0.1, 0.9, 0.9, 0.97]}, ["B-x"] * 4)
    truth = make_truth({"r": ["0:2:x", "9:11:x"]})
    assert OutsideThreshold().fit(tagged, truth, span_f_beta(0.5)).value <= 0.9
    assert OutsideThreshold().fit(tagged, truth, span_f_beta(5)).value > 0.97


def test_a_metric_without_a_best_one_keeps_one_half() -> None:
    metric = Metric("even", True, lambda ranking, truth: 1.0)
    tagged, truth = draw_case(0)
    assert OutsideThreshold().fit(tagged, truth, metric) == OutsideThreshold(0.5)
    assert OutsideThreshold(0.999).fit(tagged, truth, metric) == OutsideThreshold(0.5)


def test_no_rows_and_no_tokens_have_no_spans() -> None:
    tagged = make_tagged({"r": [0.5] * 4})
    assert OutsideThreshold(0.5).apply(tagged.clear()).rows() == []
    empty = pl.DataFrame({"id": ["r"], "text": [""], **{name: [[]] for name in tagged.columns[2:]}}, tagged_schema())
    assert OutsideThreshold(0.5).apply(empty)["items"].to_list() == [[]]
