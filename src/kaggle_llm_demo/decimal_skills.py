"""Skills about decimals, powers, square roots and standard form."""

import random
from collections.abc import Callable
from fractions import Fraction
from math import isqrt
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

ONE_PLACE = tuple(f"{tenths // 10}.{tenths % 10}" for tenths in range(11, 90) if tenths % 10)
SQUARE_PAIRS = tuple(
    (first * first, second * second)
    for first in range(3, 61)
    for second in range(3, 61)
    if isqrt(first**2 + second**2) ** 2 == first**2 + second**2
)
LARGE_NUMBERS = tuple(
    digits * 10**zeros for digits in (*range(12, 99), *range(121, 999, 7)) for zeros in range(2, 7) if digits % 10
)


def leading(number: int) -> str:
    """The number between one and ten with the same leading digits."""
    digits = str(number).rstrip("0")
    return f"{digits[0]}.{digits[1:]}"


def draw_decimals(rng: random.Random) -> dict[str, Any]:
    """Four different decimals of one to three places, of which some have zeros behind the point."""
    decimals: set[str] = set()
    while len(decimals) < 4:
        zeros = "0" * rng.choice((0, 0, 1))
        decimals.add(f"0.{zeros}{str(rng.randint(1, 99)).rstrip('0')}")
    return {"decimals": ", ".join(rng.sample(sorted(decimals), 4))}


def sort_decimals(decimals: str, key: Callable[[str], Any], ties: bool = False) -> str | None:
    """The decimals in the order of the key of their digits; None for equal keys unless `ties` may stay."""
    keys = [key(decimal[2:]) for decimal in decimals.split(", ")]
    if len(set(keys)) < len(keys) and not ties:
        return None
    return ", ".join(sorted(decimals.split(", "), key=lambda decimal: key(decimal[2:])))


SKILLS: tuple[Skill, ...] = (
    Skill(
        name="ordering decimals",
        draw=draw_decimals,
        questions=(
            "Write these numbers in order, smallest first: {decimals}.",
            "Four seeds weigh {decimals} grams. List the weights from lightest to heaviest.",
            "Four snails crawled {decimals} metres. Arrange the distances from shortest to longest.",
        ),
        answer=lambda decimals: sort_decimals(decimals, str) or "",
        mistakes=(
            stops_early(
                "Stops after comparing the tenths digits, leaving decimals with equal tenths in the listed order.",
                lambda decimals: sort_decimals(decimals, lambda digits: digits[0], ties=True),
            ),
            leaves_out(
                "Ignores zeros straight after the decimal point when ordering decimals.",
                lambda decimals: sort_decimals(decimals, lambda digits: digits.lstrip("0")),
            ),
            swaps(
                "Swaps smallest and largest when ordering decimals, listing them from the greatest down.",
                lambda decimals: ", ".join(sorted(decimals.split(", "), reverse=True)),
            ),
            separate_parts(
                "Treats the digits after the decimal point separately, comparing them as if they were whole numbers.",
                lambda decimals: sort_decimals(decimals, int),
            ),
        ),
    ),
    Skill(
        name="multiplying decimals",
        draw=drawing(x=ONE_PLACE, y=ONE_PLACE),
        questions=(
            "Work out {x} × {y}.",
            "A weed is {x} cm tall and a bush is {y} times as tall. How many centimetres tall is the bush?",
            "What is the product of {x} and {y}?",
        ),
        answer=lambda x, y: show(Fraction(x) * Fraction(y)),
        mistakes=(
            stops_early(
                "Stops after multiplying by the whole part of the second decimal, never multiplying by its tenths.",
                lambda x, y: show(Fraction(x) * int(y[0])),
            ),
            leaves_out(
                "Forgets to put the decimal point back into the product of two decimals.",
                lambda x, y: show(Fraction(x) * Fraction(y) * 100),
            ),
            wrong_operation(
                "Adds the two decimals instead of multiplying them together.",
                lambda x, y: show(Fraction(x) + Fraction(y)),
            ),
            separate_parts(
                "Treats the parts before and after the point separately when multiplying decimals.",
                lambda x, y: f"{int(x[0]) * int(y[0])}.{int(x[2]) * int(y[2])}",
            ),
            wrong_rule(
                "Thinks that a product of two decimals has just as many decimal places as each of them.",
                lambda x, y: show(Fraction(x) * Fraction(y) * 10),
            ),
        ),
    ),
    Skill(
        name="dividing by a decimal",
        draw=drawing(lambda a, d: a % d == 0, a=range(4, 100), d=range(2, 10)),
        questions=(
            "Work out {a} ÷ 0.{d}.",
            "How many cups of 0.{d} litres can be filled from {a} litres of juice?",
            "A rope of {a} metres is cut into pieces of 0.{d} metres. How many pieces are there?",
        ),
        answer=lambda a, d: show(Fraction(10 * a, d)),
        mistakes=(
            stops_early(
                "Stops after multiplying by ten to clear the decimal divisor, and never divides.",
                lambda a, d: show(10 * a),
            ),
            leaves_out(
                "Ignores the decimal point of the divisor when dividing by a decimal.",
                lambda a, d: show(Fraction(a, d)),
            ),
            wrong_operation(
                "Multiplies by the decimal instead of dividing by it.",
                lambda a, d: show(Fraction(a * d, 10)),
            ),
            swaps(
                "Swaps the two numbers of a division, dividing the decimal by the whole number.",
                lambda a, d: tidy(Fraction(d, 10 * a), places=3),
            ),
        ),
    ),
    Skill(
        name="powers",
        draw=drawing(a=range(2, 13), n=range(3, 6)),
        questions=(
            "Work out {a}^{n}.",
            "What is {a} to the power of {n}?",
            "A code has {n} symbols, and each symbol is one of {a} signs. How many codes are there?",
            "A lock has {n} wheels with {a} letters on each wheel. How many settings are possible?",
        ),
        answer=lambda a, n: show(a**n),
        mistakes=(
            stops_early(
                "Stops after squaring the base although the power asks for more factors.",
                lambda a, n: show(a**2),
            ),
            leaves_out(
                "Forgets one factor of the base, so the power comes out one too low.",
                lambda a, n: show(a ** (n - 1)),
            ),
            wrong_operation(
                "Multiplies the base by the power instead of multiplying the base by itself repeatedly.",
                lambda a, n: show(a * n),
            ),
            swaps(
                "Swaps the base and the exponent when working out a power.",
                lambda a, n: show(n**a) if a <= 6 else None,
            ),
            wrong_rule(
                "Thinks that the exponent counts the multiplication signs, so takes one factor of the base too many.",
                lambda a, n: show(a ** (n + 1)),
            ),
        ),
    ),
    Skill(
        name="square root of a sum",
        draw=drawing(pair=SQUARE_PAIRS),
        questions=(
            "Work out √({pair[0]} + {pair[1]}).",
            "What is the square root of the sum of {pair[0]} and {pair[1]}?",
            "{pair[0]} black and {pair[1]} white counters together make one square array. "
            "How many counters are in each row?",
        ),
        answer=lambda pair: show(isqrt(sum(pair))),
        mistakes=(
            stops_early(
                "Stops after adding the numbers under the square root sign and takes no root.",
                lambda pair: show(sum(pair)),
            ),
            leaves_out(
                "Ignores the second number under the square root sign.",
                lambda pair: show(isqrt(pair[0])),
            ),
            wrong_operation(
                "Divides the total under a square root sign by two instead of taking its root.",
                lambda pair: tidy(Fraction(sum(pair), 2)),
            ),
            separate_parts(
                "Treats the numbers under a square root sign separately, adding the root of each.",
                lambda pair: show(isqrt(pair[0]) + isqrt(pair[1])),
            ),
        ),
    ),
    Skill(
        name="standard form",
        draw=drawing(number=LARGE_NUMBERS),
        questions=(
            "Write {number:,} in standard form.",
            "A moon is {number:,} km from its planet. Write this distance in the form a × 10^n.",
            "A country makes {number:,} bottles a year. Give this number in scientific notation.",
        ),
        answer=lambda number: f"{leading(number)} × 10^{len(str(number)) - 1}",
        mistakes=(
            stops_early(
                "Gives the number between one and ten as the final answer without a power of ten in standard form.",
                leading,
            ),
            leaves_out(
                "Forgets the decimal point between the leading digits of a number in standard form.",
                lambda number: f"{str(number).rstrip('0')} × 10^{len(str(number)) - 1}",
            ),
            swaps(
                "Uses a negative power in place of a positive power of ten in standard form.",
                lambda number: f"{leading(number)} × 10^-{len(str(number)) - 1}",
            ),
            wrong_rule(
                "Believes that the power of ten in standard form counts the zeros at the end.",
                lambda number: f"{leading(number)} × 10^{len(str(number)) - len(str(number).rstrip('0'))}",
            ),
        ),
    ),
)
