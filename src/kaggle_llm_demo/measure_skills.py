"""Skills about units, time, speed, angles, perimeter, area and volume."""

from fractions import Fraction

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

TWO_PLACES = tuple(f"{hundredths // 100}.{hundredths % 100:02d}" for hundredths in range(112, 990) if hundredths % 10)
ONE_PLACE = tuple(f"{tenths // 10}.{tenths % 10}" for tenths in range(11, 200) if tenths % 10)
NEAT_POLYGONS = (5, 6, 8, 9, 10, 12, 15, 18, 20, 24, 30, 36, 40, 45, 60, 72)


def ends_later(h: int, m: int, k: int, n: int) -> bool:
    return k > h and n < m


SKILLS: tuple[Skill, ...] = (
    Skill(
        name="metres to millimetres",
        draw=drawing(x=TWO_PLACES),
        questions=(
            "Change {x} metres into millimetres.",
            "A shelf is {x} m long. How many millimetres is that?",
            "A plumber needs a pipe of {x} m, but the order form asks for mm. What does he write?",
        ),
        answer=lambda x: show(Fraction(x) * 1000, "mm"),
        mistakes=(
            stops_early(
                "Stops after changing metres into centimetres although millimetres are wanted.",
                lambda x: show(Fraction(x) * 100, "mm"),
            ),
            leaves_out(
                "Ignores the decimal point of the length when changing metres into millimetres.",
                lambda x: show(Fraction(x) * 100 * 1000, "mm"),
            ),
            wrong_operation(
                "Divides by a thousand instead of multiplying when changing metres into millimetres.",
                lambda x: tidy(Fraction(x) / 1000, "mm", places=5),
            ),
            separate_parts(
                "Treats whole metres and decimals separately, reading the digits after the point as millimetres.",
                lambda x: show(int(x[0]) * 1000 + int(x[2:]), "mm"),
            ),
            wrong_rule(
                "Believes that a metre has a thousand centimetres, so gets ten times too many millimetres.",
                lambda x: show(Fraction(x) * 10000, "mm"),
            ),
        ),
    ),
    Skill(
        name="time between two clock times",
        draw=drawing(ends_later, h=range(6, 20), m=range(5, 60, 5), k=range(7, 24), n=range(0, 60, 5)),
        questions=(
            "How many minutes are there from {h:02d}:{m:02d} to {k:02d}:{n:02d}?",
            "A train leaves at {h:02d}:{m:02d} and arrives at {k:02d}:{n:02d}. How long is the journey in minutes?",
            "A shop opens at {h:02d}:{m:02d} and closes at {k:02d}:{n:02d}. How many minutes is it open?",
        ),
        answer=lambda h, m, k, n: show((k - h) * 60 + n - m, "minutes"),
        mistakes=(
            stops_early(
                "Stops after counting the minutes up to the next whole hour when finding a time interval.",
                lambda h, m, k, n: show(60 - m, "minutes"),
            ),
            leaves_out(
                "Ignores the minutes of both clock times, counting only the hours of a time interval.",
                lambda h, m, k, n: show((k - h) * 60, "minutes"),
            ),
            separate_parts(
                "Works on hours and minutes on their own, taking smaller from larger in each for a time interval.",
                lambda h, m, k, n: show((k - h) * 60 + m - n, "minutes"),
            ),
            wrong_rule(
                "Thinks that an hour has a hundred minutes, subtracting clock times like ordinary numbers.",
                lambda h, m, k, n: show((k - h) * 100 + n - m, "minutes"),
            ),
        ),
    ),
    Skill(
        name="square metres to square centimetres",
        draw=drawing(x=ONE_PLACE),
        questions=(
            "Change {x} m² into cm².",
            "A carpet covers {x} m². How many cm² does it cover?",
            "A wall has {x} square metres to be painted. What is this in square centimetres?",
        ),
        answer=lambda x: show(Fraction(x) * 10000, "cm²"),
        mistakes=(
            leaves_out(
                "Ignores the change from square metres, copying the number with square centimetres behind it.",
                lambda x: show(Fraction(x), "cm²"),
            ),
            wrong_operation(
                "Divides instead of multiplying when changing square metres into square centimetres.",
                lambda x: tidy(Fraction(x) / 10000, "cm²", places=5),
            ),
            swaps(
                "Uses square millimetres in place of square centimetres when changing square metres.",
                lambda x: show(Fraction(x) * 1000000, "cm²"),
            ),
            wrong_rule(
                "Believes that square metres and square centimetres differ by a hundred, as lengths do.",
                lambda x: show(Fraction(x) * 100, "cm²"),
            ),
        ),
    ),
    Skill(
        name="average speed",
        draw=drawing(
            lambda d, t: 60 * d % t == 0,
            d=range(6, 200, 2),
            t=(12, 15, 20, 24, 30, 36, 40, 45, 48, 75, 90, 150),
        ),
        questions=(
            "A cyclist covers {d} km in {t} minutes. What is her average speed in km/h?",
            "A boat takes {t} minutes for {d} km. How many kilometres an hour is that?",
            "{d} km of motorway are driven in {t} minutes. Find the average speed in km/h.",
        ),
        answer=lambda d, t: show(Fraction(60 * d, t), "km/h"),
        mistakes=(
            stops_early(
                "Stops after changing the minutes into hours, giving the time as the speed.",
                lambda d, t: tidy(Fraction(t, 60), "km/h"),
            ),
            leaves_out(
                "Forgets to change minutes into hours before dividing for a speed.",
                lambda d, t: tidy(Fraction(d, t), "km/h"),
            ),
            wrong_operation(
                "Multiplies the distance by the hours taken instead of dividing for a speed.",
                lambda d, t: tidy(Fraction(d * t, 60), "km/h"),
            ),
            swaps(
                "Swaps distance and time, dividing the hours by the kilometres for a speed.",
                lambda d, t: tidy(Fraction(t, 60 * d), "km/h", places=3),
            ),
            wrong_rule(
                "Thinks that an hour has a hundred minutes when working out a speed.",
                lambda d, t: tidy(Fraction(100 * d, t), "km/h"),
            ),
        ),
    ),
    Skill(
        name="third angle of a triangle",
        draw=drawing(lambda a, b: a + b < 170 and a != b, a=range(21, 120), b=range(21, 120)),
        questions=(
            "Two angles of a triangle are {a}° and {b}°. How large is the third?",
            "A three-sided sail has corners of {a}° and {b}°. What is its other corner angle?",
            "A triangular road sign has angles {a}°, {b}° and y. Find y.",
        ),
        answer=lambda a, b: show(180 - a - b, "°"),
        mistakes=(
            stops_early(
                "Stops after adding the two known angles of a triangle.",
                lambda a, b: show(a + b, "°"),
            ),
            leaves_out(
                "Ignores the second known angle of a triangle, subtracting only the first from the angle sum.",
                lambda a, b: show(180 - a, "°"),
            ),
            wrong_operation(
                "Subtracts one known angle from the other instead of subtracting both from a triangle's sum.",
                lambda a, b: show(abs(a - b), "°"),
            ),
            wrong_rule(
                "Believes that the angles of a triangle add up to a full turn.",
                lambda a, b: show(360 - a - b, "°"),
            ),
        ),
    ),
    Skill(
        name="angles on a straight line",
        draw=drawing(a=range(20, 160)),
        questions=(
            "An angle of {a}° and two equal angles make a straight line. How large is each equal angle?",
            "Two rays from a point on a straight line make angles {a}°, x and x above it. Find x.",
            "A straight edge is shared by a tile corner of {a}° and two equal corners. "
            "What is each equal corner's angle?",
        ),
        answer=lambda a: show(Fraction(180 - a, 2), "°"),
        mistakes=(
            stops_early(
                "Stops after subtracting the known angle from a straight line, not sharing out the rest.",
                lambda a: show(180 - a, "°"),
            ),
            leaves_out(
                "Ignores the known angle on a straight line, sharing the whole line between the equal angles.",
                lambda a: show(90, "°"),
            ),
            wrong_operation(
                "Adds the known angle to the straight line instead of subtracting it, before halving.",
                lambda a: show(Fraction(180 + a, 2), "°"),
            ),
            wrong_rule(
                "Believes that the angles on a straight line add up to a full turn.",
                lambda a: show(Fraction(360 - a, 2), "°"),
            ),
        ),
    ),
    Skill(
        name="interior angle of a regular polygon",
        draw=drawing(n=NEAT_POLYGONS),
        questions=(
            "How large is each interior angle of a regular polygon with {n} sides?",
            "A coin is a regular shape with {n} equal edges. What is the angle inside each corner?",
            "Find one inside angle of a regular {n}-sided polygon.",
            "A garden pond is a regular polygon with {n} sides. What angle lies between neighbouring sides, inside?",
        ),
        answer=lambda n: show(Fraction((n - 2) * 180, n), "°"),
        mistakes=(
            stops_early(
                "Stops after finding the sum of the interior angles, not dividing by the number of sides.",
                lambda n: show((n - 2) * 180, "°"),
            ),
            leaves_out(
                "Forgets to take two from the number of sides for a polygon's angle sum, before dividing.",
                lambda n: show(180, "°"),
            ),
            swaps(
                "Uses the exterior angle in place of the interior angle of a regular polygon.",
                lambda n: show(Fraction(360, n), "°"),
            ),
            wrong_rule(
                "Believes that the interior angles of every polygon add up to the same as in a triangle.",
                lambda n: tidy(Fraction(180, n), "°"),
            ),
        ),
    ),
    Skill(
        name="perimeter of a rectangle",
        draw=drawing(lambda a, b: a > b, a=range(4, 40), b=range(3, 30)),
        questions=(
            "A rectangle is {a} cm long and {b} cm wide. What is its perimeter?",
            "A ribbon goes once round the edge of a {a} cm by {b} cm card. How long is the ribbon?",
            "An ant walks along all the edges of a rectangular tray, {a} cm by {b} cm. How far does it walk?",
        ),
        answer=lambda a, b: show(2 * (a + b), "cm"),
        mistakes=(
            stops_early(
                "Stops after adding one length and one width of a perimeter.",
                lambda a, b: show(a + b, "cm"),
            ),
            leaves_out(
                "Forgets one of the shorter sides when adding up a perimeter.",
                lambda a, b: show(2 * a + b, "cm"),
            ),
            wrong_operation(
                "Multiplies length and width instead of adding all the sides for a perimeter.",
                lambda a, b: show(a * b, "cm"),
            ),
            wrong_rule(
                "Thinks that every perimeter is four times the longer side.",
                lambda a, b: show(4 * a, "cm"),
            ),
        ),
    ),
    Skill(
        name="area of a rectangle with a square hole",
        draw=drawing(lambda a, b, s: s < b < a, a=range(6, 25), b=range(5, 20), s=range(3, 10)),
        questions=(
            "A rectangle {a} cm by {b} cm has a square hole of side {s} cm. What area is left?",
            "A {a} m by {b} m lawn has a square pond with sides of {s} m. What area is grass?",
            "From a {a} m by {b} m sheet of metal a square of side {s} m is cut. How much metal is left, in m²?",
        ),
        answer=lambda a, b, s: show(a * b - s**2),
        mistakes=(
            stops_early(
                "Stops after finding the area of the whole rectangle, not removing the square.",
                lambda a, b, s: show(a * b),
            ),
            leaves_out(
                "Forgets to square the side of the hole, subtracting only its length from the rectangle's area.",
                lambda a, b, s: show(a * b - s),
            ),
            wrong_operation(
                "Adds the square's area to the rectangle's area instead of subtracting it.",
                lambda a, b, s: show(a * b + s**2),
            ),
            wrong_rule(
                "Thinks that a square's area is four times its side, subtracting that from the rectangle's area.",
                lambda a, b, s: show(a * b - 4 * s),
            ),
        ),
    ),
    Skill(
        name="area of a triangle",
        draw=drawing(lambda b, h, s: s > h and b * h % 2 == 0, b=range(4, 24), h=range(3, 18), s=range(5, 22)),
        questions=(
            "A triangle has base {b} cm, height {h} cm and a sloping side of {s} cm. What is its area?",
            "A flag is a triangle: bottom edge {b} cm, slanted edge {s} cm, height {h} cm. Find its area.",
            "A triangular sail stands {h} cm tall on a {b} cm base, with a {s} cm slanting edge. How much cloth is it?",
        ),
        answer=lambda b, h, s: show(Fraction(b * h, 2), "cm²"),
        mistakes=(
            stops_early(
                "Stops after halving the base, never multiplying by the height for a triangle's area.",
                lambda b, h, s: show(Fraction(b, 2), "cm²"),
            ),
            leaves_out(
                "Forgets to halve the product of base and height for the area of a triangle.",
                lambda b, h, s: show(b * h, "cm²"),
            ),
            wrong_operation(
                "Adds base and height instead of multiplying them before halving for a triangle's area.",
                lambda b, h, s: show(Fraction(b + h, 2), "cm²"),
            ),
            swaps(
                "Uses the sloping side in place of the perpendicular height for a triangle's area.",
                lambda b, h, s: show(Fraction(b * s, 2), "cm²"),
            ),
        ),
    ),
    Skill(
        name="volume of a cuboid",
        draw=drawing(a=range(2, 16), b=range(2, 13), c=range(2, 12)),
        questions=(
            "A box is {a} cm long, {b} cm wide and {c} cm high. What is its volume?",
            "How many one-centimetre cubes fill a tin that is {a} cm by {b} cm and {c} cm deep?",
            "A fish tank measures {a} cm, {b} cm and {c} cm (length, width, height). How many cm³ does it hold?",
        ),
        answer=lambda a, b, c: show(a * b * c),
        mistakes=(
            stops_early(
                "Stops after finding the area of the base, not multiplying by the height for a volume.",
                lambda a, b, c: show(a * b),
            ),
            leaves_out(
                "Ignores the width of a cuboid, multiplying only length and height for its volume.",
                lambda a, b, c: show(a * c),
            ),
            wrong_operation(
                "Adds the three edges of a cuboid instead of multiplying them for its volume.",
                lambda a, b, c: show(a + b + c),
            ),
            swaps(
                "Uses the surface area in place of the volume of a cuboid.",
                lambda a, b, c: show(2 * (a * b + a * c + b * c)),
            ),
        ),
    ),
)
