"""Two answers to one problem, and who prefers which: rows of such a competition as questions of choice.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kaggle_llm.inference.choice import Question
from kaggle_llm.rankings import make_ranking, replace_rows

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


def normalise(shares: Sequence[float]) -> tuple[float, ...]:
    """Shares that were written with few digits sum to 1 again."""
    return tuple(share / sum(shares) for share in shares)


def fill_even(rows: pl.DataFrame, said: pl.DataFrame, labels: Sequence[str]) -> pl.DataFrame:
    """RANKING of all rows: those that `said` lacks, because the time was over, have all labels alike."""
    ids = rows["id"].to_list()
    even = [[-math.log(len(labels))] * len(labels)] * len(ids)
    return replace_rows(make_ranking(ids, [list(labels)] * len(ids), even), said)
