"""Skills about whole and negative numbers, order of operations, place value, rounding and ratio."""

import random
from collections.abc import Callable
from fractions import Fraction
from math import gcd
from typing import Any

from kaggle_llm_demo.skills import (
    Skill,
    drawing,
    leaves_out,
    separate_parts,
    show,
    stops_early,
    swaps,
    tidy,
    wrong_operation,
    wrong_rule,
)


def digits_of(number: int) -> list[int]:
    return [int(digit) for digit in str(number)]


def by_column(combine: Callable[[int, int], int], first: int, second: int) -> str:
    """Two equally long numbers combined column by column, the results written side by side."""
    return "".join(str(combine(left, right)) for left, right in zip(digits_of(first), digits_of(second), strict=True))


def carry_swapped(first: int, second: int) -> str:
    """Column addition in which the ten is written down and the ones are carried."""
    written, carried = "", 0
    for power in (1, 10):
        tens, ones = divmod(first // power % 10 + second // power % 10 + carried, 10)
        written, carried = (f"{tens}{written}", ones) if tens else (f"{ones}{written}", 0)
    return f"{first // 100 + second // 100 + carried}{written}"


def needs_carry(a: int, b: int) -> bool:
    return a % 10 + b % 10 >= 10 and a // 100 + b // 100 < 9


def needs_borrow(a: int, b: int) -> bool:
    return a // 100 > b // 100 and a // 10 % 10 > b // 10 % 10 and a % 10 < b % 10


def draw_digit(rng: random.Random) -> dict[str, Any]:
    digits = rng.sample(range(1, 10), 5)
    return {"number": int("".join(map(str, digits))), "digit": rng.choice(digits[:3])}


def power_of(number: int, digit: int) -> int:
    """Which power of ten the digit stands for in the number."""
    return len(str(number)) - 1 - str(number).index(str(digit))


def two_shares(first: Fraction | int, second: Fraction | int) -> str | None:
    if tidy(first) is None or tidy(second) is None:
        return None
    return f"{show(first, '£')} and {show(second, '£')}"


SKILLS: tuple[Skill, ...] = (
    Skill(
        name="whole-number addition",
        draw=drawing(needs_carry, a=range(112, 800), b=range(112, 800)),
        questions=(
            "Work out {a} + {b}.",
            "A library owns {a} novels and is given another {b}. How many novels does it own now?",
            "{a} people visited a fair on Saturday and {b} on Sunday. How many visitors were there in all?",
        ),
        answer=lambda a, b: show(a + b),
        mistakes=(
            stops_early(
                "Stops after adding the ones and tens columns of two whole numbers, never reaching the hundreds.",
                lambda a, b: show(a % 100 + b % 100) if a % 100 + b % 100 < 100 else None,
            ),
            leaves_out(
                "Forgets to carry the extra ten into the next column when adding whole numbers.",
                lambda a, b: by_column(lambda x, y: (x + y) % 10, a, b),
            ),
            wrong_operation(
                "Subtracts one whole number from the other instead of adding them to find the total.",
                lambda a, b: show(abs(a - b)),
            ),
            swaps(
                "Swaps the two digits of a column total when adding, writing down the ten and carrying the ones.",
                lambda a, b: carry_swapped(a, b),
            ),
            separate_parts(
                "Treats each column of an addition separately, writing every column total in full side by side.",
                lambda a, b: by_column(lambda x, y: x + y, a, b),
            ),
        ),
    ),
    Skill(
        name="whole-number subtraction",
        draw=drawing(needs_borrow, a=range(312, 999), b=range(112, 700)),
        questions=(
            "Work out {a} - {b}.",
            "A farmer has {a} apples and sells {b} of them. How many apples are left?",
            "A tower is {a} steps high and Leo has climbed {b} steps. How many more steps must he climb?",
        ),
        answer=lambda a, b: show(a - b),
        mistakes=(
            stops_early(
                "Stops after subtracting the ones and the tens, copying down the hundreds digit of the larger number.",
                lambda a, b: show(a // 100 * 100 + a % 100 - b % 100),
            ),
            leaves_out(
                "Forgets to reduce the tens digit by one after borrowing a ten in a column subtraction.",
                lambda a, b: show(a - b + 10),
            ),
            wrong_operation(
                "Adds the two whole numbers instead of subtracting to find what is left.",
                lambda a, b: show(a + b),
            ),
            separate_parts(
                "Works on each column of a subtraction on its own, always taking the smaller digit from the larger.",
                lambda a, b: by_column(lambda x, y: abs(x - y), a, b),
            ),
            wrong_rule(
                "Believes that a subtraction column leaves zero whenever the digit being taken away is the bigger one.",
                lambda a, b: by_column(lambda x, y: max(x - y, 0), a, b),
            ),
        ),
    ),
    Skill(
        name="order of operations",
        draw=drawing(lambda a, b, c, d: c > d, a=range(2, 30), b=range(2, 12), c=range(4, 12), d=range(2, 11)),
        questions=(
            "Work out {a} + {b} × {c} - {d}.",
            "Mia writes {a} + {b} × {c} - {d} on the board. What is its value?",
            "Which single number is equal to {a} + {b} × {c} - {d}?",
        ),
        answer=lambda a, b, c, d: show(a + b * c - d),
        mistakes=(
            stops_early(
                "Gives the product of the middle pair as the final answer without the rest of a mixed calculation.",
                lambda a, b, c, d: show(b * c),
            ),
            leaves_out(
                "Ignores the number subtracted at the end of a calculation with mixed operations.",
                lambda a, b, c, d: show(a + b * c),
            ),
            wrong_operation(
                "Adds the middle pair instead of multiplying them in a calculation with mixed operations.",
                lambda a, b, c, d: show(a + b + c - d),
            ),
            separate_parts(
                "Works on the sum and the difference on their own before multiplying, breaking the "
                "order of operations.",
                lambda a, b, c, d: show((a + b) * (c - d)),
            ),
            wrong_rule(
                "Believes that an addition comes before a multiplication when it is written further left.",
                lambda a, b, c, d: show((a + b) * c - d),
            ),
        ),
    ),
    Skill(
        name="subtracting negative numbers",
        draw=drawing(lambda a, b: a != b, a=range(2, 25), b=range(2, 25)),
        questions=(
            "Work out -{a} - (-{b}).",
            "What is left when -{b} is taken away from -{a}?",
            "Tom's account stands at -{a} pounds and a charge, recorded as -{b} pounds, is taken off it. "
            "What is his balance in pounds?",
        ),
        answer=lambda a, b: show(b - a),
        mistakes=(
            leaves_out(
                "Ignores the second minus sign when subtracting a negative number, so moves further below zero.",
                lambda a, b: show(-a - b),
            ),
            wrong_operation(
                "Multiplies the two negative numbers instead of subtracting one from the other.",
                lambda a, b: show(a * b),
            ),
            swaps(
                "Swaps the order of a subtraction of negative numbers, taking the first number from the second.",
                lambda a, b: show(a - b),
            ),
            wrong_rule(
                "Believes that subtracting a negative number makes everything positive, so adds "
                "the numbers without signs.",
                lambda a, b: show(a + b),
            ),
        ),
    ),
    Skill(
        name="place value",
        draw=draw_digit,
        questions=(
            "What is the value of the digit {digit} in {number:,}?",
            "A van has driven {number:,} miles. How much is the {digit} in this number worth?",
            "In the number {number:,}, what does the {digit} stand for?",
        ),
        answer=lambda number, digit: show(digit * 10 ** power_of(number, digit)),
        mistakes=(
            stops_early(
                "Gives the digit itself as the final answer without the place value of its column.",
                lambda number, digit: show(digit),
            ),
            leaves_out(
                "Forgets one of the zeros that show a digit's place value, making it ten times too small.",
                lambda number, digit: show(digit * 10 ** (power_of(number, digit) - 1)),
            ),
            swaps(
                "Swaps the direction of the place value columns, counting ones, tens and hundreds from the left.",
                lambda number, digit: show(digit * 10 ** str(number).index(str(digit))),
            ),
            wrong_rule(
                "Believes that a digit's place value is the whole number read from that digit to the end.",
                lambda number, digit: show(number % 10 ** (power_of(number, digit) + 1)),
            ),
        ),
    ),
    Skill(
        name="rounding",
        draw=drawing(lambda n: n % 100 != 0, n=range(1101, 9899)),
        questions=(
            "Round {n} to the nearest hundred.",
            "A stadium holds {n} fans. A reporter gives this to the nearest hundred. What does she write?",
            "Which multiple of one hundred lies closest to {n}?",
        ),
        answer=lambda n: show((n + 50) // 100 * 100),
        mistakes=(
            stops_early(
                "Stops after rounding to the nearest ten although a rounding to the nearest hundred is wanted.",
                lambda n: show((n + 5) // 10 * 10),
            ),
            leaves_out(
                "Forgets to fill the empty columns with zeros after rounding a number.",
                lambda n: show((n + 50) // 100),
            ),
            swaps(
                "Uses the hundreds digit in place of the tens digit to decide about rounding to hundreds.",
                lambda n: show((n // 100 + (n // 100 % 10 >= 5)) * 100),
            ),
            separate_parts(
                "Works on the ones and the tens on their own, rounding twice to reach the nearest hundred.",
                lambda n: show(((n + 5) // 10 * 10 + 50) // 100 * 100),
            ),
            wrong_rule(
                "Believes that rounding always means going down, whatever the next digit is.",
                lambda n: show(n // 100 * 100),
            ),
        ),
    ),
    Skill(
        name="sharing in a ratio",
        draw=drawing(
            lambda a, b, n: gcd(a, b) == 1 and n % (a + b) == 0,
            a=range(1, 10),
            b=range(1, 10),
            n=range(20, 400, 4),
        ),
        questions=(
            "Share £{n} in the ratio {a}:{b}.",
            "Ann and Ben split £{n} in the ratio {a}:{b}. How much do Ann and Ben get?",
            "For every £{a} that Kim puts into a fund, Lou puts in £{b}. The fund holds £{n}. "
            "How much came from Kim and Lou?",
        ),
        answer=lambda a, b, n: f"£{n // (a + b) * a} and £{n // (a + b) * b}",
        mistakes=(
            stops_early(
                "Stops after finding the value of one part when sharing in a ratio.",
                lambda a, b, n: show(n // (a + b), "£"),
            ),
            leaves_out(
                "Ignores the numbers of the ratio and shares the amount into two equal halves.",
                lambda a, b, n: two_shares(Fraction(n, 2), Fraction(n, 2)),
            ),
            wrong_operation(
                "Multiplies the whole amount by each ratio number instead of dividing it into parts first.",
                lambda a, b, n: two_shares(n * a, n * b),
            ),
            swaps(
                "Swaps the two shares of a ratio, giving each person the other one's share.",
                lambda a, b, n: two_shares(n // (a + b) * b, n // (a + b) * a),
            ),
            separate_parts(
                "Treats the numbers of a ratio separately, dividing the amount by each one in turn.",
                lambda a, b, n: two_shares(Fraction(n, a), Fraction(n, b)),
            ),
        ),
    ),
    Skill(
        name="direct proportion",
        draw=drawing(lambda k, m, t: m % k == 0 and t != k, k=range(2, 10), m=range(12, 400), t=range(2, 16)),
        questions=(
            "{k} pancakes need {m} g of flour. How many grams of flour do {t} pancakes need?",
            "{k} identical bolts weigh {m} g. How many grams do {t} of these bolts weigh?",
            "A machine uses {m} g of glue for {k} boxes. How many grams does it use for {t} boxes?",
        ),
        answer=lambda k, m, t: show(Fraction(m * t, k), "g"),
        mistakes=(
            stops_early(
                "Stops after finding the amount for a single item in a direct proportion question.",
                lambda k, m, t: show(Fraction(m, k), "g"),
            ),
            leaves_out(
                "Forgets to divide down to one item in direct proportion, multiplying the given "
                "amount by the new number.",
                lambda k, m, t: show(m * t, "g"),
            ),
            swaps(
                "Swaps the old and the new number of items when scaling in direct proportion.",
                lambda k, m, t: tidy(Fraction(m * k, t), "g"),
            ),
            wrong_rule(
                "Believes that direct proportion keeps differences equal, so adds the extra number "
                "of items to the amount.",
                lambda k, m, t: show(m + t - k, "g"),
            ),
        ),
    ),
)
