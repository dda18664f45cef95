"""Skills about fractions and mixed numbers."""

import random
from collections.abc import Callable
from fractions import Fraction
from math import gcd, lcm
from typing import Any

from kaggle_llm_demo.skills import (
    Skill,
    drawing,
    leaves_out,
    separate_parts,
    show,
    show_fraction,
    stops_early,
    swaps,
    tidy,
    wrong_operation,
    wrong_rule,
)


def proper(*pairs: tuple[int, int]) -> bool:
    """Whether all pairs of numerator and denominator are proper fractions in lowest terms."""
    return all(top < bottom and gcd(top, bottom) == 1 for top, bottom in pairs)


def larger_first(a: int, b: int, c: int, d: int) -> bool:
    return proper((a, b), (c, d)) and b != d and a * d > c * b


def draw_fractions(rng: random.Random) -> dict[str, Any]:
    """Four fractions in which no two numerators, denominators, values or gaps to one whole agree."""
    while True:
        tops, bottoms = rng.sample(range(1, 10), 4), rng.sample(range(2, 13), 4)
        pairs = list(zip(tops, bottoms, strict=True))
        gaps = {bottom - top for top, bottom in pairs}
        if proper(*pairs) and len(gaps) == 4 and len({Fraction(*pair) for pair in pairs}) == 4:
            return {"fractions": ", ".join(f"{top}/{bottom}" for top, bottom in pairs)}


def sort_fractions(fractions: str, key: Callable[[int, int], Any]) -> str:
    def key_of(written: str) -> Any:
        return key(*map(int, written.split("/")))

    return ", ".join(sorted(fractions.split(", "), key=key_of))


def start_sorted(fractions: str) -> str:
    """The first two fractions in order, the others where they were listed."""
    listed = fractions.split(", ")
    return ", ".join(sorted(listed[:2], key=Fraction) + listed[2:])


SKILLS: tuple[Skill, ...] = (
    Skill(
        name="adding fractions",
        draw=drawing(
            lambda a, b, c, d: proper((a, b), (c, d)) and b != d,
            a=range(1, 8),
            b=range(2, 12),
            c=range(1, 8),
            d=range(2, 12),
        ),
        questions=(
            "Work out {a}/{b} + {c}/{d}.",
            "Ana walks {a}/{b} of a mile to the shop and {c}/{d} of a mile to school. How far does she walk?",
            "A soup needs {a}/{b} of a cup of milk and {c}/{d} of a cup of cream. How many cups is that?",
        ),
        answer=lambda a, b, c, d: show_fraction(Fraction(a, b) + Fraction(c, d)),
        mistakes=(
            stops_early(
                "Gives the sum of the new numerators as the final answer without the denominator "
                "when adding fractions.",
                lambda a, b, c, d: show((Fraction(a, b) + Fraction(c, d)) * lcm(b, d)),
            ),
            leaves_out(
                "Forgets to change the numerators after finding the common denominator when adding fractions.",
                lambda a, b, c, d: f"{a + c}/{lcm(b, d)}",
            ),
            wrong_operation(
                "Multiplies the two fractions instead of adding them to find a total.",
                lambda a, b, c, d: show_fraction(Fraction(a, b) * Fraction(c, d)),
            ),
            swaps(
                "Uses the larger denominator in place of a common denominator, adding the fractions' "
                "numerators unchanged.",
                lambda a, b, c, d: f"{a + c}/{max(b, d)}",
            ),
            separate_parts(
                "Treats numerators and denominators separately when adding fractions, adding tops and adding bottoms.",
                lambda a, b, c, d: f"{a + c}/{b + d}",
            ),
        ),
    ),
    Skill(
        name="subtracting fractions",
        draw=drawing(larger_first, a=range(1, 12), b=range(2, 13), c=range(1, 8), d=range(2, 13)),
        questions=(
            "Work out {a}/{b} - {c}/{d}.",
            "A tank is {a}/{b} full. Water worth {c}/{d} of a tank runs out. What fraction is still full?",
            "Jo has {a}/{b} of a metre of ribbon and cuts off {c}/{d} of a metre. What length remains?",
        ),
        answer=lambda a, b, c, d: show_fraction(Fraction(a, b) - Fraction(c, d)),
        mistakes=(
            stops_early(
                "Stops after rewriting the first fraction over the common denominator, never "
                "subtracting the second fraction.",
                lambda a, b, c, d: f"{a * lcm(b, d) // b}/{lcm(b, d)}",
            ),
            leaves_out(
                "Forgets to change the numerators after finding the common denominator when subtracting fractions.",
                lambda a, b, c, d: f"{a - c}/{lcm(b, d)}" if a > c else None,
            ),
            wrong_operation(
                "Adds the two fractions instead of subtracting to find the remaining fraction.",
                lambda a, b, c, d: show_fraction(Fraction(a, b) + Fraction(c, d)),
            ),
            separate_parts(
                "Treats numerators and denominators separately when subtracting fractions, taking "
                "top from top, bottom from bottom.",
                lambda a, b, c, d: f"{a - c}/{b - d}" if a > c and b > d else None,
            ),
        ),
    ),
    Skill(
        name="multiplying fractions",
        draw=drawing(
            lambda a, b, c, d: proper((a, b), (c, d)),
            a=range(1, 10),
            b=range(2, 12),
            c=range(2, 10),
            d=range(3, 12),
        ),
        questions=(
            "Work out {a}/{b} × {c}/{d}.",
            "{a}/{b} of a garden is grass and {c}/{d} of the grass is in shade. "
            "What fraction of the garden is shaded grass?",
            "Tim drinks {a}/{b} of the juice in a bottle that is {c}/{d} full to begin with. "
            "What fraction of a full bottle does he drink?",
        ),
        answer=lambda a, b, c, d: show_fraction(Fraction(a * c, b * d)),
        mistakes=(
            stops_early(
                "Stops after multiplying the numerators, keeping the first denominator for the "
                "product of two fractions.",
                lambda a, b, c, d: f"{a * c}/{b}",
            ),
            leaves_out(
                "Ignores the numerator of the second fraction when multiplying fractions, using only its denominator.",
                lambda a, b, c, d: f"{a}/{b * d}",
            ),
            wrong_operation(
                "Adds the denominators instead of multiplying them when multiplying fractions.",
                lambda a, b, c, d: f"{a * c}/{b + d}",
            ),
            swaps(
                "Swaps the numerator and denominator of the second fraction before multiplying two fractions.",
                lambda a, b, c, d: show_fraction(Fraction(a * d, b * c)),
            ),
            wrong_rule(
                "Believes that multiplying fractions needs a common denominator, which the product then keeps.",
                lambda a, b, c, d: show_fraction(Fraction(a * c, b * d) * lcm(b, d)),
            ),
        ),
    ),
    Skill(
        name="dividing fractions",
        draw=drawing(larger_first, a=range(1, 10), b=range(2, 12), c=range(1, 8), d=range(2, 12)),
        questions=(
            "Work out {a}/{b} ÷ {c}/{d}.",
            "How many scoops of {c}/{d} of a cup are in {a}/{b} of a cup of rice?",
            "A path of {a}/{b} of a mile is split into stages of {c}/{d} of a mile. How many stages long is it?",
        ),
        answer=lambda a, b, c, d: show_fraction(Fraction(a * d, b * c)),
        mistakes=(
            stops_early(
                "Gives the inverted divisor as the final answer without multiplying when dividing fractions.",
                lambda a, b, c, d: show_fraction(Fraction(d, c)),
            ),
            leaves_out(
                "Forgets to invert the second fraction when dividing fractions, so simply multiplies across.",
                lambda a, b, c, d: show_fraction(Fraction(a * c, b * d)),
            ),
            wrong_operation(
                "Subtracts the second fraction instead of dividing by it to find how often it fits.",
                lambda a, b, c, d: show_fraction(Fraction(a, b) - Fraction(c, d)),
            ),
            swaps(
                "Swaps which fraction is inverted, turning the first one upside down when dividing fractions.",
                lambda a, b, c, d: show_fraction(Fraction(b * c, a * d)),
            ),
            wrong_rule(
                "Thinks that both fractions are turned upside down and then multiplied when dividing fractions.",
                lambda a, b, c, d: show_fraction(Fraction(b * d, a * c)),
            ),
        ),
    ),
    Skill(
        name="fraction of an amount",
        draw=drawing(lambda a, b, n: proper((a, b)) and n % b == 0, a=range(2, 9), b=range(3, 12), n=range(18, 240, 2)),
        questions=(
            "What is {a}/{b} of {n}?",
            "{n} pupils are in a year group and {a}/{b} of them walk to school. How many walk to school?",
            "A baker makes {n} rolls and sells {a}/{b} of them by noon. How many are sold by noon?",
        ),
        answer=lambda a, b, n: show(Fraction(a * n, b)),
        mistakes=(
            stops_early(
                "Stops after dividing by the denominator when finding a fraction of a whole-number amount.",
                lambda a, b, n: show(Fraction(n, b)),
            ),
            leaves_out(
                "Ignores the denominator for a fraction of a whole-number amount, only multiplying by the numerator.",
                lambda a, b, n: show(a * n),
            ),
            wrong_operation(
                "Subtracts the fraction of a whole-number amount from it instead of giving that part itself.",
                lambda a, b, n: show(n - Fraction(a * n, b)),
            ),
            swaps(
                "Swaps numerator and denominator for a fraction of a whole-number amount, dividing by the top.",
                lambda a, b, n: tidy(Fraction(b * n, a)),
            ),
        ),
    ),
    Skill(
        name="mixed numbers to improper fractions",
        draw=drawing(lambda w, a, b: proper((a, b)), w=range(2, 12), a=range(1, 10), b=range(3, 12)),
        questions=(
            "Write {w} {a}/{b} as an improper fraction.",
            "A plank is {w} {a}/{b} feet long. Give its length as a top-heavy fraction of a foot.",
            "Express {w} {a}/{b} as one single fraction.",
        ),
        answer=lambda w, a, b: f"{w * b + a}/{b}",
        mistakes=(
            stops_early(
                "Stops after multiplying the whole number by the denominator, never adding the "
                "mixed number's numerator.",
                lambda w, a, b: f"{w * b}/{b}",
            ),
            leaves_out(
                "Forgets to write the denominator of the improper fraction, giving only its new numerator.",
                lambda w, a, b: show(w * b + a),
            ),
            wrong_operation(
                "Adds the whole number to the numerator instead of first multiplying it by the "
                "mixed number's denominator.",
                lambda w, a, b: f"{w + a}/{b}",
            ),
            swaps(
                "Swaps numerator and denominator in changing a mixed number, multiplying by the "
                "top and adding the bottom.",
                lambda w, a, b: f"{w * a + b}/{b}",
            ),
            separate_parts(
                "Treats the parts of a mixed number separately, writing the whole number's digits "
                "before the numerator's.",
                lambda w, a, b: f"{w}{a}/{b}",
            ),
        ),
    ),
    Skill(
        name="ordering fractions",
        draw=draw_fractions,
        questions=(
            "Write these fractions in order, smallest first: {fractions}.",
            "Four friends ate {fractions} of their pizzas. List these from least to most eaten.",
            "Four jars are {fractions} full. Put these in order, starting with the emptiest jar.",
        ),
        answer=lambda fractions: sort_fractions(fractions, Fraction),
        mistakes=(
            stops_early(
                "Stops after putting the first two fractions in order, leaving the other fractions as listed.",
                start_sorted,
            ),
            leaves_out(
                "Ignores the denominators when ordering fractions, comparing only the numerators.",
                lambda fractions: sort_fractions(fractions, lambda top, bottom: top),
            ),
            swaps(
                "Swaps smallest and largest when ordering fractions, listing them from the greatest down.",
                lambda fractions: sort_fractions(fractions, lambda top, bottom: -Fraction(top, bottom)),
            ),
            separate_parts(
                "Works on the gap between numerator and denominator on its own, ordering fractions by how small it is.",
                lambda fractions: sort_fractions(fractions, lambda top, bottom: top - bottom),
            ),
            wrong_rule(
                "Believes that a larger denominator always makes a smaller fraction, whatever the numerator.",
                lambda fractions: sort_fractions(fractions, lambda top, bottom: -bottom),
            ),
        ),
    ),
)
