"""Works through chunks of rows within the time budget, with a progress bar and preliminary results."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Sized
from typing import TYPE_CHECKING, TypeVar

from kaggle_llm.inference.budget import Budget

if TYPE_CHECKING:
    import polars as pl

OFFER_SECONDS = 60.0  # between two calls of on_progress
BAR_SECONDS = 5.0  # between two updates of the bar: a notebook's log keeps each as a line

ChunkT = TypeVar("ChunkT", bound=Sized)
AnswerT = TypeVar("AnswerT")


def work_through(
    chunks: Sequence[ChunkT],
    budget: Budget,
    work: str,
    answer: Callable[[ChunkT], AnswerT],
    on_progress: Callable[[Sequence[AnswerT]], None] | None = None,
) -> list[AnswerT]:
    """The answers to the first chunks, as many as end in time.

    work: name for the bar and for the count of cut rows. on_progress: called with the answers so far, every
    OFFER_SECONDS.
    """
    from tqdm import tqdm

    answers: list[AnswerT] = []
    last_offer = budget.clock()
    unit = f" x {len(chunks[0]) if chunks else 0} rows"
    for chunk in tqdm(budget.take(chunks, work), work, len(chunks), unit=unit, mininterval=BAR_SECONDS):
        answers.append(answer(chunk))
        if on_progress and budget.clock() - last_offer > OFFER_SECONDS:
            on_progress(answers)
            last_offer = budget.clock()
    return answers


def answer_rows(
    chunks: Sequence[ChunkT],
    no_rows: pl.DataFrame,
    budget: Budget,
    work: str,
    answer: Callable[[ChunkT], pl.DataFrame],
    on_progress: Callable[[pl.DataFrame], None] | None,
) -> pl.DataFrame:
    """`work_through` where the answers are frames: all of them as one, `no_rows` where there is none."""
    import polars as pl

    def report(parts: Sequence[pl.DataFrame]) -> None:
        if on_progress:
            on_progress(pl.concat(parts))

    return pl.concat([no_rows, *work_through(chunks, budget, work, answer, report)])
