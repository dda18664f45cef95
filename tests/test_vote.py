"""Votes counted by hand."""

from collections import Counter
from random import Random

import pytest

from kaggle_llm.inference.vote import extract_answer, majority_vote
from kaggle_llm.metrics import normalise_answer
from kaggle_llm.rankings import check_ranking, make_ranking


def test_the_answer_of_most_samples_comes_first_with_its_share() -> None:
    assert majority_vote(["7", "12", " 12", "", "12\n", "7", "9", "  "]) == [("12", 0.5), ("7", 2 / 6), ("9", 1 / 6)]


def test_equal_shares_keep_the_order_first_seen() -> None:
    assert [answer for answer, _ in majority_vote(["c", "a", "b", "a", "b", "c", "d"])] == ["c", "a", "b", "d"]


def test_without_an_answer_there_is_no_vote() -> None:
    assert majority_vote([]) == majority_vote(["", " \n"]) == []


def test_what_normalises_alike_is_one_answer_spelled_as_first_seen() -> None:
    answers = [" The Cat.", "dog", "cat", "the"]
    assert majority_vote(answers, normalise_answer) == [("The Cat.", 2 / 3), ("dog", 1 / 3)]


def test_a_vote_is_a_row_of_a_ranking_and_agrees_with_a_counter() -> None:
    answers = Random(0).choices("abcde", k=100)
    vote = majority_vote(answers)
    assert dict(vote) == {answer: count / 100 for answer, count in Counter(answers).items()}
    row = make_ranking(["r"], [[answer for answer, _ in vote]], [[share for _, share in vote]])
    assert check_ranking(row, ["r"])["items"][0].to_list() == [answer for answer, _ in vote]


@pytest.mark.parametrize(
    ("text", "pattern", "expected"),
    [
        ("First 3, then 14.", r"\d+", "14"),
        (r"So \boxed{3} or rather \boxed{x+1}.", r"\\boxed\{(.*?)\}", "x+1"),
        (r"the answer is 4", r"\\boxed\{(.*?)\}|answer is (\d+)", "4"),
        (r"answer is 4, \boxed{5}", r"\\boxed\{(.*?)\}|answer is (\d+)", "5"),
        ("nothing", r"\d+", ""),
        ("", r"\d*", ""),
    ],
)
def test_the_last_match_is_the_answer(text: str, pattern: str, expected: str) -> None:
    assert extract_answer(text, pattern) == expected
