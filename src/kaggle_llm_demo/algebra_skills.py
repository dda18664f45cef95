"""Skills about powers, expressions, equations, inequalities, sequences and straight-line graphs."""

from fractions import Fraction

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


def linear(coefficient: int, constant: int, letter: str = "x") -> str:
    """An expression such as 3x - 2, always written the same way so that equal ones are equal texts."""
    if coefficient == 0:
        return str(constant)
    first = {1: letter, -1: f"-{letter}"}.get(coefficient, f"{coefficient}{letter}")
    if constant == 0:
        return first
    return f"{first} {'+' if constant > 0 else '-'} {abs(constant)}"


def slope(rise: int, run: int) -> str | None:
    return show_fraction(Fraction(rise, run)) if run else None


SKILLS: tuple[Skill, ...] = (
    Skill(
        name="linear equations",
        draw=drawing(lambda a, b, c: c > b and (c - b) % a == 0, a=range(2, 10), b=range(2, 20), c=range(10, 80)),
        questions=(
            "Solve {a}x + {b} = {c}.",
            "I think of a number, multiply it by {a} and add {b}. The result is {c}. What is my number?",
            "A taxi charges £{b} plus £{a} for each mile. A ride costs £{c}. How many miles was it?",
        ),
        answer=lambda a, b, c: show(Fraction(c - b, a)),
        mistakes=(
            stops_early(
                "Stops after subtracting the constant in a linear equation, never dividing.",
                lambda a, b, c: show(c - b),
            ),
            leaves_out(
                "Ignores the constant term of a linear equation, only dividing by the coefficient.",
                lambda a, b, c: tidy(Fraction(c, a)),
            ),
            wrong_operation(
                "Adds the constant to the other side of a linear equation instead of subtracting it.",
                lambda a, b, c: tidy(Fraction(c + b, a)),
            ),
            swaps(
                "Swaps the coefficient and the constant when solving a linear equation.",
                lambda a, b, c: tidy(Fraction(c - a, b)),
            ),
            wrong_rule(
                "Thinks that the coefficient in a linear equation is undone by subtracting it.",
                lambda a, b, c: show(c - b - a),
            ),
        ),
    ),
    Skill(
        name="expanding a bracket",
        draw=drawing(a=range(2, 10), b=range(2, 8), c=range(2, 12)),
        questions=(
            "Expand {a}({b}x + {c}).",
            "A ticket costs {b}x + {c} pounds. Write the cost of {a} tickets without brackets.",
            "Each of {a} jars holds {b}x + {c} beads. Write the total number of beads without brackets.",
        ),
        answer=lambda a, b, c: linear(a * b, a * c),
        mistakes=(
            stops_early(
                "Gives the first product as the final answer without the rest of the expanded bracket.",
                lambda a, b, c: linear(a * b, 0),
            ),
            leaves_out(
                "Forgets to multiply the second term in the bracket when expanding.",
                lambda a, b, c: linear(a * b, c),
            ),
            wrong_operation(
                "Adds the number outside to both terms in the bracket instead of multiplying them.",
                lambda a, b, c: linear(a + b, a + c),
            ),
            wrong_rule(
                "Believes that a number outside a bracket multiplies only the last term when expanding.",
                lambda a, b, c: linear(b, a * c),
            ),
        ),
    ),
    Skill(
        name="substitution",
        draw=drawing(a=range(2, 8), b=range(1, 20), x=range(2, 10)),
        questions=(
            "Find the value of {a}x² + {b} when x = {x}.",
            "A formula for the cost in pounds is {a}x² + {b}. What is the cost if x is {x}?",
            "y = {a}x² + {b}. What is y when x equals {x}?",
        ),
        answer=lambda a, b, x: show(a * x**2 + b),
        mistakes=(
            stops_early(
                "Stops after working out the squared term in a substitution, never adding the constant.",
                lambda a, b, x: show(a * x**2),
            ),
            leaves_out(
                "Ignores the coefficient of the squared letter when substituting a value.",
                lambda a, b, x: show(x**2 + b),
            ),
            wrong_operation(
                "Adds the coefficient to the squared value instead of multiplying by it in a substitution.",
                lambda a, b, x: show(a + x**2 + b),
            ),
            separate_parts(
                "Treats coefficient and squared value separately in a substitution, joining their digits.",
                lambda a, b, x: show(int(f"{a}{x**2}") + b),
            ),
            wrong_rule(
                "Believes that the square in a substituted term also applies to the coefficient.",
                lambda a, b, x: show((a * x) ** 2 + b),
            ),
        ),
    ),
    Skill(
        name="collecting like terms",
        draw=drawing(lambda a, b, c, d: b > d, a=range(2, 10), b=range(3, 20), c=range(2, 10), d=range(1, 15)),
        questions=(
            "Simplify {a}x + {b} + {c}x - {d}.",
            "A shelf has {a} boxes of x pens and {b} loose pens. Then {c} such boxes arrive and "
            "{d} loose pens are used. Write the number of pens simply.",
            "Write {a}x + {b} + {c}x - {d} as briefly as possible.",
        ),
        answer=lambda a, b, c, d: linear(a + c, b - d),
        mistakes=(
            stops_early(
                "Gives the collected letter terms as the final answer without collecting the number terms.",
                lambda a, b, c, d: linear(a + c, 0),
            ),
            leaves_out(
                "Ignores the minus sign in front of a number when collecting like terms.",
                lambda a, b, c, d: linear(a + c, b + d),
            ),
            wrong_operation(
                "Multiplies the coefficients of like terms instead of adding them, keeping the letter.",
                lambda a, b, c, d: linear(a * c, b - d),
            ),
            wrong_rule(
                "Believes that unlike terms can be collected, joining numbers and letters in one letter term.",
                lambda a, b, c, d: linear(a + c + b - d, 0),
            ),
        ),
    ),
    Skill(
        name="nth term of an arithmetic sequence",
        draw=drawing(lambda f, d: f != d, f=range(1, 30), d=range(2, 12)),
        questions=(
            "A sequence starts with {f} and goes up by {d} each time. Write a formula for its nth term.",
            "A pattern has {f} tiles at first, and every new pattern has {d} more. "
            "How many tiles has pattern number n?",
            "Ben saves £{f} in week 1 and £{d} more each week than the week before. "
            "How many pounds does he save in week n?",
        ),
        answer=lambda f, d: linear(d, f - d, "n"),
        mistakes=(
            stops_early(
                "Gives the common difference times n as the final answer without adjusting the nth term.",
                lambda f, d: linear(d, 0, "n"),
            ),
            leaves_out(
                "Forgets to multiply n by the common difference in an nth term, only adding the constant.",
                lambda f, d: linear(1, f - d, "n"),
            ),
            swaps(
                "Swaps the common difference and the constant in an nth term formula.",
                lambda f, d: linear(f - d, d, "n"),
            ),
            wrong_rule(
                "Thinks that an nth term is the common difference times n plus the first term.",
                lambda f, d: linear(d, f, "n"),
            ),
        ),
    ),
    Skill(
        name="next term of a geometric sequence",
        draw=drawing(a=range(2, 16), r=range(3, 8)),
        questions=(
            "Each term of a sequence is {r} times the one before. The first term is {a}. What is the fourth?",
            "A colony starts with {a} cells and becomes {r} times as large every day. "
            "How many cells are there after three days?",
            "A video is seen by {a} people, and each hour the count is multiplied by {r}. "
            "What is the count after three hours?",
        ),
        answer=lambda a, r: show(a * r**3),
        mistakes=(
            stops_early(
                "Stops after multiplying by the common ratio once, giving the second term of the geometric sequence.",
                lambda a, r: show(a * r),
            ),
            leaves_out(
                "Forgets one multiplication by the common ratio, ending a term too soon in a geometric sequence.",
                lambda a, r: show(a * r**2),
            ),
            wrong_operation(
                "Adds the common ratio each time instead of multiplying by it in a geometric sequence.",
                lambda a, r: show(a + 3 * r),
            ),
            swaps(
                "Swaps the roles of first term and common ratio in a geometric sequence.",
                lambda a, r: show(r * a**3),
            ),
            wrong_rule(
                "Believes that a geometric sequence grows by equal steps, repeating the first increase.",
                lambda a, r: show(a + 3 * (a * r - a)),
            ),
        ),
    ),
    Skill(
        name="inequalities",
        draw=drawing(lambda a, b, c: b > c and (b - c) % a == 0, a=range(2, 8), b=range(12, 70), c=range(2, 40)),
        questions=(
            "Solve {b} - {a}x < {c}.",
            "For which values of x is {b} - {a}x less than {c}?",
            "A tank of {b} litres loses {a} litres an hour. "
            "For which numbers of hours x does it hold less than {c} litres?",
        ),
        answer=lambda a, b, c: f"x > {(b - c) // a}",
        mistakes=(
            stops_early(
                "Gives the boundary number as the final answer without an inequality sign.",
                lambda a, b, c: show((b - c) // a),
            ),
            leaves_out(
                "Ignores the minus sign in front of the unknown when solving an inequality.",
                lambda a, b, c: f"x < {(c - b) // a}",
            ),
            wrong_operation(
                "Adds the constant to both sides of an inequality instead of subtracting it.",
                lambda a, b, c: f"x > {-(b + c) // a}" if (b + c) % a == 0 else None,
            ),
            wrong_rule(
                "Believes that an inequality sign never turns round, even when dividing by a negative number.",
                lambda a, b, c: f"x < {(b - c) // a}",
            ),
        ),
    ),
    Skill(
        name="gradient between two points",
        draw=drawing(
            lambda p, q, r, s: p < r and q != s,
            p=range(0, 9),
            q=range(0, 12),
            r=range(1, 12),
            s=range(0, 12),
        ),
        questions=(
            "What is the gradient of the line through ({p}, {q}) and ({r}, {s})?",
            "How steep is the straight line joining ({p}, {q}) to ({r}, {s})? Give its slope.",
            "A straight ramp is drawn on a grid from ({p}, {q}) to ({r}, {s}). Find its gradient.",
        ),
        answer=lambda p, q, r, s: show_fraction(Fraction(s - q, r - p)),
        mistakes=(
            stops_early(
                "Stops after finding the change in y, giving that as the gradient.",
                lambda p, q, r, s: show(s - q),
            ),
            leaves_out(
                "Ignores the direction of a falling line, writing every gradient as positive.",
                lambda p, q, r, s: show_fraction(Fraction(abs(s - q), r - p)),
            ),
            wrong_operation(
                "Adds the coordinates instead of subtracting them when finding a gradient.",
                lambda p, q, r, s: slope(s + q, r + p),
            ),
            swaps(
                "Swaps the changes in x and y, dividing across by up for a gradient.",
                lambda p, q, r, s: show_fraction(Fraction(r - p, s - q)),
            ),
            separate_parts(
                "Works on the second point on its own for a gradient, dividing its y by its x.",
                lambda p, q, r, s: slope(s, r),
            ),
        ),
    ),
)
