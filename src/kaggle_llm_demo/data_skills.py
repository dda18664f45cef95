"""Skills about percentages, averages and probability."""

import random
from collections.abc import Callable
from fractions import Fraction
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


def numbers(values: str) -> list[int]:
    return [int(value) for value in values.split(", ")]


def middle(values: list[int]) -> Fraction:
    """The median, which for two middle values lies halfway between them."""
    ordered, half = sorted(values), len(values) // 2
    return Fraction(ordered[half] + ordered[-half - 1], 2)


def middle_pair(values: list[int]) -> list[int]:
    """The two middle values of an even number of values, in the order given."""
    return values[len(values) // 2 - 1 : len(values) // 2 + 1]


def listing(
    count: int, highest: int, zeros: int = 0, where: Callable[[list[int]], bool] = bool
) -> Callable[[random.Random], dict[str, Any]]:
    """A drawing of `count` numbers in any order, of which `zeros` are zero, as one written list."""

    def draw(rng: random.Random) -> dict[str, Any]:
        while True:
            values = [0] * zeros + [rng.randint(1, highest) for _ in range(count - zeros)]
            rng.shuffle(values)
            if where(values):
                return {"values": ", ".join(map(str, values))}

    return draw


SKILLS: tuple[Skill, ...] = (
    Skill(
        name="percentage of an amount",
        draw=drawing(lambda p, n: p * n % 100 == 0, p=(*range(15, 100, 5), 12, 8, 4), n=range(40, 600, 20)),
        questions=(
            "Work out {p}% of {n}.",
            "{p}% of the {n} seats in a theatre are taken. How many seats are taken?",
            "A farm keeps {n} animals, of which {p}% are sheep. How many sheep are there?",
        ),
        answer=lambda p, n: show(Fraction(p * n, 100)),
        mistakes=(
            stops_early(
                "Stops after finding ten per cent of the amount and gives that for the whole percentage.",
                lambda p, n: show(Fraction(n, 10)),
            ),
            leaves_out(
                "Forgets to divide by a hundred when finding a percentage of an amount.",
                lambda p, n: show(p * n),
            ),
            wrong_operation(
                "Divides the amount by the percentage instead of multiplying to find a percentage of an amount.",
                lambda p, n: tidy(Fraction(n, p)),
            ),
            wrong_rule(
                "Thinks that a percentage of an amount is always that number itself, whatever the amount.",
                lambda p, n: show(p),
            ),
        ),
    ),
    Skill(
        name="percentage increase",
        draw=drawing(lambda p, n: p * n % 100 == 0, p=(2, 4, 5, 6, 8, 12, 15, 20, 25, 35), n=range(40, 900, 20)),
        questions=(
            "Increase £{n} by {p}%.",
            "A rent of £{n} goes up by {p}%. What is the new rent?",
            "Rosa earns £{n} a week and gets a pay rise of {p}%. How much does she earn now?",
        ),
        answer=lambda p, n: show(n + Fraction(p * n, 100), "£"),
        mistakes=(
            stops_early(
                "Gives the percentage increase as the final answer without adding it to the original amount.",
                lambda p, n: show(Fraction(p * n, 100), "£"),
            ),
            leaves_out(
                "Ignores the zero in the multiplier for a single-figure percentage increase, making "
                "it tens of per cent.",
                lambda p, n: show(n + Fraction(p * n, 10), "£") if p < 10 else None,
            ),
            wrong_operation(
                "Subtracts the percentage from the original amount instead of adding it for a percentage increase.",
                lambda p, n: show(n - Fraction(p * n, 100), "£"),
            ),
            wrong_rule(
                "Believes that a percentage increase adds the percentage number itself, as if it were pounds.",
                lambda p, n: show(n + p, "£"),
            ),
        ),
    ),
    Skill(
        name="reverse percentage",
        draw=drawing(lambda p, s: 100 * s % (100 - p) == 0, p=(10, 20, 25, 40, 60, 70), s=range(12, 400, 3)),
        questions=(
            "A coat costs £{s} in a sale after {p}% was taken off. What was its price before the sale?",
            "After falling by {p}%, a share is worth £{s}. What was it worth before the fall?",
            "£{s} is what remains of Ed's savings after he spent {p}% of them. How much had he saved?",
        ),
        answer=lambda p, s: show(Fraction(100 * s, 100 - p), "£"),
        mistakes=(
            stops_early(
                "Stops after finding one per cent of the original amount in a reverse percentage question.",
                lambda p, s: tidy(Fraction(s, 100 - p), "£"),
            ),
            leaves_out(
                "Ignores the percent sign in a reverse percentage, adding the percentage number to the reduced amount.",
                lambda p, s: show(s + p, "£"),
            ),
            wrong_operation(
                "Subtracts the percentage again instead of working back from the reduced amount to the original.",
                lambda p, s: tidy(s - Fraction(p * s, 100), "£"),
            ),
            swaps(
                "Uses the percentage taken off in place of the percentage left when finding the original amount.",
                lambda p, s: tidy(Fraction(100 * s, p), "£"),
            ),
            wrong_rule(
                "Believes that a reduction is undone by adding the same percentage of the reduced amount.",
                lambda p, s: tidy(s + Fraction(p * s, 100), "£"),
            ),
        ),
    ),
    Skill(
        name="one number as a percentage of another",
        draw=drawing(
            lambda a, b: a < b and 100 * a % b == 0,
            a=range(2, 200),
            b=(20, 25, 40, 50, 60, 80, 125, 150, 200, 250),
        ),
        questions=(
            "Write {a} as a percentage of {b}.",
            "Nadia answered {a} of {b} test questions correctly. What percentage is that?",
            "{a} of the {b} trees in an orchard are pear trees. What percentage are pear trees?",
        ),
        answer=lambda a, b: show(Fraction(100 * a, b), "%"),
        mistakes=(
            stops_early(
                "Gives the decimal from dividing part by total as the final percentage without "
                "multiplying by a hundred.",
                lambda a, b: tidy(Fraction(a, b), "%"),
            ),
            leaves_out(
                "Ignores the total when writing a part as a percentage, only adding a percent sign.",
                lambda a, b: show(a, "%"),
            ),
            wrong_operation(
                "Subtracts the part from the total instead of dividing when writing it as a percentage.",
                lambda a, b: show(b - a, "%"),
            ),
            swaps(
                "Swaps part and total when writing one number as a percentage of another.",
                lambda a, b: tidy(Fraction(100 * b, a), "%"),
            ),
        ),
    ),
    Skill(
        name="mean",
        draw=listing(5, 18, zeros=1, where=lambda values: sum(values) % 5 == 0),
        questions=(
            "Find the mean of {values}.",
            "A team scores {values} goals in five matches. What is the mean number of goals a match?",
            "Over five days a shop sells {values} lamps. What is the mean number sold a day?",
        ),
        answer=lambda values: show(Fraction(sum(numbers(values)), 5)),
        mistakes=(
            stops_early(
                "Stops after adding up all the values, never dividing the total for the mean.",
                lambda values: show(sum(numbers(values))),
            ),
            leaves_out(
                "Ignores a zero among the values, dividing by one value too few for the mean.",
                lambda values: tidy(Fraction(sum(numbers(values)), 4)),
            ),
            swaps(
                "Uses the middle value of the ordered list in place of the mean.",
                lambda values: show(middle(numbers(values))),
            ),
            separate_parts(
                "Works on the smallest and largest value on their own, taking their halfway point as the mean.",
                lambda values: tidy(Fraction(min(numbers(values)) + max(numbers(values)), 2)),
            ),
            wrong_rule(
                "Thinks that a mean is always the total divided by two, whatever the number of values.",
                lambda values: tidy(Fraction(sum(numbers(values)), 2)),
            ),
        ),
    ),
    Skill(
        name="median",
        draw=listing(6, 40),
        questions=(
            "Find the median of {values}.",
            "Six children are asked how many books they own: {values}. What is the median?",
            "The waiting times of six callers were {values} minutes. What was the median wait?",
        ),
        answer=lambda values: show(middle(numbers(values))),
        mistakes=(
            stops_early(
                "Stops after finding the two middle values, giving the lower one as the median.",
                lambda values: show(min(middle_pair(sorted(numbers(values))))),
            ),
            leaves_out(
                "Forgets to put the values in order before taking the median of the list.",
                lambda values: show(Fraction(sum(middle_pair(numbers(values))), 2)),
            ),
            wrong_operation(
                "Adds the two middle values instead of finding the number halfway between for a median.",
                lambda values: show(sum(middle_pair(sorted(numbers(values))))),
            ),
            swaps(
                "Uses the total divided by the number of values in place of the median.",
                lambda values: tidy(Fraction(sum(numbers(values)), 6)),
            ),
            wrong_rule(
                "Thinks that the median is halfway between the smallest and the largest value.",
                lambda values: show(Fraction(min(numbers(values)) + max(numbers(values)), 2)),
            ),
        ),
    ),
    Skill(
        name="range",
        draw=listing(7, 60),
        questions=(
            "Find the range of {values}.",
            "Seven plants are {values} cm tall. What is the range of their heights in cm?",
            "A player's points in seven games were {values}. What was the range of the points?",
        ),
        answer=lambda values: show(max(numbers(values)) - min(numbers(values))),
        mistakes=(
            stops_early(
                "Gives the largest value as the final range without subtracting the smallest value.",
                lambda values: show(max(numbers(values))),
            ),
            leaves_out(
                "Forgets to look for smallest and largest, finding a range from the first and last listed values.",
                lambda values: show(abs(numbers(values)[-1] - numbers(values)[0])),
            ),
            wrong_operation(
                "Adds the smallest and the largest value instead of subtracting them for the range.",
                lambda values: show(max(numbers(values)) + min(numbers(values))),
            ),
            wrong_rule(
                "Thinks that a range counts both end values, so makes the difference one larger.",
                lambda values: show(max(numbers(values)) - min(numbers(values)) + 1),
            ),
        ),
    ),
    Skill(
        name="probability",
        draw=drawing(r=range(2, 13), b=range(2, 13), g=range(2, 13)),
        questions=(
            "A bag holds {r} red, {b} blue and {g} green beads. One is taken at random. "
            "What is the probability of red?",
            "Of the songs on a list, {r} are old, {b} are new and {g} are live. One plays at random. "
            "How likely is an old one?",
            "A box has {r} plain, {b} striped and {g} spotted socks. You grab one blindly. "
            "What is the chance that it is plain?",
        ),
        answer=lambda r, b, g: show_fraction(Fraction(r, r + b + g)),
        mistakes=(
            stops_early(
                "Gives the number of favourable outcomes as the final probability without dividing by the total.",
                lambda r, b, g: show(r),
            ),
            leaves_out(
                "Ignores the last type of outcome when counting the total for a probability.",
                lambda r, b, g: f"{r}/{r + b}",
            ),
            wrong_operation(
                "Subtracts the favourable outcomes from the total instead of using them for the probability.",
                lambda r, b, g: f"{b + g}/{r + b + g}",
            ),
            swaps(
                "Uses the unfavourable outcomes in place of all the outcomes as the probability's denominator.",
                lambda r, b, g: f"{r}/{b + g}",
            ),
            wrong_rule(
                "Believes that all types of outcome are equally likely, however many there are of each.",
                lambda r, b, g: "1/3",
            ),
        ),
    ),
)
