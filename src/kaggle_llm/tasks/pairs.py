"""Which of two answers is preferred: rows of such a competition as questions of choice.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kaggle_llm.competition.rankings import make_ranking, share_labels
from kaggle_llm.engines.engine import Engine
from kaggle_llm.engines.prompts import Prompter, TokenGroup
from kaggle_llm.inference.budget import Budget
from kaggle_llm.tasks.choice import OrderSettings, Question, list_examples, rank_options

if TYPE_CHECKING:
    import polars as pl


@dataclass
class PairSettings(OrderSettings):
    answers: list[str] = field(default_factory=lambda: ["answer_a", "answer_b"])
    """The columns of the answers, in the order of their labels; prompt.candidate shows each as {text}."""


def make_pair_questions(
    rows: pl.DataFrame, labels: Sequence[str], answers: Sequence[str], truth: pl.DataFrame | None = None
) -> list[Question]:
    """A question for each row. labels: one for each answer, then such as a tie. answers: the columns that hold them.

    truth: in training, the right items, with `shares` where there are votes. Rows with equal or empty answers are asked
    like others, and reported.
    """
    import polars as pl

    same = rows.filter(pl.concat_list(pl.col(list(answers))).list.n_unique() < len(answers))
    empty = rows.filter(pl.any_horizontal(pl.col(list(answers)).str.strip_chars() == ""))
    for fault, faulty in (("answers that are the same", same), ("an empty answer", empty)):
        if faulty.height:
            print(f"{faulty.height} row(s) with {fault}, first {faulty['id'].head(3).to_list()}", flush=True)
    targets = {} if truth is None else share_labels(truth, labels)
    return [
        Question(
            row,
            tuple(labels),
            tuple({"text": row[answer]} for answer in answers),
            targets.get(row["id"]),
        )
        for row in rows.iter_rows(named=True)
    ]


def rank_pairs(
    rows: pl.DataFrame,
    labels: Sequence[str],
    prompter: Prompter,
    engine: Engine,
    settings: PairSettings,
    budget: Budget,
    on_progress: Callable[[pl.DataFrame], None],
) -> pl.DataFrame:
    """`choice.rank_options` on the rows' pairs."""
    return rank_options(
        make_pair_questions(rows, labels, settings.answers), prompter, engine, settings, budget, on_progress
    )


def list_pair_examples(
    rows: pl.DataFrame,
    truth: pl.DataFrame,
    labels: Sequence[str],
    prompter: Prompter,
    settings: PairSettings,
    seed: int,
) -> list[TokenGroup]:
    """`choice.list_examples` on the rows' pairs, in the orders of prediction."""
    questions = make_pair_questions(rows, labels, settings.answers, truth)
    return list_examples(questions, prompter, settings.orders, shuffle=False, seed=seed)


def rank_even(rows: pl.DataFrame, labels: Sequence[str]) -> pl.DataFrame:
    """RANKING with the same score for all labels of every row."""
    ids = rows["id"].to_list()
    even = [[-math.log(len(labels))] * len(labels)] * len(ids)
    return make_ranking(ids, [list(labels)] * len(ids), even)
