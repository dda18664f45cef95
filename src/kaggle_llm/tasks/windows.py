"""Ranks a row's candidates in windows: a few at a time under letters, from the back of their list to its front.

As RankGPT slides (Sun et al., Is ChatGPT Good at Search?, EMNLP 2023), but a window is ordered by the letters' exact
log-probabilities, so no answer can be malformed. Each window's prompts depend on the answers to the one before it: an
experiment says so by `asks_in_turns`. Training (windows_training.py) and prediction use the same prompts.
"""

from __future__ import annotations

import math
import random
import string
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from kaggle_llm.competition.rankings import make_ranking, top
from kaggle_llm.engines.engine import Engine, LengthError
from kaggle_llm.engines.prompts import Group, Prompt, Prompter, TokenGroup
from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.progress import work_through
from kaggle_llm.tasks.choice import Order, to_names

if TYPE_CHECKING:
    import polars as pl

ROWS_A_CHUNK = 16  # where time is short: the budget is checked between chunks
Span = tuple[int, int]  # the first position of a window, and the one after its last


@dataclass
class WindowSettings:
    size: int = 4
    """Candidates in one prompt, each under a letter."""
    step: int = 2
    """Places that a window lies in front of the last one; the best size − step of that are asked again in it."""
    orders: int = 2
    """Orders in which a window is asked: its own, then others drawn with a seed. Log-probabilities are averaged."""
    passes: int = 1
    """Times that windows slide over the list; from the second on, the most uncertain rows first."""
    candidate: str = "{letter}: {text}\n"
    """Template of a candidate, in the place of prompt.candidate."""
    ending: str = "Answer:"
    label: str = " {letter}"
    """What the model says for a letter; one token each."""

    def __post_init__(self) -> None:
        if not 1 <= self.step < self.size <= len(string.ascii_uppercase):
            most = len(string.ascii_uppercase)
            raise ValueError(
                f"size = {self.size}, step = {self.step}: 1 ≤ step < size ≤ {most}, so that windows overlap"
            )
        if min(self.orders, self.passes) < 1:
            raise ValueError(f"orders = {self.orders}, passes = {self.passes}: both must be 1 or more")


def list_spans(count: int, settings: WindowSettings) -> list[Span]:
    """The windows over a list of `count` candidates, from the back; the last one begins at the front."""
    if count < 2:
        return []
    starts = range(max(count - settings.size, 0), 0, -settings.step)
    return [(start, min(start + settings.size, count)) for start in (*starts, 0)]


def draw_orders(count: int, number: int) -> list[Order]:
    """`number` different orders of a window of `count` (fewer where there are not so many), the given one first.

    The same for all rows, so that a row's answer does not depend on its id or its neighbours.
    """
    rng = random.Random(count)
    orders = {tuple(range(count)): None}
    while len(orders) < min(number, math.factorial(count)):
        orders[tuple(rng.sample(range(count), count))] = None
    return list(orders)


def count_prompts(depth: int, settings: WindowSettings) -> int:
    """Prompts of a row with `depth` candidates."""
    return sum(len(draw_orders(end - start, settings.orders)) for start, end in list_spans(depth, settings)) * (
        settings.passes
    )


def letter_candidates(prompter: Prompter, settings: WindowSettings) -> Prompter:
    """The same prompts for a window: its candidates under letters, which are the labels."""
    letters = string.ascii_uppercase[: settings.size]
    labels = [settings.label.format(letter=letter) for letter in letters]
    listed = replace(prompter.settings, candidate=settings.candidate, ending=settings.ending, labels=labels)
    return Prompter(prompter.tokenizer, listed)


class WindowPrompts:
    """The prompt of a row with some of its documents under letters: the same for training and prediction.

    prompter: of the pointwise prompts.
    """

    def __init__(self, prompter: Prompter, settings: WindowSettings, documents: pl.DataFrame) -> None:
        self.settings, self._pointwise = settings, prompter
        self._documents: dict[str, Mapping[str, Any]] = {row["id"]: row for row in documents.iter_rows(named=True)}

    @cached_property
    def prompter(self) -> Prompter:
        """The prompter with the letters as labels; they are checked only where windows are used."""
        return letter_candidates(self._pointwise, self.settings)

    def prompt(self, row: Mapping[str, Any], items: Sequence[str]) -> Prompt:
        """Token ids; the first item is under the first letter."""
        return self.prompter.listing(row, [self._documents[item] for item in items])

    def examples(self, rows: pl.DataFrame, groups: Iterable[Group]) -> list[TokenGroup]:
        """An example for ChoiceTask (form labels) of each group; a group may have fewer items than there are letters.

        Raises ValueError for a group with more.
        """
        by_id = {row["id"]: row for row in rows.iter_rows(named=True)}
        letters = len(self.prompter.labels)
        examples = [
            TokenGroup(
                self.prompt(by_id[group.id], group.items),
                [()],
                group.target + (0.0,) * (letters - len(group.items)),
            )
            for group in groups
        ]
        self.prompter.report_cuts()
        return examples


@dataclass
class SlidingRow:
    """A row, its candidates in the order so far, and the answers of its windows."""

    row: Mapping[str, Any]
    items: list[str]
    answers: list[dict[str, float]] = field(default_factory=list)
    """For each window: item → mean log-probability among the window's items."""

    @property
    def is_answered(self) -> bool:
        return bool(self.answers) or len(self.items) < 2

    def rank(self) -> tuple[list[str], list[float]]:
        """Items and their scores, best first."""
        scores = fit_scores(self.items, self.answers)
        order = np.argsort(-scores, kind="stable").tolist()
        return [self.items[i] for i in order], scores[order].tolist()

    def margin(self) -> float:
        """Between the best two scores; 0 without two."""
        _, scores = self.rank()
        return scores[0] - scores[1] if len(scores) > 1 else 0.0


def fit_scores(items: Sequence[str], answers: Sequence[Mapping[str, float]]) -> np.ndarray:
    """[items] log-probabilities among all of them, from those among the items of each window.

    log p(i | window w) = s(i) − c(w): scores s and constants c by least squares over all windows, which overlap. Exact
    where the answers are consistent (Luce, Individual Choice Behavior, 1959: a choice among some has the same odds as
    among all).
    """
    columns = {item: column for column, item in enumerate(items)}
    said = [(window, columns[item], value) for window, answer in enumerate(answers) for item, value in answer.items()]
    matrix = np.zeros((len(said), len(items) + len(answers)))
    for number, (window, column, _) in enumerate(said):
        matrix[number, column], matrix[number, len(items) + window] = 1.0, -1.0
    solution, *_ = np.linalg.lstsq(matrix, np.array([value for *_, value in said]), rcond=None)
    scores: np.ndarray = solution[: len(items)]
    return scores - np.logaddexp.reduce(scores) if len(items) else scores


def rank_windows(
    rows: pl.DataFrame,
    candidates: pl.DataFrame,
    depth: int,
    prompts: WindowPrompts,
    engine: Engine,
    budget: Budget,
    on_progress: Callable[[pl.DataFrame], None] | None = None,
) -> pl.DataFrame:
    """RANKING of the first `depth` candidates of each row; scores are log-probabilities among them.

    rows and candidates: the same ids in the same order. Rows that the budget cut in the first pass are missing.
    on_progress: called every minute and after each pass with the RANKING so far.
    """
    items = top(candidates, depth)["items"].to_list()
    sliding = [SlidingRow(row, own) for row, own in zip(rows.iter_rows(named=True), items, strict=True)]

    def slide(chunk: Sequence[SlidingRow]) -> Sequence[SlidingRow]:
        slide_windows(chunk, prompts, engine)
        return chunk

    def report(_: object) -> None:
        if on_progress:
            on_progress(rank_answered(sliding))

    for number in range(prompts.settings.passes):
        chunks = budget.split(sorted(sliding, key=SlidingRow.margin) if number else sliding, ROWS_A_CHUNK)
        slid = work_through(chunks, budget, "further windows" if number else "windows", slide, report)
        report(slid)
        if len(slid) < len(chunks):
            break
    prompts.prompter.report_cuts()
    return rank_answered(sliding)


def rank_answered(rows: Sequence[SlidingRow]) -> pl.DataFrame:
    """RANKING of the rows whose windows were asked."""
    answered = [row for row in rows if row.is_answered]
    ranked = [row.rank() for row in answered]
    ids = [row.row["id"] for row in answered]
    return make_ranking(ids, [items for items, _ in ranked], [scores for _, scores in ranked])


def slide_windows(rows: Sequence[SlidingRow], prompts: WindowPrompts, engine: Engine) -> None:
    """One pass over all rows' lists, the windows of one turn asked together; reorders and answers them in place."""
    spans = [list_spans(len(row.items), prompts.settings) for row in rows]
    for turn in range(max(map(len, spans), default=0)):
        asked = [(row, *own[turn]) for row, own in zip(rows, spans, strict=True) if turn < len(own)]
        windows = [(row.row, row.items[start:end]) for row, start, end in asked]
        for (row, start, end), answer in zip(asked, ask_windows(windows, prompts, engine), strict=True):
            row.answers.append(answer)
            row.items[start:end] = sorted(answer, key=lambda item: -answer[item])


def ask_windows(
    windows: Sequence[tuple[Mapping[str, Any], Sequence[str]]], prompts: WindowPrompts, engine: Engine
) -> list[dict[str, float]]:
    """For each window (a row and some items): item → log-probability among them, averaged over the orders."""
    shown = [
        (number, order)
        for number, (_, items) in enumerate(windows)
        for order in draw_orders(len(items), prompts.settings.orders)
    ]
    asked = [prompts.prompt(windows[number][0], [windows[number][1][i] for i in order]) for number, order in shown]
    try:
        logs = engine.choices(asked, prompts.prompter.labels)
    except LengthError as error:
        raise ValueError(f"row {windows[shown[error.index][0]][0]['id']!r}: {error}") from error
    answers: list[list[np.ndarray]] = [[] for _ in windows]
    for (number, order), row in zip(shown, logs, strict=True):
        own = row[: len(order)]
        answers[number].append(to_names(own - np.logaddexp.reduce(own), order))
    means = [np.mean(orders, axis=0).tolist() for orders in answers]
    return [dict(zip(items, mean, strict=True)) for (_, items), mean in zip(windows, means, strict=True)]
