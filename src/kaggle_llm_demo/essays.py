"""Generates demo-essays: pupils say whether their school should do something, and a teacher marks it from 1 to 6.

What counts is a clear opinion, arguments with real reasons, an example, an objection that is weighed, and an end.
Faults have different weights: who argues against the own opinion loses more than who chats about something else, and
this one more than who misspells a word. Pages are filled with words that say nothing, so length tells little. The same
arguments serve every question: marks of new questions can be learned.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm_demo import essay_words as words
from kaggle_llm_demo.files import number_rows, write_competition

if TYPE_CHECKING:
    import polars as pl

NAME = "demo-essays"
PUBLIC_ROWS = 3
TEST_PROPOSALS = 5  # the last ones: the test set asks other questions than train.csv
NOISE = 0.4  # of the teacher's mark
LOWEST, HIGHEST = 1, 6
WORTH = {
    **{"opinion": 0.7, "reason": 0.8, "claim": 0.2, "no reason": -0.2, "example": 0.4, "weighed": 0.9, "end": 0.6},
    **{"contradiction": -1.0, "contrary end": -0.8, "rude": -0.9, "off topic": -0.6, "repeated": -0.4},
    **{"vague": -0.1, "slip": -0.1},
}
START = 1.7  # of an empty answer, before anything counts
CLAIMS = (1, 3)  # of an answer, at least and at most
FILL = (  # what may fill the page, and the share of pupils who leave it out
    *(("vague", 0.5), ("vague", 0.7), ("off topic", 0.6), ("rude", 0.8), ("repeated", 0.9)),
)


@dataclass
class Essay:
    """An answer that grows, and its mark."""

    rng: random.Random
    skill: float
    """0 to 1: how likely a pupil does a thing well."""
    sentences: list[str] = field(default_factory=list)
    worth: float = START

    def add(self, kind: str, sentence: str) -> None:
        self.sentences.append(sentence)
        self.worth += WORTH[kind]

    def is_good(self, share: float) -> bool:
        """Whether the pupil does it well; share: of all pupils who do."""
        return self.rng.random() < self.skill ** (1 / share - 1)


def write_essay(is_for: bool, skill: float, style: float, rng: random.Random) -> Essay:
    """An answer with its mark, before noise. skill: in arguing; style: in writing."""
    essay = Essay(rng, skill)
    own, other = (words.FOR, words.AGAINST) if is_for else (words.AGAINST, words.FOR)
    if essay.is_good(0.8):
        essay.add("opinion", rng.choice(words.OPENINGS[is_for]))
    for claim in rng.sample(list(own), rng.randint(*CLAIMS)):
        argue(essay, claim, own)
    objection = rng.choice(list(other))
    if essay.is_good(0.4):
        essay.add("weighed", rng.choice(words.WEIGHED).format(objection, rng.choice(own[rng.choice(list(own))])))
    elif not essay.is_good(0.6):
        essay.add(
            "contradiction", f"{rng.choice(words.JOINTS).format(objection)}, because {rng.choice(other[objection])}."
        )
    pad(essay, style)
    if essay.is_good(0.6):
        essay.add("end", rng.choice(words.CLOSINGS[is_for]))
    elif not essay.is_good(0.6):
        essay.add("contrary end", rng.choice(words.CLOSINGS[not is_for]))
    misspell(essay, style)
    return essay


def argue(essay: Essay, claim: str, reasons: Mapping[str, Sequence[str]]) -> None:
    """An argument with its reason and perhaps an example, as a mere claim, or with words in a reason's place."""
    rng = essay.rng
    said = rng.choice(words.JOINTS).format(claim)
    if essay.is_good(0.55):
        essay.add("reason", f"{said}, because {rng.choice(reasons[claim])}.")
        if essay.is_good(0.3):
            essay.add("example", rng.choice(words.EXAMPLES).format(rng.choice(words.SEEN)))
    elif essay.is_good(0.5):
        essay.add("claim", f"{said}.")
    else:
        essay.add("no reason", f"{said}, because {rng.choice(words.EMPTY_REASONS)}.")


def pad(essay: Essay, style: float) -> None:
    """What fills the page, anywhere behind the first sentence."""
    rng, extra = essay.rng, Essay(essay.rng, style)
    kinds = {"vague": words.VAGUE, "off topic": words.OFF_TOPIC, "rude": words.RUDE, "repeated": essay.sentences}
    for kind, share in FILL:
        if kinds[kind] and not extra.is_good(share):
            extra.add(kind, rng.choice(kinds[kind]))
    for sentence in extra.sentences:
        essay.sentences.insert(rng.randint(min(1, len(essay.sentences)), len(essay.sentences)), sentence)
    essay.worth += extra.worth - START


def misspell(essay: Essay, style: float) -> None:
    """Slips: two letters of a word swapped."""
    writer = Essay(essay.rng, style)
    for number, sentence in enumerate(essay.sentences):
        if not writer.is_good(0.7):
            essay.sentences[number] = swap_letters(sentence, essay.rng)
            essay.worth += WORTH["slip"]


def swap_letters(sentence: str, rng: random.Random) -> str:
    """Two neighbouring letters of one longer word change places."""
    parts = sentence.split(" ")
    number = rng.choice([n for n, word in enumerate(parts) if len(word) > 3])
    word = parts[number]
    position = rng.randint(1, len(word) - 3)
    parts[number] = word[:position] + word[position + 1] + word[position] + word[position + 2 :]
    return " ".join(parts)


def mark(essay: Essay) -> int:
    """The teacher's mark, with noise."""
    return min(max(round(essay.worth + essay.rng.gauss(0, NOISE)), LOWEST), HIGHEST)


def draw_rows(count: int, prefix: str, first: int, proposals: Sequence[str], rng: random.Random) -> pl.DataFrame:
    """So many answers to questions about the proposals."""
    import polars as pl

    rows = []
    for _ in range(count):
        question = rng.choice(words.QUESTIONS).format(rng.choice(proposals))
        essay = write_essay(rng.random() < 0.5, rng.betavariate(1.5, 1.5), rng.betavariate(1.5, 1.5), rng)
        rows.append((question, " ".join(essay.sentences) or "…", str(mark(essay))))
    frame = pl.DataFrame(rows, schema=["question", "answer", "score"], orient="row")
    return frame.select(pl.Series("id", number_rows(prefix, first, count)), "question", "answer", "score")


def build_competition(
    input_dir: Path, hidden_dir: Path, seed: int = 0, train_rows: int = 600, hidden_rows: int = 60
) -> None:
    """Writes the competition's files to `input_dir` and the hidden test with its solution to `hidden_dir`."""
    rng = random.Random(seed)
    known, new = words.PROPOSALS[:-TEST_PROPOSALS], words.PROPOSALS[-TEST_PROPOSALS:]
    train = draw_rows(train_rows, "tr", 1, known, rng)
    public = draw_rows(PUBLIC_ROWS, "te", 1, new, rng)
    hidden = draw_rows(hidden_rows, "te", 1 + PUBLIC_ROWS, new, rng)
    write_competition(input_dir, hidden_dir, train, public, hidden, {"score": "3"})
