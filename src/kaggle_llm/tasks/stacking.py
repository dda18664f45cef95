"""Stacking: the answers of other runs (config.members) as columns of numbers beside a model's own features.

In training and CV they are the runs' out-of-fold answers; in a bundle each run answers in its own process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kaggle_llm.competition.rankings import answer_columns, is_values, read_rows, select_rows
from kaggle_llm.inference.run import Run, add_member, ask_members, find_member

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.tasks.heads import HeadSettings


ROUNDING = 1e-9  # of a mean: equal numbers have a standard deviation of 1e-16 of theirs


@dataclass(frozen=True)
class ColumnScales:
    """means and scales [columns]: of the training rows."""

    means: np.ndarray
    scales: np.ndarray

    def standardise(self, columns: np.ndarray) -> np.ndarray:
        """(column − mean) / scale; 0 where a member gave no answer (NaN)."""
        return np.nan_to_num((columns - self.means) / self.scales, nan=0.0)


def fit_scales(columns: np.ndarray) -> ColumnScales:
    """Mean and standard deviation of each column, of the rows that have one; 1 where all have the same number."""
    means, deviations = np.nanmean(columns, axis=0), np.nanstd(columns, axis=0)
    return ColumnScales(means, np.where(deviations > ROUNDING * abs(means), deviations, 1.0))


def stack_rows(
    rows: pl.DataFrame, recorded: Mapping[str, pl.DataFrame], head: HeadSettings
) -> tuple[pl.DataFrame, np.ndarray | None]:
    """The training rows that all members answered out of fold, and their columns; without members all rows, and None.

    Raises ValueError where no row is left: the members validated one fold only.
    """
    import polars as pl

    if not recorded:
        return rows, None
    for answers in recorded.values():
        rows = rows.filter(pl.col("id").is_in(answers["id"].to_list()))
    if not rows.height:
        raise ValueError(
            f"{', '.join(recorded)} answered no training row out of fold: train them with two folds or more, such as "
            f"folds.validate=null"
        )
    ids = rows["id"].to_list()
    frames = [own.select(answer_columns(own)) for own in recorded.values()]
    answers = pl.concat([add_member(select_rows(own, ids), number) for number, own in enumerate(frames)])
    return rows, join_columns(ids, answers, len(recorded), head)


def ask_columns(
    rows: pl.DataFrame, run: Run, head: HeadSettings, answer: Callable[[np.ndarray], pl.DataFrame]
) -> np.ndarray | None:
    """The columns of `rows`, asked of config.members one after the other; None without members.

    answer: columns, NaN where a member has not answered yet → predict.py's scores. They are offered, and the rows of
    which they are the least certain are asked first.
    """
    count = len(run.config.members)
    if not count:
        return None

    def join(answers: pl.DataFrame) -> np.ndarray:
        return join_columns(rows["id"].to_list(), answers, count, head)

    def combine(answers: pl.DataFrame) -> pl.DataFrame:
        scored = answer(join(answers))
        return scored if run.decision is None else run.decide(scored)  # in CV nothing is fitted yet

    members = [find_member(run, number) for number in range(count)]
    return join(ask_members(run, rows, members, combine, lambda answers: run.offer(answer(join(answers)))))


def join_columns(ids: Sequence[str], answers: pl.DataFrame, members: int, head: HeadSettings) -> np.ndarray:
    """[ids, members · columns]: each member's numbers, or `read_labels` of its labels; NaN where it gave no answer.

    answers: RANKINGs or VALUES with the members' numbers in the column `member`.
    """
    numbers = is_values(answers)
    count = len(head.targets) if numbers else 1 if head.levels else len(head.labels)
    columns = np.full((len(ids), members, count), np.nan)
    position = {row: index for index, row in enumerate(ids)}
    for (member,), own in answers.group_by("member", maintain_order=True):
        for row, scores in read_rows(own).items():
            columns[position[row], member] = list(scores.values()) if numbers else read_labels(scores, head)
    return columns.reshape(len(ids), -1)


def read_labels(scores: Mapping[str, float], head: HeadSettings) -> np.ndarray:
    """The log-probabilities of the labels, the softmax of the scores; of levels the mean one by these probabilities.

    A label that the answer lacks has one less than its lowest score: a member may say its first label alone.
    """
    from scipy.special import log_softmax

    if not scores:
        return np.full(1 if head.levels else len(head.labels), np.nan)
    lacking = min(scores.values()) - 1
    logs: np.ndarray = log_softmax([scores.get(label, lacking) for label in head.labels])
    return np.array([np.exp(logs) @ np.arange(len(logs))]) if head.levels else logs
