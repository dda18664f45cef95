"""What a skill and a mistake are, how a problem is drawn from them, and how students write numbers.

The catalogue itself is in `number_skills`, `fraction_skills`, `algebra_skills` and `measure_skills`.
"""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

KINDS = ("stops early", "wrong operation", "swaps", "leaves out", "separate parts", "wrong rule")
MAXIMUM_DRAWS = 1000
CLOSE_UNITS = ("%", "°")  # written directly behind the number
NUMBER = re.compile(
    r"(?P<mantissa>-?\d+(?:\.\d+)?) × 10\^(?P<exponent>-?\d+)"
    r"|(?P<whole>-?\d+) (?P<part>\d+/\d+)"
    r"|(?P<fraction>-?\d+/\d+)"
    r"|(?P<decimal>-?\d+(?:\.\d+)?)(?P<percent>%?)"
)

Wrong = Callable[..., str | None]


@dataclass(frozen=True)
class Mistake:
    """One misconception: its wording and the wrong answer that carrying it out gives."""

    text: str
    kind: str
    wrong: Wrong


@dataclass(frozen=True)
class Skill:
    """One kind of question together with the ways in which students get it wrong."""

    name: str
    draw: Callable[[random.Random], dict[str, Any]]
    questions: tuple[str, ...]
    answer: Callable[..., str]
    mistakes: tuple[Mistake, ...]


@dataclass(frozen=True)
class Problem:
    """One question as a row of the competition shows it."""

    question: str
    correct_answer: str
    wrong_answer: str


def stops_early(text: str, wrong: Wrong) -> Mistake:
    return Mistake(text, "stops early", wrong)


def wrong_operation(text: str, wrong: Wrong) -> Mistake:
    return Mistake(text, "wrong operation", wrong)


def swaps(text: str, wrong: Wrong) -> Mistake:
    return Mistake(text, "swaps", wrong)


def leaves_out(text: str, wrong: Wrong) -> Mistake:
    return Mistake(text, "leaves out", wrong)


def separate_parts(text: str, wrong: Wrong) -> Mistake:
    return Mistake(text, "separate parts", wrong)


def wrong_rule(text: str, wrong: Wrong) -> Mistake:
    return Mistake(text, "wrong rule", wrong)


def drawing(
    where: Callable[..., bool] | None = None, **choices: Sequence[Any]
) -> Callable[[random.Random], dict[str, Any]]:
    """A drawing of one value for each name, repeated until `where` holds for the drawn values."""

    def draw(rng: random.Random) -> dict[str, Any]:
        while True:
            parameters = {name: rng.choice(values) for name, values in choices.items()}
            if where is None or where(**parameters):
                return parameters

    return draw


def decimal_places(value: Fraction) -> int | None:
    """How many decimal places the value has, or None where the decimal never ends."""
    for places in range(13):
        if (value * 10**places).denominator == 1:
            return places
    return None


def show(value: Fraction | int, unit: str = "") -> str:
    """The value as a whole number, an ending decimal or a fraction in lowest terms, with its unit."""
    exact = Fraction(value)
    places = decimal_places(exact)
    if places is None:
        number = str(exact)
    elif unit == "£" and places:
        number = _decimal(exact, max(places, 2))
    else:
        number = _decimal(exact, places)
    if unit == "£":
        return f"£{number}"
    return number + (unit if unit in CLOSE_UNITS or not unit else f" {unit}")


def tidy(value: Fraction | int, unit: str = "", places: int = 2) -> str | None:
    """The value as `show` writes it; None where a student would not end up with so many decimal places."""
    needed = decimal_places(Fraction(value))
    return None if needed is None or needed > places else show(value, unit)


def show_fraction(value: Fraction | int) -> str:
    """The value as a whole number or a fraction in lowest terms."""
    return str(Fraction(value))


def comparable(answer: str) -> str:
    """The answer with every number in it written one way, so that 1/2, 2/4 and 0.5 are the same text."""
    return NUMBER.sub(lambda match: f"<{_value(match)}>", answer)


def draw_problem(skill: Skill, mistake: Mistake, rng: random.Random) -> Problem:
    """A question whose wrong answer can come from this mistake only, among all mistakes of the skill."""
    for _ in range(MAXIMUM_DRAWS):
        parameters = skill.draw(rng)
        wrong = mistake.wrong(**parameters)
        if wrong is not None and _tells_apart(skill, mistake, parameters, wrong):
            question = rng.choice(skill.questions).format(**parameters)
            return Problem(question, skill.answer(**parameters), wrong)
    raise ValueError(f"no problem found after {MAXIMUM_DRAWS} draws: {skill.name}: {mistake.text}")


def _tells_apart(skill: Skill, mistake: Mistake, parameters: dict[str, Any], wrong: str) -> bool:
    others = [other.wrong(**parameters) for other in skill.mistakes if other is not mistake]
    taken = {comparable(answer) for answer in [skill.answer(**parameters), *others] if answer is not None}
    return comparable(wrong) not in taken


def _decimal(value: Fraction, places: int) -> str:
    # Digits by whole-number arithmetic, because a float would lose the exact value.
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


def _value(match: re.Match[str]) -> Fraction:
    if match["mantissa"]:
        return Fraction(match["mantissa"]) * Fraction(10) ** int(match["exponent"])
    if match["whole"]:
        sign = -1 if match["whole"].startswith("-") else 1
        return int(match["whole"]) + sign * Fraction(match["part"])
    if match["fraction"]:
        return Fraction(match["fraction"])
    return Fraction(match["decimal"]) / (100 if match["percent"] else 1)
