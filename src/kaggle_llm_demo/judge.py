"""Generates demo-judge: two worked answers to a problem, and what three voters prefer.

An answer may be right and worked out, right and badly explained, right without a word, wrong by a slip in the last
line, wrong by a wrong rule from the start, wrong without a word, or not there. The voters want to see how it is worked
out: a slip counts less than a wrong rule, and a number alone little, even the right one. Each votes with some noise;
close answers are a tie for many of them.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm_demo.files import write_competition
from kaggle_llm_demo.judge_problems import Problem, draw_problem

if TYPE_CHECKING:
    import polars as pl

NAME = "demo-judge"
PUBLIC_ROWS = 3
FIRST_TRAIN_ID = 100_001
PAIRS = 3  # of a problem
NOISE, CLOSE = 0.35, 0.5  # of a voter's view of a difference, and the difference that is a tie
WORTH = {
    "worked": 4.0,
    "slip": 3.0,
    "badly explained": 2.2,
    "wrong rule": 1.6,
    "bare": 1.0,
    "bare wrong": 0.7,
    "no answer": 0.0,
}
OFTEN = (5, 2, 3, 2, 2, 1, 4)  # how often each kind is drawn
COLUMNS = ("winner_a", "winner_b", "winner_tie")
GIVING_UP = (
    *("I don't know.", "Sorry, this is not clear to me.", "That cannot be answered.", "Something is missing here."),
    *("No idea, ask somebody else.", "I would have to guess.", "?"),
)
VAGUE = (
    *("You can see it at once.", "I did it in my head.", "That follows from the rule.", "It is always like that."),
    *("One just has to look at the numbers.", "My teacher showed me how.", "I tried until it fitted."),
)
ENDINGS = ("The answer is {}.", "So it is {}.", "Answer: {}.", "That makes {}.", "We get {}.", "Result: {}.", "= {}")
BARE = ("{}", "{}.", "It is {}.", "I say {}.", "{}, I think.", "Should be {}.")
SLIPS = (-10, -2, -1, 1, 2, 10)


def write_answer(problem: Problem, kind: str, rng: random.Random) -> str:
    """An answer of one of the kinds of WORTH."""
    if kind == "no answer":
        return rng.choice(GIVING_UP)
    slip = problem.show(problem.answer + rng.choice(SLIPS))
    shown = problem.show(problem.answer)
    if kind.startswith("bare"):
        return rng.choice(BARE).format(slip if kind == "bare wrong" else shown)
    ending = rng.choice(ENDINGS)
    if kind == "badly explained":
        return f"{ending.format(shown)} {rng.choice(VAGUE)}"
    if kind == "wrong rule":
        working = rng.choice(problem.wrong)
        return " ".join([*working.lines, ending.format(problem.show(working.value))])
    return " ".join([*rng.choice(problem.right), ending.format(slip if kind == "slip" else shown)])


def draw_pair(problem: Problem, rng: random.Random) -> tuple[str, str, tuple[float, ...]]:
    """Two answers, and the voters' shares for the first, the second and a tie."""
    kinds = rng.choices(list(WORTH), weights=OFTEN, k=2)
    answers = [write_answer(problem, kind, rng) for kind in kinds]
    if answers[0] == answers[1]:
        return answers[0], answers[1], (0.0, 0.0, 1.0)
    difference = WORTH[kinds[0]] - WORTH[kinds[1]]
    views = [difference + rng.gauss(0, NOISE) for _ in range(3)]
    first, second = sum(view > CLOSE for view in views), sum(view < -CLOSE for view in views)
    return answers[0], answers[1], (first / 3, second / 3, (3 - first - second) / 3)


def draw_rows(count: int, first: int, rng: random.Random) -> pl.DataFrame:
    """So many pairs, PAIRS of them of each problem. Ids are whole numbers from `first` on, as in most competitions."""
    import polars as pl

    rows: list[tuple[str | float, ...]] = []
    while len(rows) < count:
        problem = draw_problem(rng)
        for _ in range(PAIRS):
            answer_a, answer_b, shares = draw_pair(problem, rng)
            rows.append((problem.text, answer_a, answer_b, *(round(share, 4) for share in shares)))
    names = ["problem", "answer_a", "answer_b", *COLUMNS]
    frame = pl.DataFrame(rows[:count], schema=names, orient="row")
    return frame.select(pl.Series("id", map(str, range(first, first + count))), *names)


def build_competition(
    input_dir: Path, hidden_dir: Path, seed: int = 0, train_rows: int = 600, hidden_rows: int = 40
) -> None:
    """Writes the competition's files to `input_dir` and the hidden test with its solution to `hidden_dir`."""
    rng = random.Random(seed)
    train = draw_rows(train_rows, FIRST_TRAIN_ID, rng)
    public = draw_rows(PUBLIC_ROWS, 1, rng)
    hidden = draw_rows(hidden_rows, 1 + PUBLIC_ROWS, rng)
    write_competition(input_dir, hidden_dir, train, public, hidden, dict.fromkeys(COLUMNS, "0.3333"))
