"""demo-judge: what voters see is what they vote on; a wrong rule is wrong, equal answers are a tie."""

from __future__ import annotations

import random
import re

import pytest

from kaggle_llm_demo.judge import COLUMNS, OFTEN, WORTH, draw_pair, draw_rows, write_answer
from kaggle_llm_demo.judge_problems import FAMILIES, draw_problem

RIGHT = ("worked", "badly explained", "bare")
WRONG = ("slip", "wrong rule", "bare wrong")


@pytest.mark.parametrize("kind", [*RIGHT, *WRONG])
def test_a_right_kind_says_the_answer_and_a_wrong_kind_ends_otherwise(kind: str) -> None:
    rng = random.Random(1)
    for _ in range(150):
        problem = draw_problem(rng)
        text = write_answer(problem, kind, rng)
        last = re.findall(r"-?\d+", text)[-1]
        assert (last == str(problem.answer)) == (kind in RIGHT), (problem, text)


def test_the_workings_of_every_family_lead_to_what_they_say() -> None:
    """What the lines spell out as a product, a sum, a difference or a quotient is true."""
    rng, sums = random.Random(2), 0
    for _ in range(400):
        problem = draw_problem(rng)
        lines = [line for way in problem.right for line in way]
        for left, found in re.findall(r"((?:\d+ [x+/-] )+\d+) = (\d+)", " ".join(lines)):
            sums += 1
            assert eval(left.replace("x", "*")) == float(found), lines
    assert sums > 100


def test_equal_answers_are_a_tie_and_close_ones_often() -> None:
    rng = random.Random(3)
    problem = FAMILIES[0](rng)
    pairs = [draw_pair(problem, rng) for _ in range(2000)]
    assert all(shares == (0.0, 0.0, 1.0) for one, other, shares in pairs if one == other)
    assert {sum(shares) for _, _, shares in pairs} == {1.0}
    assert 0.1 < sum(0 < max(shares) < 1 for _, _, shares in pairs) / len(pairs) < 0.6, "voters differ, but not always"


def test_no_place_is_better_than_the_other() -> None:
    rows = draw_rows(3000, 1, random.Random(4))
    shares = [rows[column].mean() for column in COLUMNS]
    assert shares[0] == pytest.approx(shares[1], abs=0.04) and min(shares) > 0.2


def test_a_problem_has_several_pairs_and_many_answers() -> None:
    rows = draw_rows(600, 1, random.Random(5))
    assert rows["problem"].n_unique() <= 200 and rows["answer_a"].n_unique() > 400
    assert len(OFTEN) == len(WORTH)


def test_a_wrong_rule_never_leads_to_the_right_answer() -> None:
    rng = random.Random(6)
    problems = [draw_problem(rng) for _ in range(2000)]
    assert all(working.value != problem.answer for problem in problems for working in problem.wrong)
    assert len({problem.text for problem in problems}) > 1000
