"""Which of two answers is preferred: rows of such a competition as questions of choice.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.engines.engine import Engine
from kaggle_llm.engines.prompts import Prompter, TokenGroup
from kaggle_llm.inference.budget import Budget
from kaggle_llm.tasks.choice import OrderSettings, Question, list_examples, rank_options

if TYPE_CHECKING:
    import polars as pl

ANSWERS = ("answer_a", "answer_b")


def make_pair_questions(rows: pl.DataFrame, labels: Sequence[str], shares: Sequence[str] = ()) -> list[Question]:
    """A question for each row. labels: for the first answer, the second, and a tie.

    shares: in training, columns with the share of each label. Rows with equal or empty answers are asked like others,
    and reported.
    """
    same = rows.filter(rows[ANSWERS[0]] == rows[ANSWERS[1]])
    empty = rows.filter((rows[ANSWERS[0]].str.strip_chars() == "") | (rows[ANSWERS[1]].str.strip_chars() == ""))
    for fault, faulty in (("two answers that are the same", same), ("an empty answer", empty)):
        if faulty.height:
            print(f"{faulty.height} row(s) with {fault}, first {faulty['id'].head(3).to_list()}", flush=True)
    return [
        Question(
            row,
            tuple(labels),
            tuple({"text": row[answer]} for answer in ANSWERS),
            normalise([float(row[share]) for share in shares]) if shares else None,
        )
        for row in rows.iter_rows(named=True)
    ]


def rank_pairs(
    rows: pl.DataFrame,
    labels: Sequence[str],
    prompter: Prompter,
    engine: Engine,
    settings: OrderSettings,
    budget: Budget,
    on_progress: Callable[[pl.DataFrame], None],
) -> pl.DataFrame:
    """`choice.rank_options` on the rows' pairs."""
    return rank_options(make_pair_questions(rows, labels), prompter, engine, settings, budget, on_progress)


def list_pair_examples(
    rows: pl.DataFrame, labels: Mapping[str, str], prompter: Prompter, settings: OrderSettings, seed: int
) -> list[TokenGroup]:
    """`choice.list_examples` on the rows' pairs, in the orders of prediction. labels: label → its column of shares."""
    questions = make_pair_questions(rows, list(labels), list(labels.values()))
    return list_examples(questions, prompter, settings.orders, shuffle=False, seed=seed)


def normalise(shares: Sequence[float]) -> tuple[float, ...]:
    """Shares scaled to sum to 1: rounded ones do not."""
    return tuple(share / sum(shares) for share in shares)


def rank_even(rows: pl.DataFrame, labels: Sequence[str]) -> pl.DataFrame:
    """RANKING with the same score for all labels of every row."""
    ids = rows["id"].to_list()
    even = [[-math.log(len(labels))] * len(labels)] * len(ids)
    return make_ranking(ids, [list(labels)] * len(ids), even)
