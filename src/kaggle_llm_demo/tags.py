"""Generates demo-tags: letters and e-mails with made-up personal data, and look-alikes that are none.

What belongs to the people of a letter is to be found. What belongs to a firm, an author, a street or a storm looks the
same: it is written by the same functions, so that only the words around it tell. A source is one sender with all the
letters of theirs.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.competition.spans import Span
from kaggle_llm_demo.files import number_rows, write_competition
from kaggle_llm_demo.letters import (
    ALIKES,
    BETWEEN,
    CLOSINGS,
    FILLERS,
    FIRST_NAMES,
    HOSTS,
    LAST_NAMES,
    MONTHS,
    OFFICES,
    OPENINGS,
    PERSONAL,
    STREETS,
    TOWNS,
)

if TYPE_CHECKING:
    import polars as pl

NAME = "demo-tags"
PUBLIC_ROWS = 3
TYPES = ("NAME", "EMAIL", "PHONE", "ADDRESS", "ID_NUMBER", "BIRTHDAY")
NOTHING = "-"
LONG = 0.04  # the share of rows that are a whole exchange of letters
FIELD = re.compile(r"\{(\w+)\}|\[([^\]]+)\]")
FIRST_DAY, LAST_DAY = 1940, 2004  # years of birthdays


@dataclass(frozen=True)
class Person:
    """Their attributes are the fields of a template, and the type of each span but of parts of the name."""

    first: str
    last: str
    email: str
    phone: str
    address: str
    id_number: str
    birthday: str


def spell_plainly(name: str) -> str:
    return name.lower().translate(str.maketrans("öéšñ ", "oesn-"))


def draw_email(first: str, last: str, rng: random.Random) -> str:
    given, family = spell_plainly(first), spell_plainly(last)
    box = rng.choice(
        (
            f"{given}.{family}",
            f"{given[0]}{family}{rng.randint(1, 99)}",
            f"{family}_{given}",
            f"{given}{rng.randint(60, 99)}",
        )
    )
    return f"{box}@{rng.choice(HOSTS)}"


def draw_phone(rng: random.Random) -> str:
    a, b, c = rng.randint(100, 999), rng.randint(100, 999), rng.randint(1000, 9999)
    return rng.choice((f"0{a} {b}{c}", f"+49 {a} {b} {c}", f"({a}) {b}-{c}", f"0{a}/{b}{c}", f"{a}.{b}.{c}"))


def draw_address(rng: random.Random) -> str:
    street = f"{rng.randint(1, 120)}{rng.choice(('', '', 'a', 'b'))} {rng.choice(STREETS)}"
    return f"{street}{rng.choice((', ', chr(10)))}{rng.randint(10000, 99999)} {rng.choice(TOWNS)}"


def draw_number(rng: random.Random) -> str:
    return rng.choice(
        (
            f"{rng.choice('CKMR')}-{rng.randint(10000, 99999)}",
            f"{rng.choice('XYZ')}{rng.randint(1000000, 9999999)}",
            f"{rng.randint(100, 999)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}",
            str(rng.randint(10000000, 99999999)),
        )
    )


def draw_day(rng: random.Random) -> str:
    day, month, year = rng.randint(1, 28), rng.randint(1, 12), rng.randint(FIRST_DAY, LAST_DAY)
    return rng.choice(
        (f"{day} {MONTHS[month - 1]} {year}", f"{day:02}.{month:02}.{year}", f"{year}-{month:02}-{day:02}")
    )


def draw_person(rng: random.Random) -> Person:
    first, last = rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)
    email = draw_email(first, last, rng)
    return Person(first, last, email, draw_phone(rng), draw_address(rng), draw_number(rng), draw_day(rng))


def draw_public(field: str, rng: random.Random) -> str:
    """What looks like personal data and is a firm's, an author's or a thing's."""
    stranger = draw_person(rng)
    if field == "name":
        return f"{stranger.first} {stranger.last}"
    if field == "email":
        return f"{rng.choice(OFFICES)}@{spell_plainly(stranger.last)}-{rng.choice(('shop', 'group'))}.example"
    if field == "number":
        return str(rng.randint(2, 99))
    if field == "street":
        return rng.choice(STREETS)
    return str(getattr(stranger, field))


class Letter:
    """A text that grows, and its spans.

    Templates have [one|or another] wording and fields: {capitals} are the sender's, {OTHER_…} those of somebody whom
    the letter is about; both are personal. {small letters} only look like it.
    """

    def __init__(self, sender: Person, rng: random.Random) -> None:
        self.sender, self.rng = sender, rng
        self.other = draw_person(rng)
        self.text = ""
        self.spans: list[Span] = []

    def write(self, template: str) -> None:
        """Append the template with its fields filled."""
        end = 0
        for field in FIELD.finditer(template):
            self.text += template[end : field.start()]
            if field[2] is not None:
                self.write(self.rng.choice(field[2].split("|")))
            elif field[1].isupper():
                self.mark(field[1])
            else:
                self.text += draw_public(field[1], self.rng)
            end = field.end()
        self.text += template[end:]

    def mark(self, field: str) -> None:
        """Append personal data with its span."""
        person = self.other if field.startswith("OTHER_") else self.sender
        name = field.removeprefix("OTHER_").lower()
        kind = "NAME" if name in ("name", "first", "last") else name.upper()
        text = self.sign(person) if name == "name" else str(getattr(person, name))
        self.spans.append(Span(len(self.text), len(self.text) + len(text), kind))
        self.text += text

    def sign(self, person: Person) -> str:
        full = f"{person.first} {person.last}"
        return self.rng.choice((full, full, f"{person.first[0]}. {person.last}", f"{person.last}, {person.first}"))


def write_letter(letter: Letter) -> None:
    """Append an opening, some personal and some other sentences in any order, and a closing."""
    rng = letter.rng
    parts = [
        *rng.sample(PERSONAL, rng.choice((0, 1, 1, 2, 2, 3))),
        *rng.sample(ALIKES, rng.randint(2, 5)),
        *rng.sample(FILLERS, rng.randint(2, 7)),
    ]
    rng.shuffle(parts)
    letter.write(rng.choice(OPENINGS))
    for part in parts:
        letter.text += rng.choice((" ", " ", " ", "\n", "\n\n"))
        letter.write(part)
    letter.write(rng.choice(CLOSINGS))


def write_row(sender: Person, rng: random.Random) -> Letter:
    letter = Letter(sender, rng)
    write_letter(letter)
    if rng.random() < LONG:
        for _ in range(rng.randint(6, 9)):
            letter.write(rng.choice(BETWEEN))
            write_letter(letter)
    return letter


def draw_rows(count: int, prefix: str, first: int, rng: random.Random) -> pl.DataFrame:
    """So many letters, one to three of each sender."""
    import polars as pl

    rows: list[tuple[str, str, str]] = []
    sender = 0
    while len(rows) < count:
        person, sender = draw_person(rng), sender + 1
        for _ in range(rng.randint(1, 3)):
            letter = write_row(person, rng)
            rows.append((letter.text, write_cell(letter.spans), f"{prefix}-sender-{sender:04d}"))
    frame = pl.DataFrame(rows[:count], schema=["text", "spans", "source"], orient="row")
    return frame.select(pl.Series("id", number_rows(prefix, first, count)), "text", "spans", "source")


def write_cell(spans: Sequence[Span]) -> str:
    return " ".join(span.to_item() for span in spans) or NOTHING


def build_competition(
    input_dir: Path, hidden_dir: Path, seed: int = 0, train_rows: int = 400, hidden_rows: int = 40
) -> None:
    """Writes the competition's files to `input_dir` and the hidden test with its solution to `hidden_dir`."""
    rng = random.Random(seed)
    train = draw_rows(train_rows, "tr", 1, rng)
    public = draw_rows(PUBLIC_ROWS, "te", 1, rng)
    hidden = draw_rows(hidden_rows, "te", 1 + PUBLIC_ROWS, rng)
    write_competition(input_dir, hidden_dir, train, public, hidden, {"spans": NOTHING}, hide=("source",))
