"""Two answers to one problem, and who prefers which: rows of such a competition as questions of choice.py."""

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


def make_pairs(rows: pl.DataFrame, labels: Sequence[str], shares: Sequence[str] = ()) -> list[Question]:
    """A question of each row. labels: of the first answer, of the second, and of a tie.

    shares: columns with how much each label is right, in training. Pairs that say little are reported, not special: of
    equal answers, asked in both orders, none is preferred.
    """
    same = rows.filter(rows[ANSWERS[0]] == rows[ANSWERS[1]])
    empty = rows.filter((rows[ANSWERS[0]].str.strip_chars() == "") | (rows[ANSWERS[1]].str.strip_chars() == ""))
    for what, found in (("two answers that are the same", same), ("an empty answer", empty)):
        if found.height:
            print(f"{found.height} row(s) with {what}, first {found['id'].head(3).to_list()}", flush=True)
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
    """`rank_options` of the rows' pairs."""
    return rank_options(make_pairs(rows, labels), prompter, engine, settings, budget, on_progress)


def list_pair_examples(
    rows: pl.DataFrame, labels: Mapping[str, str], prompter: Prompter, settings: OrderSettings, seed: int
) -> list[TokenGroup]:
    """`list_examples` of the rows' pairs in the orders that prediction asks. labels: label → its column of shares."""
    pairs = make_pairs(rows, list(labels), list(labels.values()))
    return list_examples(pairs, prompter, settings.orders, shuffle=False, seed=seed)


def normalise(shares: Sequence[float]) -> tuple[float, ...]:
    """Shares that were written with few digits sum to 1 again."""
    return tuple(share / sum(shares) for share in shares)


def rank_even(rows: pl.DataFrame, labels: Sequence[str]) -> pl.DataFrame:
    """RANKING of all rows with all labels alike."""
    ids = rows["id"].to_list()
    even = [[-math.log(len(labels))] * len(labels)] * len(ids)
    return make_ranking(ids, [list(labels)] * len(ids), even)
