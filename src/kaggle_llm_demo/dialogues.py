"""Generates demo-dialogues: two or three people arrange, move or cancel something; who, what, when and where?

A thread is one plan of the same people: a chat that arranges it, and often a later one that moves or cancels it. What
was said last need not hold either: days, places and times are proposed in vain, and some belong to other stories.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm_demo.files import number_rows, write_competition

if TYPE_CHECKING:
    import polars as pl

NAME = "demo-dialogues"
PUBLIC_ROWS = 3
NAMES = (
    *("Ada", "Ben", "Carla", "Dmitri", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Keiko", "Lars", "Mira"),
    *("Nadia", "Oskar", "Petra", "Quentin", "Rosa", "Samir", "Tilda", "Umar", "Vera", "Wanda", "Xenia", "Yusuf", "Zoe"),
)
# What one does, as "shall we …?" and "they will …" say it, and where.
PLANS: dict[str, tuple[str, ...]] = {
    "have lunch": ("the noodle bar", "Marta's café", "the canteen", "the harbour grill"),
    "play badminton": ("the sports hall", "court 3", "the old gym"),
    "watch the match": ("the corner pub", "the community centre", "the fan club"),
    "go swimming": ("the lake", "the indoor pool", "the river beach"),
    "practise the presentation": ("the small meeting room", "the library", "room 204"),
    "repair the bicycle": ("the garage", "the bike kitchen", "the courtyard"),
    "study for the chemistry exam": ("the library", "the student lounge", "the reading room"),
    "see the new thriller": ("the Odeon", "the open-air cinema", "the Lux"),
    "pick up the rented van": ("the depot", "the station car park", "the north gate"),
    "rehearse with the choir": ("the music school", "the parish hall", "studio B"),
    "go climbing": ("the boulder hall", "the quarry", "the tower"),
    "buy a present for the boss": ("the market", "the bookshop", "the mall"),
    "plant tomatoes": ("the allotment", "the roof garden", "the school yard"),
    "taste cakes for the party": ("the bakery", "the pastry school", "the tea house"),
}
PLACES = tuple(place for places in PLANS.values() for place in places)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
TIMES = ("9:30", "10", "11:15", "noon", "1:30", "3", "4:45", "5:30", "6", "7:15", "8")
REASONS = (
    "the car broke down",
    "work takes longer than planned",
    "a child is ill",
    "the trains do not run",
    "the weather is awful",
    "there is a dentist's appointment",
    "the landlord comes to look at the heating",
    "somebody has to feed the horses",
)

OPENINGS = ("Hi {b}!", "Hey {b}, are you there?", "{b}, quick question.", "Good morning {b} :)", "Yo!", "Hello hello.")
GROUP_OPENINGS = ("Hi {b}, hi {c}!", "Hello you two.", "{b}, {c}, are you there?", "Good morning everybody :)")
ASKS = (
    "Do you want to {what} on {day}?",
    "Shall we {what} this {day}?",
    "I'd like to {what} on {day}. Are you in?",
    "We said we would {what} one day. How is {day}?",
)
YES = ("Sure!", "Sounds good.", "I'm in.", "Yes, why not.", "Great idea.", "Count me in!", "That works.")
OTHER_DAYS = (
    "{old} is bad for me. {new}?",
    "Not {old}, I work then. Can we do {new}?",
    "{new} suits me better than {old}.",
)
WHERES = ("Where do we meet?", "And where?", "Which place?", "Where exactly?")
SAID_PLACES = ("At {own}.", "Let's say {own}.", "I'd go for {own}.", "{own}, as always?")
OTHER_PLACES = (
    "{old} is closed that day. {new}?",
    "Oh no, not {old} again. What about {new}?",
    "{new} is nearer for me than {old}.",
)
WHENS = ("What time?", "When?", "And at what time?")
SAID_TIMES = ("{own}?", "At {own}.", "Around {own}.", "How about {own}?")
OTHER_TIMES = (
    "I'm not free at {old} yet, {new}?",
    "I can't at {old}. {new} works.",
    "Better {new}, I'm busy at {old}.",
)
WISHES = ("Could it be {new} instead?", "Or {new}?", "Would {new} be possible too?")
NOES = ("No, sorry, not {new}.", "{new} is no good for me.", "I can't, let's leave it as it is.", "Please not {new}.")
KEPT = ("Ok, as you said.", "Fine, no change then.", "Alright, then {own}.", "Never mind.")
CHATTER = (
    "By the way, my neighbour has a new dog.",
    "I slept so badly last night.",
    "Did you see the news? Crazy.",
    "My phone is at 5 %.",
    "I still owe you 12 euros, remind me.",
    "It's raining here again.",
    "Have you finished the book I lent you?",
    "Haha.",
    "My sister moves house on {day}, I'm dreading it.",
    "I waited at {place} for an hour yesterday, for nothing.",
    "The plumber wanted to come at {time} today, guess who didn't.",
    "Remember last {day}? We should do that again.",
)
GOODBYES = ("See you!", "Perfect, bye.", "Done.", "Looking forward to it.", "Ok :)", "Great.")
MOVES = (
    "About our plan to {what} at {place} on {day}: I can't make it at {time}, {reason}.",
    "Bad news, {reason}. So I can't {what} on {day} at {time}. {place} is still fine.",
    "We wanted to {what} at {place}, remember? {reason}, can we move it? I mean {day}, {time}.",
)
PROPOSALS = ("{day} at {time} instead?", "Would {day}, {time} be ok?", "Could we make it {day} at {time}?")
REFUSALS = ("Sorry, I'm away on {day}.", "{day} is full already.", "I can't do {day}, sorry.")
CALL_OFFS = (
    "I have to call it off, {reason}. So I can't {what} at {place} on {day}.",
    "I can't {what} on {day}: {reason}. Please tell them at {place}.",
    "I'm so sorry, {reason}. You have to {what} at {place} without me on {day}.",
)
PITIES = ("What a pity!", "Oh no. Another time then.", "No problem, take care.", "Ok, next month maybe.")
NO_DAYS = ("No, {day} is no better.", "Sorry, not {day} either.", "I don't know yet, rather not.")
ARRANGED = (
    "{all} will {what} at {place} on {day} at {time}.",
    "{all} are going to {what} on {day} at {time} at {place}.",
    "On {day} at {time} {all} will {what} at {place}.",
)
MOVED = (
    "{all} will {what} at {place} on {day} at {time} instead, because {reason}.",
    "Because {reason}, {all} will {what} at {place} on {day} at {time} instead.",
    "{all} move their plan to {what} at {place} to {day} at {time}, because {reason}.",
)
CANCELLED = (
    "{a} can't {what} with {others} at {place} on {day}, because {reason}.",
    "{a} cancels the plan to {what} with {others} at {place} on {day}, because {reason}.",
    "Because {reason}, {a} won't {what} with {others} at {place} on {day}.",
)


@dataclass(frozen=True)
class Plan:
    people: tuple[str, ...]
    what: str
    place: str
    day: str
    time: str
    reason: str = ""

    def fill(self, template: str, **facts: str) -> str:
        """The template with the plan's facts, those of `facts` first."""
        a, b, *more = self.people
        names = {"a": a, "b": b, "c": "".join(more), "others": " and ".join([b, *more]), "all": join_names(self.people)}
        own = {"what": self.what, "place": self.place, "day": self.day, "time": self.time, "reason": self.reason}
        return template.format_map(names | own | facts)


@dataclass(frozen=True)
class Slot:
    """One fact of a plan, and how people come to it."""

    asks: tuple[str, ...]
    says: tuple[str, ...]
    changes: tuple[str, ...]
    """Not {old}, but {new}."""
    values: tuple[str, ...]


TIME = Slot(WHENS, SAID_TIMES, OTHER_TIMES, TIMES)


class Chat:
    """Lines of the plan's people, who speak in turn."""

    def __init__(self, plan: Plan, rng: random.Random) -> None:
        self.plan, self.rng, self.lines = plan, rng, list[str]()
        self.turn = 0
        self.say(OPENINGS if len(plan.people) == 2 else GROUP_OPENINGS)
        self.turn = 0  # who opens goes on

    def say(self, phrases: Sequence[str], **facts: str) -> None:
        """The next person says one of the phrases, and now and then something that has nothing to do with it."""
        text = self.plan.fill(self.rng.choice(phrases), **facts)
        if self.rng.random() < 0.12:
            odd = {"day": self.rng.choice(DAYS), "time": self.rng.choice(TIMES), "place": self.rng.choice(PLACES)}
            text += " " + self.rng.choice(CHATTER).format_map(odd)
        self.lines.append(f"{self.plan.people[self.turn % len(self.plan.people)]}: {begin_sentences(text)}")
        self.turn += 1

    def other(self, values: Sequence[str], *known: str) -> str:
        return self.rng.choice([value for value in values if value not in known])

    def settle(self, slot: Slot, own: str) -> None:
        """They agree on `own`; another value was said first, or is wished for in vain, or neither."""
        self.say(slot.asks)
        other, course = self.other(slot.values, own), self.rng.random()
        if course < 0.35:
            self.say(slot.says, own=other)
            self.say(slot.changes, old=other, new=own)
        else:
            self.say(slot.says, own=own)
        if course > 0.75:
            self.say(WISHES, new=other)
            self.say(NOES, new=other)
            self.say(KEPT, own=own)
        else:
            self.say(YES)


def join_names(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def begin_sentences(text: str) -> str:
    """Capitals where a sentence begins."""
    return re.sub(r"(^|[.?!:] )([a-z])", lambda match: match[1] + match[2].upper(), text)


def write_arrangement(plan: Plan, rng: random.Random) -> list[str]:
    """The plan comes about."""
    chat = Chat(plan, rng)
    first = chat.other(DAYS, plan.day) if rng.random() < 0.5 else plan.day
    chat.say(ASKS, day=first)
    if first != plan.day:
        chat.say(OTHER_DAYS, old=first, new=plan.day)
    chat.say(YES)
    slots = [(Slot(WHERES, SAID_PLACES, OTHER_PLACES, PLANS[plan.what]), plan.place), (TIME, plan.time)]
    for slot, own in rng.sample(slots, 2):
        chat.settle(slot, own)
    chat.say(GOODBYES)
    return chat.lines


def write_move(before: Plan, plan: Plan, rng: random.Random) -> list[str]:
    """The plan of `before` gets another day and time; a first proposal may be refused."""
    chat = Chat(plan, rng)
    chat.say(MOVES, day=before.day, time=before.time)
    if rng.random() < 0.5:
        day = chat.other(DAYS, plan.day, before.day)
        chat.say(PROPOSALS, day=day, time=chat.other(TIMES, plan.time))
        chat.say(REFUSALS, day=day)
    chat.say(PROPOSALS)
    chat.say(YES)
    chat.say(GOODBYES)
    return chat.lines


def write_cancellation(plan: Plan, rng: random.Random) -> list[str]:
    """The first of the people cannot come; another day may be proposed in vain."""
    chat = Chat(plan, rng)
    chat.say(CALL_OFFS)
    if rng.random() < 0.5:
        day = chat.other(DAYS, plan.day)
        chat.say(WISHES, new=day)
        chat.turn = 0
        chat.say(NO_DAYS, day=day)
    chat.say(PITIES)
    chat.say(GOODBYES)
    return chat.lines


def draw_plan(rng: random.Random) -> Plan:
    what = rng.choice(list(PLANS))
    people = tuple(rng.sample(NAMES, rng.choice((2, 2, 3))))
    return Plan(people, what, rng.choice(PLANS[what]), rng.choice(DAYS), rng.choice(TIMES))


def draw_thread(rng: random.Random) -> Iterator[tuple[list[str], list[str]]]:
    """One or two chats of the same people: lines, and two references each."""
    plan = draw_plan(rng)
    yield write_arrangement(plan, rng), refer_to(plan, ARRANGED, rng)
    later = rng.random()
    if later > 0.6:
        return
    people = tuple(rng.sample(plan.people, len(plan.people)))
    before = replace(plan, people=people, reason=rng.choice(REASONS))
    if later < 0.25:
        yield write_cancellation(before, rng), refer_to(before, CANCELLED, rng)
        return
    day = rng.choice([day for day in DAYS if day != plan.day])
    moved = replace(before, day=day, time=rng.choice(TIMES))
    yield write_move(before, moved, rng), refer_to(moved, MOVED, rng)


def refer_to(plan: Plan, forms: Sequence[str], rng: random.Random) -> list[str]:
    """Two summaries, in other words."""
    return [begin_sentences(plan.fill(form)) for form in rng.sample(forms, 2)]


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
