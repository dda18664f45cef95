"""The problems of demo-judge: a text, ways to work it out, and rules that are wrong, with what they lead to."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Working:
    """Lines of an answer, and the value that they end with."""

    lines: tuple[str, ...]
    value: int


@dataclass(frozen=True)
class Problem:
    text: str
    answer: int
    right: tuple[tuple[str, ...], ...]
    """Lines of right workings; the answer is apart."""
    wrong: tuple[Working, ...]
    """Workings by a wrong rule."""
    unit: str = ""

    def show(self, value: int) -> str:
        return f"{value} {self.unit}".strip()


def draw_shopping(rng: random.Random) -> Problem:
    goods, others = rng.sample(["pens", "apples", "tickets", "batteries", "mugs", "stamps", "candles", "rolls"], 2)
    who = rng.choice(("Ann", "Malik", "Jule", "Tomas", "Grandfather", "The club"))
    n, m, p, q = (rng.randint(2, 9) for _ in range(4))
    texts = (
        f"{n} {goods} cost {p} euros each, {m} {others} cost {q} euros each. What do they cost together?",
        f"{who} buys {n} {goods} for {p} euros each and {m} {others} for {q} euros each. How much is that?",
        f"One pays {p} euros for each of {n} {goods} and {q} euros for each of {m} {others}. Find the total.",
    )
    right = (
        (f"The {goods} cost {n} x {p} = {n * p}.", f"The {others} cost {m} x {q} = {m * q}."),
        (f"{n} times {p} is {n * p}, {m} times {q} is {m * q}.", f"Together: {n * p} + {m * q}."),
        (f"First the {others}: {m * q}.", f"Then the {goods}: {n * p}.", "Both are added."),
    )
    wrong = (
        Working((f"There are {n} + {m} = {n + m} things.", f"Prices: {p} + {q} = {p + q}."), (n + m) * (p + q)),
        Working((f"One of each costs {p} + {q}.", "That is what they cost."), p + q),
        Working((f"All numbers are added: {n} + {p} + {m} + {q}.",), n + p + m + q),
    )
    return Problem(rng.choice(texts), n * p + m * q, right, wrong, "euros")


def draw_discount(rng: random.Random) -> Problem:
    price, percent = rng.randint(3, 18) * 20, rng.choice((10, 20, 25, 30, 40, 50))
    article = rng.choice(("coat", "lamp", "chair", "radio", "tent", "bag", "kettle", "desk"))
    cut = price * percent // 100
    texts = (
        f"A {article} costs {price} euros. It is reduced by {percent} %. What is the new price?",
        f"There is {percent} % off a {article} of {price} euros. What has to be paid?",
        f"In the sale a {article} of {price} euros gets {percent} % cheaper. What does it cost now?",
    )
    right = (
        (f"{percent} % of {price} is {cut}.", f"The new price is {price} - {cut}."),
        (f"1 % is {price / 100:g}, so {percent} % is {cut}.", f"{price} minus {cut} is left."),
        (f"{100 - percent} % of the price stays.", f"That is {price} x {(100 - percent) / 100:g}."),
    )
    wrong = (
        Working((f"The price falls by {percent}.", f"The new price is {price} - {percent}."), price - percent),
        Working((f"{percent} % of {price} is {cut}.", "That is the new price."), cut),
        Working((f"{percent} % of {price} is {cut}.", f"Add it: {price} + {cut}."), price + cut),
    )
    return Problem(rng.choice(texts), price - cut, right, wrong, "euros")


def draw_fence(rng: random.Random) -> Problem:
    a, b = rng.sample(range(3, 25), 2)
    area = rng.choice(("garden", "meadow", "yard", "pool", "field", "playground"))
    texts = (
        f"A {area} is {a} m long and {b} m wide. How long is a fence around it?",
        f"How many metres is the way once around a {area} of {a} m by {b} m?",
        f"Find the perimeter of a rectangular {area} with sides of {a} m and {b} m.",
    )
    right = (
        ("All four sides count.", f"2 x {a} + 2 x {b}."),
        (f"Length and width are {a + b} m together.", "Each occurs twice."),
        (f"Go round: {a} + {b} + {a} + {b}.",),
    )
    wrong = (
        Working(("Length and width are multiplied.", f"That is {a} x {b}."), a * b),
        Working((f"Length and width: {a} + {b}.",), a + b),
        Working(("A fence has four sides.", f"4 x {a}."), 4 * a),
    )
    return Problem(rng.choice(texts), 2 * (a + b), right, wrong, "m")


def draw_mean(rng: random.Random) -> Problem:
    mean, spread = rng.randint(6, 30), rng.randint(1, 5)
    values = [mean - spread, mean + spread, mean - 1, mean + 1]
    rng.shuffle(values)
    listed, total, low, high = ", ".join(map(str, values)), sum(values), min(values), max(values)
    texts = (
        f"What is the mean of {listed}?",
        f"Four tests gave {listed} points. What is their average?",
        f"On four days {listed} guests came. How many a day is that on average?",
    )
    right = (
        (f"The sum is {total}.", f"There are 4 values: {total} / 4."),
        (f"Add them all: {total}.", "Share it among four."),
        (f"{' + '.join(map(str, values))} = {total}.", "A quarter of it is the mean."),
    )
    wrong = (
        Working((f"The largest is {high}, the smallest {low}.", "Their difference counts."), high - low),
        Working((f"The sum is {total}.", "The sum is the mean."), total),
        Working((f"The sum is {total}.", "Half of it is the middle."), total // 2),
    )
    return Problem(rng.choice(texts), mean, right, wrong)


def draw_equation(rng: random.Random) -> Problem:
    x, a, b = rng.randint(2, 12), rng.randint(2, 9), rng.randint(1, 30)
    c = a * x + b
    texts = (
        f"Solve {a}x + {b} = {c}.",
        f"For which x is {a}x + {b} = {c}?",
        f"I multiply a number by {a}, add {b} and get {c}. What is the number?",
    )
    right = (
        (f"Subtract {b}: {a}x = {a * x}.", f"Divide by {a}."),
        (f"{c} - {b} = {a * x} is {a} times the number.", f"{a * x} / {a}."),
        ("Go backwards.", f"Take away {b}, then share by {a}: {a * x} / {a}."),
    )
    wrong = (
        Working((f"Subtract {a} and {b} from {c}.", "What is left is x."), c - a - b),
        Working((f"Add {b} on the right: {c + b}.", f"Subtract {a}."), c + b - a),
        Working((f"Subtract {b}: {a * x}.", "That is x."), a * x),
    )
    return Problem(rng.choice(texts), x, right, wrong)


def draw_speed(rng: random.Random) -> Problem:
    hours, speed = rng.randint(2, 6), rng.randint(3, 16) * 5
    distance = hours * speed
    traveller = rng.choice(("train", "cyclist", "ship", "bus", "lorry", "balloon"))
    texts = (
        f"A {traveller} travels {distance} km in {hours} hours. What is its speed?",
        f"For {distance} km a {traveller} takes {hours} hours. How fast is it?",
        f"After {hours} hours a {traveller} has made {distance} km. How many km is that in one hour?",
    )
    right = (
        ("Speed is the way divided by the time.", f"{distance} km / {hours} h."),
        (f"In {hours} hours {distance} km: divide by {hours} for one hour.",),
        (f"Share {distance} km among {hours} hours.",),
    )
    wrong = (
        Working(("Speed is the way without the time.", f"{distance} - {hours}."), distance - hours),
        Working(("Speed is way times time.", f"{distance} x {hours}."), distance * hours),
        Working((f"It takes an hour for {hours} km.", f"{distance} + {hours}."), distance + hours),
    )
    return Problem(rng.choice(texts), speed, right, wrong, "km/h")


def draw_recipe(rng: random.Random) -> Problem:
    people, more, each = rng.randint(2, 5), rng.randint(6, 15), rng.randint(2, 9) * 10
    food = rng.choice(("rice", "flour", "pasta", "lentils", "sugar", "oats"))
    grams = people * each
    texts = (
        f"For {people} people one needs {grams} g of {food}. How much is needed for {more} people?",
        f"{grams} g of {food} are enough for {people}. How much {food} do {more} guests need?",
        f"A recipe for {people} takes {grams} g of {food}. Work it out for {more}.",
    )
    right = (
        (f"One person needs {grams} / {people} = {each} g.", f"{more} x {each} g."),
        (f"Per head it is {each} g.", f"That times {more}."),
        (f"{more} people need {more}/{people} of {grams} g.",),
    )
    wrong = (
        Working((f"There are {more - people} people more.", f"{grams} + {more - people}."), grams + more - people),
        Working((f"Each of {more} gets {grams} g.", f"{more} x {grams}."), more * grams),
        Working((f"{people} times the amount.", f"{people} x {grams}."), people * grams),
    )
    return Problem(rng.choice(texts), more * each, right, wrong, "g")


FAMILIES: tuple[Callable[[random.Random], Problem], ...] = (
    draw_shopping,
    draw_discount,
    draw_fence,
    draw_mean,
    draw_equation,
    draw_speed,
    draw_recipe,
)


def draw_problem(rng: random.Random) -> Problem:
    """A problem whose wrong rules do not lead to the right answer by chance."""
    while True:
        problem = rng.choice(FAMILIES)(rng)
        if all(working.value != problem.answer for working in problem.wrong):
            return problem
