"""Generates demo-judge: two worked answers to a problem, and what three voters prefer.

An answer may be right and worked out, right without a word, wrong by a slip in the last line, wrong by a wrong rule
from the start, or not there. The voters weigh that, each with some noise; close answers are a tie for many of them.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.demo.files import number_rows, write_competition

if TYPE_CHECKING:
    import polars as pl

NAME = "demo-judge"
PUBLIC_ROWS = 3
PAIRS = 3  # of a problem
NOISE, CLOSE = 0.35, 0.5  # of a voter's view of a difference, and the difference that is a tie
WORTH = {"worked": 3.0, "bare": 2.0, "slip": 1.6, "wrong rule": 0.9, "bare wrong": 0.3, "no answer": 0.0}
COLUMNS = ("winner_a", "winner_b", "winner_tie")
GIVING_UP = ("I don't know.", "Sorry, this is not clear to me.", "That cannot be answered.")
ENDINGS = ("The answer is {}.", "So it is {}.", "Answer: {}.", "That makes {}.")


@dataclass(frozen=True)
class Problem:
    text: str
    right: tuple[str, ...]
    """The lines of a right working, the answer apart."""
    wrong: tuple[str, ...]
    """Those of one that follows a wrong rule."""
    answer: int
    wrong_answer: int
    unit: str = ""

    def show(self, value: int) -> str:
        return f"{value} {self.unit}".strip()


def draw_shopping(rng: random.Random) -> Problem:
    thing, other = rng.sample(["pens", "apples", "tickets", "batteries", "mugs", "stamps", "candles"], 2)
    n, m, p, q = (rng.randint(2, 9) for _ in range(4))
    text = rng.choice(
        (
            f"{n} {thing} cost {p} euros each, {m} {other} cost {q} euros each. What do they cost together?",
            f"Ann buys {n} {thing} for {p} euros each and {m} {other} for {q} euros each. How much does she pay?",
        )
    )
    right = (f"The {thing} cost {n} x {p} = {n * p}.", f"The {other} cost {m} x {q} = {m * q}.")
    wrong = (f"There are {n} + {m} = {n + m} things.", f"The prices add up to {p} + {q} = {p + q}.")
    return Problem(text, right, wrong, n * p + m * q, (n + m) * (p + q), "euros")


def draw_discount(rng: random.Random) -> Problem:
    price, percent = rng.randint(3, 18) * 20, rng.choice((10, 20, 25, 30, 40, 50))
    thing = rng.choice(("coat", "lamp", "chair", "radio", "tent", "bag"))
    text = rng.choice(
        (
            f"A {thing} costs {price} euros. It is reduced by {percent} %. What is the new price?",
            f"There is {percent} % off a {thing} of {price} euros. What has to be paid?",
        )
    )
    cut = price * percent // 100
    right = (f"{percent} % of {price} is {cut}.", f"The new price is {price} - {cut}.")
    wrong = (f"The price falls by {percent}.", f"The new price is {price} - {percent}.")
    return Problem(text, right, wrong, price - cut, price - percent, "euros")


def draw_fence(rng: random.Random) -> Problem:
    a, b = rng.sample(range(3, 25), 2)
    place = rng.choice(("garden", "meadow", "yard", "pool", "field"))
    text = rng.choice(
        (
            f"A {place} is {a} m long and {b} m wide. How long is a fence around it?",
            f"How many metres is the way once around a {place} of {a} m by {b} m?",
        )
    )
    right = ("All four sides count.", f"Two sides have {a} m, two have {b} m: 2 x {a} + 2 x {b}.")
    wrong = ("Length and width are multiplied.", f"That is {a} x {b}.")
    return Problem(text, right, wrong, 2 * (a + b), a * b, "m")


def draw_mean(rng: random.Random) -> Problem:
    mean, spread = rng.randint(6, 30), rng.randint(1, 5)
    values = [mean - spread, mean + spread, mean - 1, mean + 1]
    rng.shuffle(values)
    listed, total = ", ".join(map(str, values)), sum(values)
    text = rng.choice((f"What is the mean of {listed}?", f"Four tests gave {listed} points. What is their average?"))
    right = (f"The sum is {total}.", f"There are 4 values: {total} / 4.")
    wrong = (f"The largest is {max(values)}, the smallest {min(values)}.", "The difference between them counts.")
    return Problem(text, right, wrong, mean, max(values) - min(values))


def draw_equation(rng: random.Random) -> Problem:
    x, a, b = rng.randint(2, 12), rng.randint(2, 9), rng.randint(1, 30)
    text = rng.choice((f"Solve {a}x + {b} = {a * x + b}.", f"For which x is {a}x + {b} = {a * x + b}?"))
    right = (f"Subtract {b}: {a}x = {a * x}.", f"Divide by {a}.")
    wrong = (f"Subtract {a} and {b} from {a * x + b}.", "What is left is x.")
    return Problem(text, right, wrong, x, a * x - a)


def draw_speed(rng: random.Random) -> Problem:
    hours, speed = rng.randint(2, 6), rng.randint(3, 16) * 5
    thing = rng.choice(("train", "cyclist", "ship", "bus", "lorry"))
    text = rng.choice(
        (
            f"A {thing} travels {hours * speed} km in {hours} hours. What is its speed?",
            f"For {hours * speed} km a {thing} takes {hours} hours. How fast is it?",
        )
    )
    right = ("Speed is the way divided by the time.", f"{hours * speed} km / {hours} h.")
    wrong = ("Speed is the way without the time.", f"{hours * speed} - {hours}.")
    return Problem(text, right, wrong, speed, hours * speed - hours, "km/h")


FAMILIES: tuple[Callable[[random.Random], Problem], ...] = (
    draw_shopping,
    draw_discount,
    draw_fence,
    draw_mean,
    draw_equation,
    draw_speed,
)


def write_answer(problem: Problem, kind: str, rng: random.Random) -> str:
    """An answer of one of the kinds of WORTH."""
    slip = problem.answer + rng.choice((-10, -2, -1, 1, 2, 10))
    if kind == "no answer":
        return rng.choice(GIVING_UP)
    value = {"slip": slip, "bare wrong": slip, "wrong rule": problem.wrong_answer}.get(kind, problem.answer)
    shown = problem.show(value)
    if kind.startswith("bare"):
        return rng.choice((shown, f"{shown}.", f"It is {shown}."))
    lines = problem.wrong if kind == "wrong rule" else problem.right
    return " ".join([*lines, rng.choice(ENDINGS).format(shown)])


def draw_pair(problem: Problem, rng: random.Random) -> tuple[str, str, tuple[float, ...]]:
    """Two answers, and the voters' shares for the first, the second and a tie."""
    kinds = rng.choices(list(WORTH), weights=(5, 3, 3, 3, 2, 2), k=2)
    answers = [write_answer(problem, kind, rng) for kind in kinds]
    if answers[0] == answers[1]:
        return answers[0], answers[1], (0.0, 0.0, 1.0)
    difference = WORTH[kinds[0]] - WORTH[kinds[1]]
    views = [difference + rng.gauss(0, NOISE) for _ in range(3)]
    first, second = sum(view > CLOSE for view in views), sum(view < -CLOSE for view in views)
    return answers[0], answers[1], (first / 3, second / 3, (3 - first - second) / 3)


def draw_rows(count: int, prefix: str, first: int, rng: random.Random) -> pl.DataFrame:
    """So many pairs, PAIRS of them of each problem."""
    import polars as pl

    found: list[tuple[str | float, ...]] = []
    while len(found) < count:
        problem = rng.choice(FAMILIES)(rng)
        for _ in range(PAIRS):
            one, other, shares = draw_pair(problem, rng)
            found.append((problem.text, one, other, *(round(share, 4) for share in shares)))
    names = ["problem", "answer_a", "answer_b", *COLUMNS]
    frame = pl.DataFrame(found[:count], schema=names, orient="row")
    return frame.select(pl.Series("id", number_rows(prefix, first, count)), *names)


def build_competition(
    input_dir: Path, hidden_dir: Path, seed: int = 0, train_rows: int = 600, hidden_rows: int = 40
) -> None:
    """Writes the competition's files to `input_dir` and the hidden test with its solution to `hidden_dir`."""
    rng = random.Random(seed)
    train = draw_rows(train_rows, "tr", 1, rng)
    public = draw_rows(PUBLIC_ROWS, "te", 1, rng)
    hidden = draw_rows(hidden_rows, "te", 1 + PUBLIC_ROWS, rng)
    write_competition(input_dir, hidden_dir, train, public, hidden, dict.fromkeys(COLUMNS, "0.3333"))
