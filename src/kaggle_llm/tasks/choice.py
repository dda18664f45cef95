"""Questions with several options, answered by letter, in several orders so that no position has an advantage.

Training (`list_examples`) and prediction (`rank_options`) use the same prompts.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.engines.engine import Engine
from kaggle_llm.engines.prompts import Prompter, TokenGroup
from kaggle_llm.inference.budget import Budget

if TYPE_CHECKING:
    import polars as pl

ROWS_A_CHUNK = 64  # at most so many where time is short: the budget is checked between chunks
Order = tuple[int, ...]


@dataclass
class OrderSettings:
    orders: Literal["given", "both", "rotations"] = "both"
    """given: one order. both: that and its reverse. rotations: each option once at each position."""
    mean: Literal["log", "probability"] = "log"
    """Mean over orders: of log-probabilities (a geometric mean) or of probabilities."""


@dataclass(frozen=True)
class Question:
    """A row and its options."""

    row: Mapping[str, Any]
    names: tuple[str, ...]
    """Items of the ranking: one for each option, then one for each of prompt.others."""
    options: tuple[Mapping[str, Any], ...]
    """Texts of each option, for prompt.candidate."""
    target: tuple[float, ...] | None = None
    """Share of the right answer for each name; sums to 1. None in prediction."""


def list_orders(count: int, how: str) -> list[Order]:
    """Orders of `count` options: order[position] = index of the option."""
    given = tuple(range(count))
    if how == "given" or count < 2:
        return [given]
    if how == "both":
        return [given, given[::-1]]
    return [given[n:] + given[:n] for n in range(count)]


def shuffle_orders(count: int, how: str, rng: random.Random) -> list[Order]:
    """`list_orders` of options that were shuffled first: for training on lists, whose order means nothing."""
    shuffled = rng.sample(range(count), count)
    return [tuple(shuffled[i] for i in order) for order in list_orders(count, how)]


def to_positions(values: Sequence[float], order: Order) -> list[float]:
    """Values in the order of the names → in the order shown; those of prompt.others stay at the end."""
    return [values[i] for i in order] + list(values[len(order) :])


def to_names(values: np.ndarray, order: Order) -> np.ndarray:
    """The inverse of `to_positions`, for an array [names]."""
    named = np.array(values, dtype=float)
    named[list(order)] = values[: len(order)]
    return named


def list_examples(
    questions: Sequence[Question], prompter: Prompter, how: str, shuffle: bool, seed: int
) -> list[TokenGroup]:
    """Training examples for ChoiceTask (form labels): every question in every order of `how`.

    shuffle: shuffle the options first (lists of candidates, not pairs). Raises ValueError where the questions have
    different numbers of options or no target.
    """
    check_questions(questions, prompter)
    rng = random.Random(seed)
    examples = []
    for question in questions:
        if question.target is None:
            raise ValueError(f"row {question.row.get('id')!r} has no target to train on: leave it out")
        count = len(question.options)
        for order in shuffle_orders(count, how, rng) if shuffle else list_orders(count, how):
            prompt = prompter.listing(question.row, [question.options[i] for i in order])
            examples.append(TokenGroup(prompt, [()], tuple(to_positions(question.target, order))))
    prompter.report_cuts()
    return examples


def rank_options(
    questions: Sequence[Question],
    prompter: Prompter,
    engine: Engine,
    settings: OrderSettings,
    budget: Budget,
    on_progress: Callable[[pl.DataFrame], None] | None = None,
) -> pl.DataFrame:
    """RANKING of the questions' names; scores are log-probabilities over them, averaged over orders.

    All questions are asked in the given order first, then in the others, the most uncertain ones first. Questions that
    the budget cut are missing; where it cut only the other orders, the first order's scores count. on_progress: called
    once with the RANKING by the first order.
    """
    check_questions(questions, prompter)
    labels = answer_labels(questions, prompter)
    first, *others = list_orders(len(questions[0].options) if questions else 0, settings.orders)
    scores: dict[int, list[np.ndarray]] = {}

    def ask(chunk: Sequence[int], orders: Sequence[Order]) -> None:
        asked = [(i, order) for i in chunk for order in orders]
        prompts = [prompter.listing(questions[i].row, [questions[i].options[j] for j in order]) for i, order in asked]
        for (i, order), logs in zip(asked, engine.choices(prompts, labels), strict=True):
            scores.setdefault(i, []).append(to_names(logs - np.logaddexp.reduce(logs), order))

    for chunk in budget.take(budget.split(range(len(questions)), ROWS_A_CHUNK), "choice"):
        ask(chunk, [first])
    if others and len(scores) == len(questions):
        if on_progress:
            on_progress(rank_scored(questions, scores, settings))
        uncertain = sorted(scores, key=lambda i: _margin(scores[i][0]))
        for chunk in budget.take(budget.split(uncertain, ROWS_A_CHUNK), "choice in other orders"):
            ask(chunk, others)
    prompter.report_cuts()
    return rank_scored(questions, scores, settings)


def rank_scored(
    questions: Sequence[Question], logs: Mapping[int, Sequence[np.ndarray]], settings: OrderSettings
) -> pl.DataFrame:
    """RANKING of the questions in `logs`: index of a question → log-probabilities [names] of each order asked."""
    asked = [questions[i] for i in logs]
    scores = [_average(np.stack(orders), settings) for orders in logs.values()]
    return make_ranking([question.row["id"] for question in asked], [question.names for question in asked], scores)


def _margin(scores: np.ndarray) -> float:
    second, first = np.sort(scores)[-2:]
    return float(first - second)


def _average(logs: np.ndarray, settings: OrderSettings) -> list[float]:
    """The mean of log-probabilities [orders, names], normalised."""
    mean = logs.mean(0) if settings.mean == "log" else np.logaddexp.reduce(logs, axis=0) - np.log(len(logs))
    return list((mean - np.logaddexp.reduce(mean)).tolist())


def answer_labels(questions: Sequence[Question], prompter: Prompter) -> list[Any]:
    """Token ids of the letters that the questions use, and of prompt.others."""
    letters = len(prompter.settings.labels)
    used = len(questions[0].options) if questions else letters
    return [*prompter.labels[:used], *prompter.labels[letters:]]


def check_questions(questions: Sequence[Question], prompter: Prompter) -> None:
    """Raises ValueError where the questions' numbers of options differ, or do not match their names."""
    sizes = sorted({len(question.options) for question in questions})
    if len(sizes) > 1:
        raise ValueError(f"questions of {sizes} options: ask those with equally many at a time")
    others = len(prompter.settings.others)
    for question in questions:
        if len(question.names) != len(question.options) + others:
            raise ValueError(
                f"row {question.row.get('id')!r} has {len(question.names)} names for {len(question.options)} options "
                f"and {others} of prompt.others"
            )
