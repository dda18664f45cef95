"""Generates demo-open-book: an encyclopedia of made-up places, species and machines, and questions that it answers.

Articles come in families of look-alikes that share a name and some facts. Wrong options are what the look-alikes'
articles say of the same thing, what the same article says of another one, and any others: who has not
read the right article can only guess, and a value that stands in it is not enough to be right.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm_demo.files import number_rows, write_competition
from kaggle_llm_demo.open_book_facts import KINDS, WORDS, Fact, Kind

if TYPE_CHECKING:
    import polars as pl

NAME = "demo-open-book"
PUBLIC_ROWS = 3
LETTERS = ("A", "B", "C", "D", "E")
FAMILY = 3  # articles that share a name
ROWS = 16  # questions a family, of about 24 that it answers
UNASKED = 0.15  # share of the articles that no training row asks about
SHARED = 0.25  # share of the facts that look-alikes have in common
STARTS = ("b", "br", "d", "dr", "g", "gr", "h", "k", "l", "m", "n", "p", "r", "s", "st", "t", "tr", "v")
VOWELS = ("a", "e", "i", "o", "u", "ei", "au")
MIDDLES = ("l", "m", "n", "r", "s", "th")
ENDS = ("a", "el", "en", "in", "is", "or", "um", "ur", "ey", "wick")
CONFUSED = (
    "See also: {other}. {told}",
    "Not to be confused with: {other}. {told}",
    "Another article is on its namesake: {told}",
)


@dataclass
class Article:
    id: str
    name: str
    kind: Kind
    facts: dict[str, str]
    """Fact → value."""
    asked: list[Fact]
    """What its text tells and its look-alikes have otherwise."""
    text: str = ""


@dataclass(frozen=True)
class Exercise:
    """A question and its options, the right one first."""

    article: Article
    question: str
    options: tuple[str, ...]


def draw_stem(rng: random.Random) -> str:
    return "".join(rng.choice(part) for part in (STARTS, VOWELS, MIDDLES, STARTS, ENDS))


def draw_value(values: str, rng: random.Random) -> str:
    """A value of what Fact.values says."""
    if values in WORDS:
        return rng.choice(WORDS[values])
    if values == "year":
        return str(rng.randint(1402, 1948))
    if values == "name":
        return draw_stem(rng).capitalize()
    if values == "person":
        return f"{draw_stem(rng).capitalize()} {draw_stem(rng).capitalize()}"
    span, unit = values.split()
    low, high = span.split("-")
    return f"{rng.randint(int(low), int(high))} {unit}"


def draw_different(values: str, count: int, rng: random.Random) -> list[str]:
    drawn: dict[str, None] = {}
    while len(drawn) < count:
        drawn[draw_value(values, rng)] = None
    return list(drawn)


def tell(article: Article, fact: Fact, rng: random.Random, named: bool = False) -> str:
    """A sentence that tells the fact. named: it says of whom."""
    phrases = [phrase for phrase in fact.told if "{it}" in phrase] if named else fact.told
    said = rng.choice(phrases).format(it=article.name, value=article.facts[fact.name])
    return said[0].upper() + said[1:]


def write_text(article: Article, told: list[Fact], others: list[Article], rng: random.Random) -> str:
    """The facts in any order, with fillers and a word about a look-alike among them."""
    sentences = [tell(article, fact, rng) for fact in told]
    sentences += rng.sample(article.kind.fillers, rng.randint(1, 3))
    other = rng.choice(others)
    sentences.append(rng.choice(CONFUSED).format(other=other.name, told=tell(other, rng.choice(told), rng, named=True)))
    rng.shuffle(sentences)
    intro = rng.choice(article.kind.intros).format(it=article.name)
    return " ".join([intro[0].upper() + intro[1:], *sentences])


def draw_family(number: int, rng: random.Random) -> list[Article]:
    """Look-alikes: some facts are the same in all of them, the others different in each."""
    kind, stem = KINDS[number % len(KINDS)], draw_stem(rng).capitalize()
    different = [fact for fact in kind.facts if rng.random() >= SHARED]
    facts: list[dict[str, str]] = [{} for _ in range(FAMILY)]
    for fact in kind.facts:
        count = FAMILY if fact in different else 1
        values = draw_different(fact.values, count, rng) * (FAMILY // count)
        for own, value in zip(facts, values, strict=True):
            own[fact.name] = value
    names = [title.format(stem=stem) for title in rng.sample(kind.titles, FAMILY)]
    ids = [f"art{number * FAMILY + n:04d}" for n in range(FAMILY)]
    family = [Article(i, name, kind, own, []) for i, name, own in zip(ids, names, facts, strict=True)]
    for article in family:
        told = [fact for fact in kind.facts if rng.random() < 0.9]
        article.asked = [fact for fact in told if fact in different]
        article.text = write_text(article, told, [other for other in family if other is not article], rng)
    return family


def draw_exercises(family: list[Article], rng: random.Random) -> list[Exercise]:
    """All questions that a family answers."""
    return [
        Exercise(article, rng.choice(fact.asked).format(it=article.name), draw_options(article, fact, family, rng))
        for article in family
        for fact in article.asked
    ]


def draw_options(article: Article, fact: Fact, family: list[Article], rng: random.Random) -> tuple[str, ...]:
    """The right one, the look-alikes', one of the same article about something else, and new ones."""
    alike = [member.facts[fact.name] for member in family]
    own = [article.facts[other.name] for other in article.kind.facts if other.values == fact.values]
    right = article.facts[fact.name]
    options = dict.fromkeys([right, *alike, *rng.sample(own, len(own))[:2]])
    while len(options) < len(LETTERS):
        options[draw_value(fact.values, rng)] = None
    return tuple(options)[: len(LETTERS)]


def make_rows(exercises: list[Exercise], prefix: str, first: int, rng: random.Random) -> pl.DataFrame:
    """The exercises with their options in any order."""
    import polars as pl

    rows = []
    for exercise in exercises:
        options = rng.sample(exercise.options, len(LETTERS))
        letter = LETTERS[options.index(exercise.options[0])]
        rows.append((exercise.question, *options, letter, exercise.article.id))
    frame = pl.DataFrame(rows, schema=["question", *LETTERS, "answer", "article"], orient="row")
    return frame.select(pl.Series("id", number_rows(prefix, first, len(rows))), *frame.columns)


def draw_more(first: int, count: int, seed: int) -> list[Article]:
    """`count` or a few more articles of families from the number `first` on."""
    rng = random.Random(f"{seed} more")
    families = [draw_family(first + number, rng) for number in range(-(-count // FAMILY))]
    return [article for family in families for article in family]


def build_competition(
    input_dir: Path, hidden_dir: Path, seed: int = 0, train_rows: int = 600, hidden_rows: int = 40, articles: int = 0
) -> None:
    """Writes the competition's files to `input_dir` and the hidden test with its solution to `hidden_dir`.

    articles: at least so many, by families that nothing is asked about.
    """
    import polars as pl

    rng = random.Random(seed)
    asked = hidden_rows + PUBLIC_ROWS
    families = [draw_family(number, rng) for number in range(max(8, -(-(train_rows + asked) // ROWS)))]
    told = [article for family in families for article in family]
    unasked = {article.id for article in rng.sample(told, round(UNASKED * len(told)))}
    exercises = [exercise for family in families for exercise in draw_exercises(family, rng)]
    rng.shuffle(exercises)
    known = [exercise for exercise in exercises if exercise.article.id not in unasked]
    train, rest = known[:train_rows], known[train_rows:]
    new = [exercise for exercise in exercises if exercise.article.id in unasked][: asked // 2]
    tested = rng.sample([*new, *rest[: asked - len(new)]], asked)
    rows = make_rows(tested, "te", 1, rng)
    told += draw_more(len(families), articles - len(told), seed)
    table = [(article.id, article.name[0].upper() + article.name[1:], article.text) for article in told]
    write_competition(
        input_dir,
        hidden_dir,
        make_rows(train, "tr", 1, rng),
        rows.head(PUBLIC_ROWS),
        rows.tail(hidden_rows),
        {"answer": " ".join(LETTERS[:3])},
        hide=("article",),
        articles=pl.DataFrame(table, schema=["article_id", "title", "text"], orient="row"),
    )
