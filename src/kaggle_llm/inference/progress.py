"""Rows answered some at a time, as long as the time lasts: with a bar, and an offer of what there is so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import TypeVar

from kaggle_llm.inference.budget import Budget

OFTEN = 60.0  # seconds between two offers of what there is so far
PATIENCE = 5.0  # seconds between two lines of progress: a notebook's log keeps each

C = TypeVar("C", bound=Sized)
A = TypeVar("A")


def work_through(
    chunks: Sequence[C],
    budget: Budget,
    what: str,
    answer: Callable[[C], A],
    on_progress: Callable[[Sequence[A]], None] | None = None,
) -> list[A]:
    """The answers to the chunks that end in time, the first ones. what: is done, for the bar and for what was cut.

    on_progress: called with the answers so far, every OFTEN seconds.
    """
    from tqdm import tqdm

    answers: list[A] = []
    said = budget.clock()
    unit = f" x {len(chunks[0]) if chunks else 0} rows"
    for chunk in tqdm(budget.take(chunks, what), what, len(chunks), unit=unit, mininterval=PATIENCE):
        answers.append(answer(chunk))
        if on_progress and budget.clock() - said > OFTEN:
            on_progress(answers)
            said = budget.clock()
    return answers
