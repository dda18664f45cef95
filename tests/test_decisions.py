"""The blend of reranker and retrieval: the literal formula, the rows it leaves alone, and the weight it fits."""

import math
import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import polars as pl
import pytest

from kaggle_llm.cv.decisions import WEIGHTS, Blend, fit_blend
from kaggle_llm.metrics import Metric, mean_average_precision, recall
from kaggle_llm.rankings import check_ranking, make_ranking, top


def ranking(**rows: dict[str, float]) -> pl.DataFrame:
    """id={item: score, …}"""
    return make_ranking(list(rows), [list(row) for row in rows.values()], [list(row.values()) for row in rows.values()])


def truth(**rows: str) -> pl.DataFrame:
    return pl.DataFrame({"id": list(rows), "items": [[item] for item in rows.values()]})


def drawn(seed: int = 0, depth: int = 5) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A retrieval of 40 rows with 9 items each, and a reranker's scores of the first `depth`."""
    rng = random.Random(seed)
    ids = [f"r{i}" for i in range(40)]
    items = [rng.sample("abcdefghi", 9) for _ in ids]
    retrieved = make_ranking(ids, items, [[1 / place for place in range(1, 10)]] * 40)
    return retrieved, make_ranking(ids, [row[:depth] for row in items], [[rng.gauss(0, 2) for _ in range(depth)]] * 40)


@pytest.mark.parametrize("weight", [0.05, 1.0, 5.0])
def test_reranked_candidates_score_weight_times_score_minus_log_place(weight: float) -> None:
    retrieved, reranked = drawn()
    blended = Blend(weight).apply(retrieved, reranked)
    for items, scores, after in zip(retrieved["items"], reranked.iter_rows(), blended.iter_rows(), strict=True):
        known = dict(zip(scores[1], scores[2], strict=True))
        literal = {item: weight * known[item] - math.log(items.to_list().index(item) + 1) for item in known}
        expected = sorted(literal, key=literal.__getitem__, reverse=True)
        assert after[1][:5] == expected
        assert after[2][:5] == pytest.approx([literal[item] for item in expected], abs=1e-12)


def test_a_case_worked_out_by_hand() -> None:
    retrieved = ranking(r={"a": 0.9, "b": 0.8, "c": 0.7})
    blended = Blend(2.0).apply(retrieved, ranking(r={"b": 1.0, "a": 0.5}))
    assert blended["items"].to_list() == [["b", "a", "c"]]  # b: 2 − log 2, a: 1 − log 1
    assert blended["scores"][0][:2].to_list() == pytest.approx([2 - math.log(2), 1.0])


@pytest.mark.parametrize("depth", [0, 1, 5, 9])
def test_weight_zero_keeps_the_order_of_the_retrieval(depth: int) -> None:
    retrieved, reranked = drawn(depth=depth)
    assert Blend(0.0).apply(retrieved, reranked)["items"].to_list() == retrieved["items"].to_list()


def test_what_was_not_reranked_stays_behind_in_order_however_bad_the_rest() -> None:
    retrieved = ranking(r={"a": 5, "b": 4, "c": 3, "d": 2, "e": 1})
    blended = Blend(5.0).apply(retrieved, ranking(r={"c": -100.0, "a": -900.0}))
    assert blended["items"].to_list() == [["c", "a", "b", "d", "e"]]


def test_rows_the_reranker_never_saw_keep_their_order_and_none_is_lost() -> None:
    retrieved = ranking(r={"a": 2, "b": 1}, s={"b": 2, "a": 1}, t={})
    blended = Blend(5.0).apply(retrieved, ranking(r={"a": 0.0, "b": 9.0}, other={"a": 1.0}))
    assert check_ranking(blended, ["r", "s", "t"])["items"].to_list() == [["b", "a"], ["b", "a"], []]


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_blend_is_a_ranking_of_the_same_candidates(weight: float) -> None:
    retrieved, reranked = drawn()
    blended = check_ranking(Blend(weight).apply(retrieved, reranked[5:]), retrieved["id"].to_list())
    assert [sorted(row) for row in blended["items"]] == [sorted(row) for row in retrieved["items"]]
    assert all(score < above for row in blended["scores"] for above, score in pairwise(row))


# The reranker is right about r by 1, wrong about s by 0.2; b stands in place 2, so r turns above log 2 = 0.69…
RETRIEVED = ranking(r={"a": 2, "b": 1}, s={"a": 2, "b": 1})
RERANKED = ranking(r={"b": 1.0, "a": 0.0}, s={"b": 0.2, "a": 0.0})
TRUTH = truth(r="b", s="a")


def test_the_fitted_weight_is_the_smallest_of_those_that_win() -> None:
    scores = {weight: recall(1).score(Blend(weight).apply(RETRIEVED, RERANKED), TRUTH) for weight in WEIGHTS}
    # … and s turns above 5 log 2 = 3.47, where it was right before.
    assert scores == {weight: 0.5 + 0.5 * (0.7 <= weight <= 3.0) for weight in WEIGHTS}
    assert fit_blend(RETRIEVED, RERANKED, TRUTH, recall(1)) == Blend(0.7)


@pytest.mark.parametrize(("right", "weight"), [("a", 0.0), ("b", 5.0)])
def test_a_useless_reranker_gets_no_weight_and_a_needed_one_all_of_it(right: str, weight: float) -> None:
    fitted = fit_blend(RETRIEVED[1:], RERANKED[1:], truth(s=right), mean_average_precision(2))
    assert fitted == Blend(weight)


def test_a_metric_where_less_is_better_is_minimised() -> None:
    better = recall(1)
    error = Metric("error@1", False, lambda ranked, true: 1 - better.score(ranked, true))
    assert fit_blend(RETRIEVED, RERANKED, TRUTH, error) == Blend(0.7)
    # Only the direction differs: where the score itself is to be small, a weight that loses is the best.
    assert fit_blend(RETRIEVED, RERANKED, TRUTH, replace(better, greater_is_better=False)) == Blend(0.0)


def test_the_grid_starts_at_the_retrieval_and_rises() -> None:
    assert WEIGHTS[0] == 0.0 and list(WEIGHTS) == sorted(set(WEIGHTS))


@pytest.mark.parametrize("weight", [0.0, 0.15, 1 / 3])
def test_a_saved_blend_is_the_same_when_loaded(tmp_path: Path, weight: float) -> None:
    Blend(weight).save(tmp_path / "new")
    loaded = Blend.load(tmp_path / "new")
    retrieved, reranked = drawn()
    assert loaded == Blend(weight)
    assert loaded.apply(retrieved, top(reranked, 3)).equals(Blend(weight).apply(retrieved, top(reranked, 3)))
