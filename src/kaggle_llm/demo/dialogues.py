"""Generates demo-dialogues: two or three people arrange, change or cancel something; who, what, when and where?

A thread is one plan of the same people: a chat that arranges it, and often a later one that changes or cancels it. What
was said first need not hold at the end, so a summary has to follow the talk.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.demo.files import number_rows, write_competition

if TYPE_CHECKING:
    import polars as pl

NAME = "demo-dialogues"
PUBLIC_ROWS = 3
NAMES = (
    *("Ada", "Ben", "Carla", "Dmitri", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Keiko", "Lars", "Mira"),
    *("Nadia", "Oskar", "Petra", "Quentin", "Rosa", "Samir", "Tilda", "Umar", "Vera", "Wanda", "Xenia", "Yusuf", "Zoe"),
)
# What one does, as "fancy … ?" and "they will …" say it, and where.
PLANS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("have lunch", ("the noodle bar", "Marta's café", "the canteen", "the harbour grill")),
    ("play badminton", ("the sports hall", "court 3", "the old gym")),
    ("watch the match", ("the corner pub", "Ben's flat", "the fan club")),
    ("go swimming", ("the lake", "the indoor pool", "the river beach")),
    ("practise the presentation", ("the small meeting room", "the library", "room 204")),
    ("repair the bicycle", ("the garage", "the bike kitchen", "the courtyard")),
    ("study for the chemistry exam", ("the library", "the student lounge", "the reading room")),
    ("see the new thriller", ("the Odeon", "the open-air cinema", "the Lux")),
    ("pick up the rented van", ("the depot", "the station car park", "the north gate")),
    ("rehearse with the choir", ("the music school", "the parish hall", "studio B")),
    ("go climbing", ("the boulder hall", "the quarry", "the tower")),
    ("buy a present for the boss", ("the market", "the bookshop", "the mall")),
    ("plant tomatoes", ("the allotment", "the roof garden", "the school yard")),
    ("taste cakes for the party", ("the bakery", "the pastry school", "the tea house")),
)
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
TIMES = ("9:30", "10", "11:15", "noon", "1:30", "3", "4:45", "5:30", "6", "7:15", "8")
REASONS = (
    "the car broke down",
    "work takes longer than planned",
    "a child is ill",
    "the train does not run",
    "the weather is awful",
    "the tickets are sold out",
    "there is a dentist's appointment",
)
OPENINGS = ("Hi {b}!", "Hey {b}, are you there?", "{b}, quick question.", "Good morning {b} :)", "Hello you two", "Yo")
ASKS = (
    "Do you want to {what} on {day}?",
    "Shall we {what} this {day}?",
    "I'd like to {what} on {day}. Are you in?",
    "We said we would {what} one day. How is {day}?",
)
YES = ("Sure!", "Sounds good.", "I'm in.", "Yes, why not.", "Great idea", "Count me in")
OTHER_DAYS = (
    "{old} is bad for me. {new}?",
    "Not {old}, I work then. Can we do {new}?",
    "{new} suits me better than {old}.",
)
WHERES = ("Where do we meet?", "And where?", "Which place?", "Where exactly?")
PLACES = ("At {place}.", "Let's say {place}.", "I'd go for {place}", "{place}, as always?")
OTHER_PLACES = (
    "{old} is closed that day. {new}?",
    "Oh no, not {old} again. What about {new}?",
    "{new} is nearer for me than {old}.",
)
WHENS = ("What time?", "When?", "And at what time?")
CLOCKS = ("{time}?", "At {time}.", "Around {time}", "How about {time}?")
OTHER_CLOCKS = (
    "{old} is too early for me, {new}?",
    "I can't at {old}. {new} works.",
    "Better {new}, I'm busy at {old}.",
)
CHATTER = (
    "By the way, my neighbour has a new dog.",
    "I slept so badly last night.",
    "Did you see the news? Crazy.",
    "My phone is at 5 %.",
    "I still owe you 12 euros, remind me.",
    "It's raining here again.",
    "Have you finished the book I lent you?",
    "haha",
)
GOODBYES = ("See you!", "Perfect, bye", "Done. See you then!", "Looking forward to it", "ok :)", "Great")
MOVES = (
    "About {day}: I can't make it at {time}, {reason}.",
    "Bad news, {reason}, so {day} at {time} won't work.",
    "Listen, {reason}. Can we move it? I mean {day}, {time}.",
)
PROPOSALS = ("{day} at {time} instead?", "Would {day}, {time} be ok?", "Could we make it {day} at {time}?")
REFUSALS = ("Sorry, I'm away on {day}.", "{day} is full already.", "I can't do {day}, sorry.")
CALL_OFFS = (
    "I have to call it off, {reason}.",
    "We have to cancel {day}: {reason}.",
    "I'm so sorry, I can't come on {day}, {reason}.",
)
PITIES = ("What a pity!", "Oh no. Another time then.", "No problem, take care", "Ok, next month maybe.")
ARRANGED = (
    "{all} will {what} at {place} on {day} at {time}.",
    "{all} are going to {what} on {day} at {time} at {place}.",
    "On {day} at {time} {all} will {what} at {place}.",
)
MOVED = (
    "{all} will {what} on {day} at {time} instead, because {reason}.",
    "Because {reason}, {all} will {what} on {day} at {time} instead.",
)
CANCELLED = (
    "{a} can't {what} with {others} on {day}, because {reason}.",
    "{a} cancels {day}: {all} won't {what}, because {reason}.",
)


@dataclass(frozen=True)
class Plan:
    people: tuple[str, ...]
    what: str
    place: str
    day: str
    time: str
    reason: str = ""

    def fill(self, template: str) -> str:
        a, *others = self.people
        names = {"a": a, "b": others[0], "others": " and ".join(others), "all": join_names(self.people)}
        return template.format(
            **names, what=self.what, place=self.place, day=self.day, time=self.time, reason=self.reason
        )


def join_names(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


class Writer:
    """One chat: lines of the people in turn."""

    def __init__(self, plan: Plan, rng: random.Random) -> None:
        self.plan, self.rng, self.lines = plan, rng, list[str]()
        self.turn = 0

    def say(self, phrases: tuple[str, ...], **facts: str) -> None:
        """The next person says one of the phrases, and now and then something that has nothing to do with it."""
        text = self.plan.fill(
            self.rng.choice(phrases).replace("{old}", facts.get("old", "")).replace("{new}", facts.get("new", ""))
        )
        if self.rng.random() < 0.15:
            text += " " + self.rng.choice(CHATTER)
        self.lines.append(f"{self.plan.people[self.turn % len(self.plan.people)]}: {text[0].upper()}{text[1:]}")
        self.turn += 1

    def other(self, values: tuple[str, ...] | list[str], own: str) -> str:
        return self.rng.choice([value for value in values if value != own])


def write_arrangement(plan: Plan, rng: random.Random) -> list[str]:
    """The plan comes about; each of its facts may be another one at first."""
    places = dict(PLANS)[plan.what]
    writer = Writer(plan, rng)
    writer.say(OPENINGS)
    first = writer.other(DAYS, plan.day) if rng.random() < 0.5 else plan.day
    writer.turn -= 1  # who opens goes on
    writer.plan = replace(plan, day=first)
    writer.say(ASKS)
    writer.plan = plan
    writer.say(YES) if first == plan.day else writer.say(OTHER_DAYS, old=first, new=plan.day)
    if first != plan.day:
        writer.say(YES)
    for asks, says, changes, own, values in (
        (WHERES, PLACES, OTHER_PLACES, plan.place, places),
        (WHENS, CLOCKS, OTHER_CLOCKS, plan.time, TIMES),
    ):
        writer.say(asks)
        value = writer.other(values, own) if rng.random() < 0.4 else own
        writer.plan = replace(plan, place=value, time=value)
        writer.say(says)
        writer.plan = plan
        if value != own:
            writer.say(changes, old=value, new=own)
    writer.say(YES)
    writer.say(GOODBYES)
    return writer.lines


def write_change(before: Plan, plan: Plan, rng: random.Random) -> list[str]:
    """The plan of `before` gets another day and time; a first proposal may be refused."""
    writer = Writer(replace(before, reason=plan.reason), rng)
    writer.say(OPENINGS)
    writer.turn -= 1
    writer.say(MOVES)
    writer.plan = plan
    if rng.random() < 0.5:
        writer.plan = replace(plan, day=writer.other(DAYS, plan.day), time=writer.other(TIMES, plan.time))
        writer.say(PROPOSALS)
        writer.say(REFUSALS)
        writer.plan = plan
    writer.say(PROPOSALS)
    writer.say(YES)
    writer.say(GOODBYES)
    return writer.lines


def write_cancellation(plan: Plan, rng: random.Random) -> list[str]:
    writer = Writer(plan, rng)
    writer.say(OPENINGS)
    writer.turn -= 1
    writer.say(CALL_OFFS)
    writer.say(PITIES)
    writer.say(GOODBYES)
    return writer.lines


def draw_plan(rng: random.Random) -> Plan:
    what, places = rng.choice(PLANS)
    people = tuple(rng.sample(NAMES, rng.choice((2, 2, 3))))
    return Plan(people, what, rng.choice(places), rng.choice(DAYS), rng.choice(TIMES), rng.choice(REASONS))


def draw_thread(rng: random.Random) -> Iterator[tuple[list[str], list[str]]]:
    """One or two chats of the same people: lines, and two references each."""
    plan = draw_plan(rng)
    yield write_arrangement(plan, rng), [plan.fill(one) for one in rng.sample(ARRANGED, 2)]
    later = rng.random()
    if later < 0.35:
        other = draw_plan(rng)
        moved = replace(
            plan, day=rng.choice([day for day in DAYS if day != plan.day]), time=other.time, reason=other.reason
        )
        yield write_change(plan, moved, rng), [moved.fill(one) for one in MOVED]
    elif later < 0.6:
        yield write_cancellation(plan, rng), [plan.fill(one) for one in CANCELLED]


def draw_rows(count: int, prefix: str, first: int, rng: random.Random) -> pl.DataFrame:
    """So many chats of as many threads as they take."""
    import polars as pl

    chats: list[tuple[str, str, str]] = []
    thread = 0
    while len(chats) < count:
        thread += 1
        for lines, references in draw_thread(rng):
            chats.append(("\n".join(lines), "\n".join(references), f"{prefix}-thread-{thread:04d}"))
    frame = pl.DataFrame(chats[:count], schema=["dialogue", "summary", "thread"], orient="row")
    return frame.select(pl.Series("id", number_rows(prefix, first, count)), "dialogue", "summary", "thread")


def build_competition(
    input_dir: Path, hidden_dir: Path, seed: int = 0, train_rows: int = 400, hidden_rows: int = 40
) -> None:
    """Writes the competition's files to `input_dir` and the hidden test with its solution to `hidden_dir`."""
    rng = random.Random(seed)
    train = draw_rows(train_rows, "tr", 1, rng)
    public = draw_rows(PUBLIC_ROWS, "te", 1, rng)
    hidden = draw_rows(hidden_rows, "te", 1 + PUBLIC_ROWS, rng)
    guess = {"summary": "They will meet."}
    write_competition(input_dir, hidden_dir, train, public, hidden, guess, hide=("thread",))
