"""One of several options by letter: each prompt in several orders, so that a place has no advantage.

The same prompts in training (`list_examples`) and in prediction (`rank_options`).
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

CHUNK = 64  # questions that are asked at a time where time is short: the grain of the budget
Order = tuple[int, ...]


@dataclass
class OrderSettings:
    orders: Literal["given", "both", "rotations"] = "both"
    """The order given; that and its reverse; or each option once at each place."""
    mean: Literal["log", "probability"] = "log"
    """Over orders: of log-probabilities (a geometric mean) or of probabilities."""


@dataclass(frozen=True)
class Question:
    """A row and what it is asked to choose from."""

    row: Mapping[str, Any]
    names: tuple[str, ...]
    """The items of the ranking: one for each option, then one for each of prompt.others."""
    options: tuple[Mapping[str, Any], ...]
    """The texts of each option, for prompt.candidate."""
    target: tuple[float, ...] | None = None
    """How much of the right answer each name is; sums to 1. None in prediction."""


def list_orders(count: int, how: str) -> list[Order]:
    """Orders of `count` options: order[place] = option."""
    given = tuple(range(count))
    if how == "given" or count < 2:
        return [given]
    if how == "both":
        return [given, given[::-1]]
    return [given[n:] + given[:n] for n in range(count)]


def shuffle_orders(count: int, how: str, rng: random.Random) -> list[Order]:
    """The same orders of options that were shuffled first: for training on lists, where no order is the given one."""
    start = rng.sample(range(count), count)
    return [tuple(start[i] for i in order) for order in list_orders(count, how)]


def to_places(values: Sequence[float], order: Order) -> list[float]:
    """Values of the names → of the places at which an order shows them; others stay behind."""
    return [values[i] for i in order] + list(values[len(order) :])


def to_names(values: np.ndarray, order: Order) -> np.ndarray:
    """The inverse of `to_places`, for an array [places]."""
    found = np.array(values, dtype=float)
    found[list(order)] = values[: len(order)]
    return found


def list_examples(
    questions: Sequence[Question], prompter: Prompter, how: str, shuffle: bool, seed: int
) -> list[TokenGroup]:
    """Training examples for ChoiceTask (form labels): every question in every order of `how`.

    shuffle: the options are shuffled first (lists of candidates); else the given order and its like (pairs).
    Raises ValueError where the questions have different numbers of options or no target.
    """
    check_questions(questions, prompter)
    rng = random.Random(seed)
    examples = []
    for question in questions:
        if question.target is None:
            raise ValueError(f"row {question.row.get('id')!r} has no target: there is nothing to learn from it")
        count = len(question.options)
        for order in shuffle_orders(count, how, rng) if shuffle else list_orders(count, how):
            prompt = prompter.listing(question.row, [question.options[i] for i in order])
            examples.append(TokenGroup(prompt, [()], tuple(to_places(question.target, order))))
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

    All are asked in the given order first, then the most uncertain ones first in the others. Questions that the budget
    cut are not in the result; those whose other orders it cut keep the scores of the first. on_progress: called with
    the RANKING of all questions by their first order.
    """
    check_questions(questions, prompter)
    labels = answer_labels(questions, prompter)
    first, *others = list_orders(len(questions[0].options) if questions else 0, settings.orders)
    found: dict[int, list[np.ndarray]] = {}

    def ask(chosen: Sequence[int], orders: Sequence[Order]) -> None:
        shown = [(i, order) for i in chosen for order in orders]
        prompts = [
            prompter.listing(questions[i].row, [questions[i].options[place] for place in order]) for i, order in shown
        ]
        for (i, order), row in zip(shown, engine.choices(prompts, labels), strict=True):
            found.setdefault(i, []).append(to_names(row - np.logaddexp.reduce(row), order))

    for chosen in budget.take(budget.split(range(len(questions)), CHUNK), "choice"):
        ask(chosen, [first])
    if others and len(found) == len(questions):
        if on_progress:
            on_progress(rank_found(questions, found, settings))
        uncertain = sorted(found, key=lambda i: _margin(found[i][0]))
        for chosen in budget.take(budget.split(uncertain, CHUNK), "choice in other orders"):
            ask(chosen, others)
    prompter.report_cuts()
    return rank_found(questions, found, settings)


def rank_found(
    questions: Sequence[Question], found: Mapping[int, Sequence[np.ndarray]], settings: OrderSettings
) -> pl.DataFrame:
    """RANKING of the questions that have scores. found: place of a question → log-probabilities of each order."""
    asked = [questions[i] for i in found]
    scores = [_average(np.stack(rows), settings) for rows in found.values()]
    return make_ranking([question.row["id"] for question in asked], [question.names for question in asked], scores)


def _margin(scores: np.ndarray) -> float:
    second, first = np.sort(scores)[-2:]
    return float(first - second)


def _average(logs: np.ndarray, settings: OrderSettings) -> list[float]:
    """The mean of log-probabilities [orders, names], normalised."""
    mean = logs.mean(0) if settings.mean == "log" else np.logaddexp.reduce(logs, axis=0) - np.log(len(logs))
    normalised: list[float] = (mean - np.logaddexp.reduce(mean)).tolist()
    return normalised


def answer_labels(questions: Sequence[Question], prompter: Prompter) -> list[Any]:
    """Token ids of the letters that the questions use, and of the others."""
    letters = len(prompter.settings.labels)
    used = len(questions[0].options) if questions else letters
    return [*prompter.labels[:used], *prompter.labels[letters:]]


def check_questions(questions: Sequence[Question], prompter: Prompter) -> None:
    """Raises ValueError where numbers of options, names and labels do not go together."""
    sizes = sorted({len(question.options) for question in questions})
    if len(sizes) > 1:
        raise ValueError(f"questions of {sizes} options: ask those of one size at a time")
    others = len(prompter.settings.others)
    for question in questions:
        if len(question.names) != len(question.options) + others:
            raise ValueError(
                f"row {question.row.get('id')!r} has {len(question.names)} names for {len(question.options)} options "
                f"and {others} of prompt.others"
            )
