"""Mined negatives stand in their rank band, are never right, and are never trusted above the margin."""

import numpy as np
import polars as pl
import pytest

from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.retrieval.negatives import MinedPair, NegativeSettings, highest_trusted, mine_negatives, rank_with_right

#                place  1     2     3     4     5     6
RANKING = make_ranking(["q"], [list("abcdef")], [[0.99, 0.80, 0.77, 0.70, 0.50, 0.10]])
TRUTH = pl.DataFrame({"id": ["q"], "items": [["b"]]})


def mine(
    ranking: pl.DataFrame = RANKING, truth: pl.DataFrame = TRUTH, seed: int = 0, **changes: int | float | None
) -> list[tuple[str, str, list[str]]]:
    settings = NegativeSettings(**({"first": 1, "last": 6, "per_query": 9, "margin": None} | changes))
    return [(pair.id, pair.right, sorted(pair.negatives)) for pair in mine_negatives(ranking, truth, settings, seed)]


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [(1, 6, "acdef"), (1, 1, "a"), (2, 4, "cd"), (3, 3, "c"), (5, 99, "ef"), (2, 2, ""), (7, 9, "")],
)
def test_negatives_stand_in_the_rank_band_and_are_not_right(first: int, last: int, expected: str) -> None:
    assert mine(first=first, last=last) == [("q", "b", list(expected))]


@pytest.mark.parametrize(
    ("margin", "expected"),
    [(1.0, "cdef"), (0.97, "cdef"), (0.96, "def"), (0.95, "def"), (0.87, "ef"), (0.5, "f"), (0.1, "")],
)
def test_candidates_above_the_share_of_the_right_ones_score_are_taken_for_right(margin: float, expected: str) -> None:
    # right: b with 0.80; 0.97 · 0.80 = 0.776 lets c through, 0.96 · 0.80 = 0.768 does not
    assert mine(margin=margin) == [("q", "b", list(expected))]


def test_each_right_item_has_its_own_limit_and_none_is_a_negative_of_another() -> None:
    truth = pl.DataFrame({"id": ["q"], "items": [["b", "e"]]})
    assert mine(truth=truth, margin=0.95) == [("q", "b", ["d", "f"]), ("q", "e", ["f"])]


@pytest.mark.parametrize(("scores", "limit"), [([0.8, 0.2], 0.4), ([0.0, -1.0], 0.0), ([-0.2, -0.8], -0.3)])
def test_a_negative_score_moves_the_limit_as_far_down(scores: list[float], limit: float) -> None:
    assert highest_trusted("a", ["a", "b"], scores, 0.5) == pytest.approx(limit)


def test_a_right_item_that_was_not_found_has_at_most_the_last_score() -> None:
    truth = pl.DataFrame({"id": ["q"], "items": [["z"]]})
    assert mine(truth=truth, margin=0.95) == [("q", "z", [])]
    assert mine(truth=truth, margin=None, first=5) == [("q", "z", ["e", "f"])]


def test_at_most_per_query_are_drawn_anew_with_each_seed_and_alike_with_the_same() -> None:
    ranking = make_ranking(["p", "q"], [[f"d{i}" for i in range(40)]] * 2, [[-float(i) for i in range(40)]] * 2)
    truth = pl.DataFrame({"id": ["q", "p"], "items": [["d3"], ["d4"]]})
    settings = NegativeSettings(first=1, last=30, per_query=5, margin=None)
    first, again, other = (mine_negatives(ranking, truth, settings, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert [(pair.id, pair.right, len(set(pair.negatives))) for pair in first] == [("p", "d4", 5), ("q", "d3", 5)]
    assert first[0].negatives != first[1].negatives
    assert mine_negatives(ranking, truth, NegativeSettings(per_query=0), 1) == [
        MinedPair("p", "d4", ()),
        MinedPair("q", "d3", ()),
    ]


def test_a_row_without_candidates_keeps_its_pair() -> None:
    assert mine(make_ranking(["q"], [[]], [[]]), margin=0.95) == [("q", "b", [])]


def test_a_row_without_truth_is_named() -> None:
    with pytest.raises(ValueError, match=r"1 ranked row\(s\) without truth, first \['q'\]"):
        mine(truth=pl.DataFrame({"id": ["p"], "items": [["b"]]}))


def test_the_ranking_to_mine_from_is_cut_but_never_loses_a_right_document() -> None:
    documents = np.array([[1.0, 0.0], [0.8, 0.6], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    queries = np.array([[1.0, 0.0], [0.0, 1.0]])
    found = rank_with_right(["p", "q"], queries, list("abcde"), documents, {"p": ["e", "a"], "q": ["c"]}, 2)
    assert found["items"].to_list() == [["a", "b", "e"], ["d", "c"]]
    assert found["scores"].to_list() == [[1.0, 0.8, -1.0], [1.0, 0.8]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first": 0}, "first = 0"),
        ({"first": 9, "last": 8}, "first = 9, last = 8"),
        ({"per_query": -1}, "per_query = -1"),
        ({"margin": 0.0}, "margin = 0.0"),
        ({"margin": 1.5}, "margin = 1.5"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NegativeSettings(**changes)
