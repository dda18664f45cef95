"""Generates the demo competition: which misconception led to this wrong answer?

Each row is a problem drawn from the catalogue of skills. Some misconceptions never occur in train, so that a
model has to find them by their text.
"""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm_demo import (
    algebra_skills,
    data_skills,
    decimal_skills,
    fraction_skills,
    measure_skills,
    number_skills,
)
from kaggle_llm_demo.files import number_rows, write_competition
from kaggle_llm_demo.skills import Mistake, Problem, Skill, draw_problem

if TYPE_CHECKING:
    import polars as pl

NAME = "demo-misconceptions"
SKILLS: tuple[Skill, ...] = (
    *number_skills.SKILLS,
    *decimal_skills.SKILLS,
    *fraction_skills.SKILLS,
    *data_skills.SKILLS,
    *algebra_skills.SKILLS,
    *measure_skills.SKILLS,
)
FREQUENCIES: dict[str, float] = {
    "stops early": 8,
    "leaves out": 5,
    "wrong operation": 2,
    "swaps": 1,
    "separate parts": 1,
    "wrong rule": 1,
}
UNSEEN_MISTAKES = 0.15  # the share of all mistakes that never occur in train
UNSEEN_ROWS = 0.35  # the share of the hidden rows that are about those mistakes
PUBLIC_ROWS = 3
PREDICTIONS = 25
MAXIMUM_REPEATS = 1000


@dataclass(frozen=True)
class Row:
    skill: Skill
    problem: Problem
    mistake: Mistake

    @property
    def question(self) -> str:
        """Under its heading, as on a worksheet: so difficulty is that of telling a topic's mistakes apart."""
        return f"{self.skill.name[0].upper()}{self.skill.name[1:]}. {self.problem.question}"


@dataclass
class Sampler:
    """Draws rows none of which has the question and the wrong answer of an earlier one."""

    rng: random.Random
    drawn: set[tuple[str, str]] = field(default_factory=set)

    def rows(self, count: int, allowed: Iterable[Mistake]) -> list[Row]:
        texts = {mistake.text for mistake in allowed}
        choices = [(skill, [mistake for mistake in skill.mistakes if mistake.text in texts]) for skill in SKILLS]
        possible = [(skill, mistakes) for skill, mistakes in choices if mistakes]
        return [self._row(possible) for _ in range(count)]

    def _row(self, possible: list[tuple[Skill, list[Mistake]]]) -> Row:
        for _ in range(MAXIMUM_REPEATS):
            skill, mistakes = self.rng.choice(possible)
            weights = [FREQUENCIES[mistake.kind] for mistake in mistakes]
            mistake = self.rng.choices(mistakes, weights)[0]
            problem = draw_problem(skill, mistake, self.rng)
            pair = (problem.question, problem.wrong_answer)
            if pair not in self.drawn:
                self.drawn.add(pair)
                return Row(skill, problem, mistake)
        raise ValueError(f"every one of {MAXIMUM_REPEATS} drawn rows occurred before: too many rows are asked for")


def all_mistakes() -> list[Mistake]:
    return [mistake for skill in SKILLS for mistake in skill.mistakes]


def choose_unseen(rng: random.Random) -> list[Mistake]:
    """The mistakes kept out of train, at most one for each skill."""
    count = min(round(UNSEEN_MISTAKES * len(all_mistakes())), len(SKILLS))
    return [rng.choice(skill.mistakes) for skill in rng.sample(SKILLS, count)]


def assign_ids(rng: random.Random) -> dict[str, str]:
    """Each mistake's id by its text, in a shuffled order so that an id tells nothing about the topic."""
    texts = [mistake.text for mistake in all_mistakes()]
    rng.shuffle(texts)
    return {text: f"M{number:03d}" for number, text in enumerate(texts, start=1)}


def build_competition(
    input_dir: Path, hidden_dir: Path, seed: int = 0, train_rows: int = 600, hidden_rows: int = 40
) -> None:
    """Writes the competition's files to `input_dir` and the hidden test with its solution to `hidden_dir`."""
    import polars as pl

    rng = random.Random(seed)
    ids = assign_ids(rng)
    unseen = choose_unseen(rng)
    sampler = Sampler(rng)
    train = sampler.rows(train_rows, (mistake for mistake in all_mistakes() if mistake not in unseen))
    seen = [row.mistake for row in train]
    public = sampler.rows(PUBLIC_ROWS, seen)
    unseen_rows = math.ceil(UNSEEN_ROWS * hidden_rows)
    hidden = sampler.rows(unseen_rows, unseen) + sampler.rows(hidden_rows - unseen_rows, seen)
    rng.shuffle(hidden)

    write_competition(
        input_dir,
        hidden_dir,
        to_frame(train, ids, "tr", 1),
        to_frame(public, ids, "te", 1),
        to_frame(hidden, ids, "te", 1 + PUBLIC_ROWS),
        guess={"misconception_id": " ".join(list(ids.values())[:PREDICTIONS])},
        misconceptions=pl.DataFrame({"misconception_id": list(ids.values()), "text": list(ids)}),
    )


def to_frame(rows: list[Row], ids: dict[str, str], prefix: str, first: int) -> "pl.DataFrame":
    import polars as pl

    return pl.DataFrame(
        {
            "id": number_rows(prefix, first, len(rows)),
            "question": [row.question for row in rows],
            "correct_answer": [row.problem.correct_answer for row in rows],
            "wrong_answer": [row.problem.wrong_answer for row in rows],
            "misconception_id": [ids[row.mistake.text] for row in rows],
        }
    )
