"""Generates demo-tags: letters and e-mails with made-up personal data, and look-alikes that are none.

A street may be named after somebody, a company after its founder, a parcel has a number and the shop a hotline: only
what belongs to the people of the letter is to be found. A source is one sender with all the letters of theirs.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.demo.files import number_rows, write_competition
from kaggle_llm.spans import Span

if TYPE_CHECKING:
    import polars as pl

NAME = "demo-tags"
PUBLIC_ROWS = 3
TYPES = ("NAME", "EMAIL", "PHONE", "ADDRESS", "ID")
NOTHING = "-"
LONG = 0.04  # the share of letters that are many times as long
FIRST = (
    *("Alma", "Boris", "Chiara", "Deniz", "Edda", "Felix", "Gita", "Henrik", "Isolde", "Jarek", "Kamila", "Leandro"),
    *("Maren", "Nils", "Odile", "Pavel", "Rahel", "Stefan", "Tamar", "Ulrich", "Viola", "Wim", "Yara", "Zoltan"),
)
LAST = (
    *("Abendroth", "Brenner", "Castellano", "Dvorak", "Eklund", "Fontaine", "Grabowski", "Hallström", "Ivanova"),
    *("Jansen", "Kowalczyk", "Lindqvist", "Moreau", "Nakamura", "Okafor", "Petersen", "Quist", "Rossi", "Szabo"),
    *("Tanaka", "Urbina", "Vermeer", "Winkler", "Yilmaz", "Zeller"),
)
STREETS = (
    "Mill Lane",
    "Oak Street",
    "Harbour Road",
    "Castle Hill",
    "Station Road",
    "Rossi Street",
    "Old Market",
    "Elm Row",
)
TOWNS = ("Norwell", "Eastbridge", "Kaltenau", "Port Avery", "Lindholm", "Granville", "Sankt Alban")
HOSTS = ("postbox.example", "mailhaus.example", "letters.example", "quickmail.example")
TEMPLATES = (
    "Dear team, my name is {NAME} and I ordered a lamp with the order number {order}. {filler} Please "
    "call me at {PHONE}. {alike} Kind regards, {NAME}",
    "Hello, this is {NAME}. I moved, my new address is {ADDRESS}. {filler} {alike} My customer number is "
    "{ID}. Thank you!",
    "To the office: {alike} I apply for the place in the evening course. {filler} You reach me by "
    "e-mail, {EMAIL}, or by phone, {PHONE}. {NAME}, {ADDRESS}",
    "Hi {OTHER}, {filler} could you send the photos to {EMAIL}? {alike} My old phone is broken, the new "
    "number is {PHONE}. See you, {FIRSTNAME}",
    "Minutes of the parents' evening. {filler} {NAME} takes care of the cake, {OTHER} of the drinks. "
    "{alike} Questions go to {EMAIL}.",
    "Subject: refund. {alike} The amount has not arrived yet. {filler} My membership is {ID}, in the "
    "name of {NAME}. {alike}",
    "Good morning, {filler} {alike} The parcel should go to {NAME}, {ADDRESS}, and not to the shop. {filler}",
    "Dear Ms {LASTNAME}, {filler} we confirm your appointment. {alike} If you cannot come, write to "
    "{hotmail}. {filler}",
    "{alike} {filler} {alike} Nothing else is new here. {filler}",
    "Note for the file: passport {ID} was shown by {NAME}, born in {town}. {filler} {alike} Call back under {PHONE}.",
)
ALIKES = (
    "The {LAST} Foundation pays for it.",
    "I read it in a book by {FIRST} {LAST}, who died in 1911.",
    "The bus stops at {street} every ten minutes.",
    "The parcel has the number {order}.",
    "Your hotline {hotline} is always busy.",
    "The firm {LAST} & Sons delivered the wrong colour.",
    "The invoice 20{two}-{order} is from March.",
    "See {hotmail} for the opening times.",
    "The model is called {FIRST} {two}, and it costs {two} euros.",
    "We met in the {LAST} Hall in {town}.",
    "The storm {FIRST} took the roof off.",
    "Paragraph {two} of the terms says so.",
)
FILLERS = (
    "It has been raining for days.",
    "I would be glad about a quick answer.",
    "The instructions were not easy to follow.",
    "Last week everything still worked.",
    "We are looking forward to the summer.",
    "The lift is out of order again.",
    "Somebody left an umbrella in room 12.",
    "That is all I know so far.",
    "The meeting takes place as planned.",
    "I attach the form as you asked.",
)
OFFICES = ("info", "office", "service")
FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Person:
    first: str
    last: str
    email: str
    phone: str
    address: str
    number: str


def spell_plainly(name: str) -> str:
    return name.lower().replace("ö", "o")


def draw_phone(rng: random.Random) -> str:
    a, b, c = rng.randint(100, 999), rng.randint(100, 999), rng.randint(1000, 9999)
    return rng.choice((f"0{a} {b}{c}", f"+49 {a} {b} {c}", f"({a}) {b}-{c}", f"0{a}/{b}{c}"))


def draw_person(rng: random.Random) -> Person:
    first, last = rng.choice(FIRST), rng.choice(LAST)
    plain = spell_plainly(last)
    email = rng.choice(
        (f"{first.lower()}.{plain}", f"{first[0].lower()}{plain}{rng.randint(1, 99)}", f"{plain}_{first.lower()}")
    )
    number = rng.choice((f"K-{rng.randint(10000, 99999)}", f"{rng.choice('XYZ')}{rng.randint(1000000, 9999999)}"))
    address = f"{rng.randint(1, 120)} {rng.choice(STREETS)}, {rng.randint(10000, 99999)} {rng.choice(TOWNS)}"
    return Person(first, last, f"{email}@{rng.choice(HOSTS)}", draw_phone(rng), address, number)


class Letter:
    """A text that grows, and its spans."""

    def __init__(self, person: Person, rng: random.Random) -> None:
        self.person, self.rng = person, rng
        self.text = ""
        self.spans: list[Span] = []

    def write(self, template: str) -> None:
        """Append the template with its fields filled."""
        end = 0
        for field in FIELD.finditer(template):
            self.text += template[end : field.start()]
            self.fill(field[1])
            end = field.end()
        self.text += template[end:]

    def fill(self, field: str) -> None:
        person, rng = self.person, self.rng
        personal = {
            "NAME": ("NAME", f"{person.first} {person.last}"),
            "FIRSTNAME": ("NAME", person.first),
            "LASTNAME": ("NAME", person.last),
            "OTHER": ("NAME", rng.choice(FIRST)),
            "EMAIL": ("EMAIL", person.email),
            "PHONE": ("PHONE", person.phone),
            "ADDRESS": ("ADDRESS", person.address),
            "ID": ("ID", person.number),
        }
        if field in ("alike", "filler"):
            self.write(rng.choice(ALIKES if field == "alike" else FILLERS))
        elif field in personal:
            kind, text = personal[field]
            self.spans.append(Span(len(self.text), len(self.text) + len(text), kind))
            self.text += text
        else:
            self.text += draw_alike(field, rng)


def draw_alike(field: str, rng: random.Random) -> str:
    """What looks like personal data."""
    return {
        "FIRST": rng.choice(FIRST),
        "LAST": rng.choice(LAST),
        "street": rng.choice(STREETS),
        "town": rng.choice(TOWNS),
        "order": str(rng.randint(100000, 9999999)),
        "hotline": f"0800 {rng.randint(100000, 999999)}",
        "hotmail": f"{rng.choice(OFFICES)}@{spell_plainly(rng.choice(LAST))}-shop.example",
        "two": str(rng.randint(10, 99)),
    }[field]


def write_letter(person: Person, rng: random.Random) -> Letter:
    letter = Letter(person, rng)
    letter.write(rng.choice(TEMPLATES))
    parts = 60 if rng.random() < LONG else rng.randint(0, 3)
    for _ in range(parts):
        letter.text += rng.choice((" ", "\n", "\n\n"))
        letter.write(rng.choice(("{filler} {alike}", "{filler}", "P.S. {alike}")))
    if parts > 3:
        letter.text += "\n"
        letter.write(rng.choice(TEMPLATES))
    return letter


def draw_rows(count: int, prefix: str, first: int, rng: random.Random) -> pl.DataFrame:
    """So many letters, one to three of each sender."""
    import polars as pl

    found: list[tuple[str, str, str]] = []
    sender = 0
    while len(found) < count:
        person, sender = draw_person(rng), sender + 1
        for _ in range(rng.randint(1, 3)):
            letter = write_letter(person, rng)
            cell = " ".join(span.to_item() for span in letter.spans) or NOTHING
            found.append((letter.text, cell, f"{prefix}-sender-{sender:04d}"))
    frame = pl.DataFrame(found[:count], schema=["text", "spans", "source"], orient="row")
    return frame.select(pl.Series("id", number_rows(prefix, first, count)), "text", "spans", "source")


def build_competition(
    input_dir: Path, hidden_dir: Path, seed: int = 0, train_rows: int = 500, hidden_rows: int = 40
) -> None:
    """Writes the competition's files to `input_dir` and the hidden test with its solution to `hidden_dir`."""
    rng = random.Random(seed)
    train = draw_rows(train_rows, "tr", 1, rng)
    public = draw_rows(PUBLIC_ROWS, "te", 1, rng)
    hidden = draw_rows(hidden_rows, "te", 1 + PUBLIC_ROWS, rng)
    write_competition(input_dir, hidden_dir, train, public, hidden, {"spans": NOTHING}, hide=("source",))
