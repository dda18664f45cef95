"""Rankings: sorted when made, cut at the top, and refused with the reason and the ids when wrong."""

import math
import random
from typing import Any

import polars as pl
import pytest

from kaggle_llm.competition.rankings import check_ranking, make_ranking, ranking_schema, top


def frame(*rows: tuple[str, Any, Any]) -> pl.DataFrame:
    """id, items, scores → a frame with the ranking's schema, unsorted and unchecked."""
    ids, items, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return pl.DataFrame({"id": ids, "items": items, "scores": scores}, schema=ranking_schema())


GOOD = frame(("a", ["x", "y"], [2.0, 1.0]), ("b", [], []), ("c", ["x"], [0.0]))


def test_rows_are_sorted_by_descending_score_and_keep_their_own_order_of_ids() -> None:
    made = make_ranking(["b", "a"], [["x", "y", "z"], ["u", "v"]], [[1, 3, 2], [0.5, 0.25]])
    assert made.equals(frame(("b", ["y", "z", "x"], [3.0, 2.0, 1.0]), ("a", ["u", "v"], [0.5, 0.25])))
    assert dict(made.schema) == ranking_schema()


def test_equal_scores_keep_the_order_given() -> None:
    made = make_ranking(["a"], [["z", "x", "q", "y", "p"]], [[1.0, 2.0, 1.0, 2.0, 1.0]])
    assert made["items"].to_list() == [["x", "y", "z", "q", "p"]]


def test_any_scores_give_a_ranking_that_passes_the_check() -> None:
    rng = random.Random(0)
    ids = [f"r{i}" for i in range(50)]
    items = [rng.sample("abcdefgh", rng.randint(0, 8)) for _ in ids]
    scores = [[rng.choice([-1.0, 0.0, 0.5, 1e9]) for _ in row] for row in items]
    made = check_ranking(make_ranking(ids, items, scores), ids)
    for before, values, after in zip(items, scores, made.iter_rows(named=True), strict=True):
        expected = sorted(zip(before, values, strict=True), key=lambda pair: pair[1], reverse=True)
        assert list(zip(after["items"], after["scores"], strict=True)) == expected


def test_a_row_with_too_few_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="2 items with 1 scores"):
        make_ranking(["a"], [["x", "y"]], [[1.0]])


@pytest.mark.parametrize(
    ("k", "items", "scores"),
    [(1, [["x"], [], ["x"]], [[2.0], [], [0.0]]), (2, [["x", "y"], [], ["x"]], [[2.0, 1.0], [], [0.0]])],
)
def test_top_cuts_items_and_scores_alike(k: int, items: list[list[str]], scores: list[list[float]]) -> None:
    cut = top(GOOD, k)
    assert cut["items"].to_list() == items and cut["scores"].to_list() == scores
    assert check_ranking(cut, ["a", "b", "c"]) is cut


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_right_ranking_is_returned_itself_also_without_rows_or_items(rows: int) -> None:
    ranking = GOOD[:rows]
    assert check_ranking(ranking, ["a", "b", "c"][:rows]) is ranking


@pytest.mark.parametrize(
    ("got", "asked", "problem"),
    [
        ("a", "abc", r"3 rows asked, 1 rows ranked: lost 2 \(first \['b', 'c'\]\)$"),
        ("abc", "b", r"added 2 \(first \['a', 'c'\]\)$"),
        ("aab", "ab", r"2 rows asked, 3 rows ranked: repeated 1 \(first \['a'\]\)$"),
        ("ba", "ab", r"2 rows asked, 2 rows ranked: same ids in another order$"),
        ("aax", "ab", r"lost 1 \(first \['b'\]\), added 1 \(first \['x'\]\), repeated 1 \(first \['a'\]\)$"),
        ("", "ab", r"lost 2 \(first \['a', 'b'\]\)$"),
        ("ab", "", r"added 2 \(first \['a', 'b'\]\)$"),
    ],
)
def test_lost_added_repeated_and_reordered_rows_are_named(got: str, asked: str, problem: str) -> None:
    ranking = frame(*((i, ["x"], [1.0]) for i in got))
    with pytest.raises(ValueError, match=problem):
        check_ranking(ranking, list(asked))


@pytest.mark.parametrize(
    ("items", "scores", "problem"),
    [
        (["x", "y"], [math.nan, 1.0], "a score is not finite"),
        (["x", "y"], [2.0, math.nan], "a score is not finite"),
        (["x", "y"], [math.inf, 1.0], "a score is not finite"),
        (["x", "y"], [1.0, -math.inf], "a score is not finite"),
        (["x", "y"], [1.0, None], "a score is not finite"),
        (["x", "y"], [1.0, 2.0], "scores are not descending"),
        (["x", "y", "z"], [1.0, 0.0, 0.5], "scores are not descending"),
        (["x", "x"], [2.0, 1.0], "an item occurs twice"),
        (["x", "y"], [2.0], "items and scores differ in number"),
        ([], [2.0], "items and scores differ in number"),
        (["x", None], [2.0, 1.0], "an item or its list is null"),
        (None, [2.0], "an item or its list is null"),
        (["x"], None, "an item or its list is null"),
    ],
)
def test_a_wrong_row_is_named_with_its_problem(items: Any, scores: Any, problem: str) -> None:
    good = GOOD.with_columns(pl.col("id") + "-good")
    ranking = pl.concat([good, frame(("bad", items, scores), ("worse", items, scores))])
    with pytest.raises(ValueError, match=rf"{problem} in 2 row\(s\), first \['bad', 'worse'\]"):
        check_ranking(ranking, ranking["id"].to_list())


@pytest.mark.parametrize(
    "ranking",
    [
        GOOD.drop("scores"),
        GOOD.with_columns(fold=pl.lit(0)),
        GOOD.with_columns(pl.col("items").list.join(" ")),
        GOOD.with_columns(pl.col("scores").cast(pl.List(pl.Float32))),
        GOOD.with_columns(pl.col("scores").list.first()),
    ],
    ids=["missing column", "extra column", "text as list", "single precision", "no list"],
)
def test_another_schema_is_refused(ranking: pl.DataFrame) -> None:
    with pytest.raises(ValueError, match="a ranking has the columns"):
        check_ranking(ranking, ["a", "b", "c"])
