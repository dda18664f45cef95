"""Metrics against the literal formula, and intervals that hold what they promise."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import polars as pl
import pytest

from kaggle_llm.competition.metrics import bootstrap_interval, mean_average_precision, paired_difference, recall
from kaggle_llm.competition.rankings import make_ranking, top

ITEMS = "abcdefgh"


def ranked(*rows: str) -> pl.DataFrame:
    """A ranking with one letter an item."""
    scores = [[-float(place) for place in range(len(row))] for row in rows]
    return make_ranking([f"r{i}" for i in range(len(rows))], [list(row) for row in rows], scores)


def true(*rows: str) -> pl.DataFrame:
    schema = {"id": pl.String(), "items": pl.List(pl.String())}
    return pl.DataFrame({"id": [f"r{i}" for i in range(len(rows))], "items": [list(row) for row in rows]}, schema)


def drawn(count: int, seed: int = 0, most: int = 3) -> tuple[pl.DataFrame, pl.DataFrame]:
    rng = random.Random(seed)
    rows = ["".join(rng.sample(ITEMS, rng.randint(0, len(ITEMS)))) for _ in range(count)]
    return ranked(*rows), true(*("".join(rng.sample(ITEMS, rng.randint(1, most))) for _ in range(count)))


def literal_map(rows: Sequence[Sequence[str]], right: Sequence[Sequence[str]], k: int) -> Fraction:
    """(1/n) Σ_rows (1/min(m, k)) Σ_{i=1..k} precision(i)·relevant(i), in exact arithmetic."""
    total = Fraction(0)
    for row, answers in zip(rows, right, strict=True):
        for i in range(1, min(k, len(row)) + 1):
            precision = Fraction(sum(item in answers for item in row[:i]), i)
            total += precision * (row[i - 1] in answers) / min(len(answers), k)
    return total / len(rows)


@pytest.mark.parametrize(
    ("row", "right", "k", "expected"),
    [
        ("abc", "a", 3, 1.0),
        ("abc", "b", 3, 1 / 2),
        ("abc", "c", 3, 1 / 3),
        ("abc", "c", 2, 0.0),
        ("abc", "z", 3, 0.0),
        ("", "a", 3, 0.0),
        ("abc", "ab", 3, 1.0),
        ("abcd", "bd", 4, (1 / 2 + 2 / 4) / 2),
        ("abcd", "bd", 3, (1 / 2) / 2),
        ("abc", "abc", 2, 1.0),
        ("azb", "abcd", 2, 1 / 2),
        ("abc", "", 3, 0.0),
    ],
)
def test_average_precision_of_a_row_worked_out_by_hand(row: str, right: str, k: int, expected: float) -> None:
    assert mean_average_precision(k).score(ranked(row), true(right)) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 8, 25])
def test_mean_average_precision_follows_the_literal_formula(k: int) -> None:
    ranking, truth = drawn(60, seed=k)
    expected = literal_map(ranking["items"].to_list(), truth["items"].to_list(), k)
    assert mean_average_precision(k).score(ranking, truth) == pytest.approx(float(expected), abs=1e-12)


@pytest.mark.parametrize(
    ("row", "right", "k", "expected"),
    [
        ("abcd", "b", 1, 0.0),
        ("abcd", "b", 2, 1.0),
        ("abcd", "bdz", 4, 2 / 3),
        ("abcd", "bdz", 3, 1 / 3),
        ("", "a", 3, 0),
    ],
)
def test_recall_is_the_share_of_right_items_among_the_first(row: str, right: str, k: int, expected: float) -> None:
    assert recall(k).score(ranked(row), true(right)) == pytest.approx(expected, abs=1e-12)


def test_truth_is_found_by_id_in_any_order_and_may_hold_more_rows() -> None:
    truth = true("a", "b", "c")
    assert recall(1).rows(ranked("a", "x"), truth.reverse()).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("metric", [mean_average_precision(5), recall(2)], ids=lambda metric: metric.name)
def test_the_mean_of_the_rows_is_the_score(metric) -> None:
    ranking, truth = drawn(37)
    rows = metric.rows(ranking, truth)
    assert rows.shape == (37,) and len(set(rows.tolist())) > 2
    assert rows.mean() == pytest.approx(metric.score(ranking, truth), abs=1e-12)
    assert metric.greater_is_better


def test_a_score_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="map@5 of no rows"):
        mean_average_precision(5).score(ranked(), true("a"))


def test_ranked_rows_without_truth_are_named() -> None:
    with pytest.raises(ValueError, match=r"2 ranked row\(s\) without truth, first \['r1', 'r2'\]"):
        recall(1).score(ranked("a", "b", "c"), true("a"))


def test_the_interval_holds_the_score_and_repeats_for_a_seed() -> None:
    metric, (ranking, truth) = mean_average_precision(5), drawn(80)
    low, high = bootstrap_interval(metric, ranking, truth, seed=3)
    assert low < metric.score(ranking, truth) < high
    assert bootstrap_interval(metric, ranking, truth, seed=3) == (low, high)
    assert bootstrap_interval(metric, ranking, truth, seed=4) != (low, high)


def test_the_interval_is_as_wide_as_the_normal_approximation_and_narrows_with_rows() -> None:
    metric = mean_average_precision(5)
    for count in (50, 800):
        ranking, truth = drawn(count)
        low, high = bootstrap_interval(metric, ranking, truth, draws=2000)
        standard_error = metric.rows(ranking, truth).std() / math.sqrt(count)
        assert high - low == pytest.approx(2 * 1.96 * standard_error, rel=0.1)


def test_a_metric_without_rows_gets_the_same_intervals_from_the_same_draws() -> None:
    metric, (ranking, truth) = mean_average_precision(5), drawn(30)
    whole = replace(metric, rows=None)
    interval = bootstrap_interval(metric, ranking, truth, draws=50)
    assert bootstrap_interval(whole, ranking, truth, draws=50) == pytest.approx(interval, abs=1e-12)
    paired = paired_difference(metric, ranking, top(ranking, 1), truth, draws=50)
    assert paired_difference(whole, ranking, top(ranking, 1), truth, draws=50) == pytest.approx(paired, abs=1e-12)


def test_a_ranking_does_not_differ_from_itself() -> None:
    ranking, truth = drawn(30)
    assert paired_difference(recall(3), ranking, ranking, truth) == (0.0, 0.0, 0.0)


def test_the_paired_difference_is_first_minus_second_and_turns_its_sign() -> None:
    ranking, truth = drawn(100)
    worse, metric = top(ranking, 1), recall(4)
    difference, low, high = paired_difference(metric, ranking, worse, truth)
    assert difference == pytest.approx(metric.score(ranking, truth) - metric.score(worse, truth), abs=1e-12)
    assert 0 < low < difference < high
    assert paired_difference(metric, worse, ranking, truth) == pytest.approx((-difference, -high, -low), abs=1e-12)


def test_pairing_is_narrower_than_two_intervals_would_say() -> None:
    metric, (ranking, truth) = recall(4), drawn(200)
    nearly = pl.concat([top(ranking[:5], 1), ranking[5:]])
    _, low, high = paired_difference(metric, ranking, nearly, truth)
    alone_low, alone_high = bootstrap_interval(metric, ranking, truth)
    assert high - low < (alone_high - alone_low) / 2


@pytest.mark.parametrize("rows", [[0, 1], [1, 0, 2]], ids=["fewer", "another order"])
def test_rankings_of_different_ids_are_not_paired(rows: list[int]) -> None:
    ranking = ranked("a", "b", "c")
    with pytest.raises(ValueError, match="paired rows must be the same"):
        paired_difference(recall(1), ranking, ranking[rows], true("a", "a", "a"))
