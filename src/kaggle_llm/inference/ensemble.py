"""One member of an ensemble in a process of its own (member.py): when it has ended, the next finds all the memory.

Leaves nothing on disk and no process behind.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from kaggle_llm.competition.rankings import answer_columns, check_answer, select_rows
from kaggle_llm.engines.loading import note_loading
from kaggle_llm.engines.pool import ERROR, Worker, WorkerLostError, end_workers, make_environment
from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.model import Model, describe_model

if TYPE_CHECKING:
    import polars as pl

MODULE = "kaggle_llm.inference.member"
OFFER = "offer"  # the first part of a reply that is no answer yet


@dataclass(frozen=True)
class Member:
    """What answers by itself: an experiment's folder, its resolved config as plain values, and its models."""

    exp: Path
    config: Mapping[str, Any]
    models: Sequence[Model]
    recorded: pl.DataFrame | None = None
    """Its out-of-fold RANKING, where it need not be asked again: in CV."""


class MemberError(RuntimeError):
    """A member gave no answer; its cause is what it raised, if it raised something."""


class RecordedAnswers:
    """A member whose answers are known."""

    def __init__(self, recorded: pl.DataFrame) -> None:
        self._recorded = recorded

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def answer(self, rows: pl.DataFrame, *_: object) -> pl.DataFrame:
        """The RANKING of `rows`; raises ValueError for rows that are not on record."""
        ids = rows["id"].to_list()
        return check_answer(select_rows(self._recorded.select(answer_columns(self._recorded)), ids), ids)


def open_member(member: Member, competition: Path) -> MemberProcess | RecordedAnswers:
    """competition: the folder of the competition's tables."""
    return MemberProcess(member, competition) if member.recorded is None else RecordedAnswers(member.recorded)


class MemberProcess:
    """A member at work; its process starts with the first question and ends with `with`.

    competition: the folder of the competition's tables.
    """

    def __init__(self, member: Member, competition: Path) -> None:
        models = [describe_model(model, str) for model in member.models]
        job = {"exp": str(member.exp), "config": dict(member.config), "models": models, "competition": str(competition)}
        self._job = json.dumps(job)
        self._workers: dict[int, Worker] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end_workers(self._workers)

    def answer(
        self, rows: pl.DataFrame, budget: Budget, seconds: float, offer: Callable[[pl.DataFrame], None] | None = None
    ) -> pl.DataFrame:
        """The RANKING of `rows`, as `run.answer` gives it; what it cuts is counted in the budget.

        seconds: without an answer after them it is killed. offer: called with every ranking that it offers.
        Raises MemberError where it raises or ends.
        """
        end = time.monotonic() + seconds
        if not self._workers:
            self._start(end)
        reply, found = self._ask(("answer", (rows, budget.left(), budget.start, offer is not None)), end)
        while reply == OFFER and offer:
            offer(found)
            reply, found = self._ask(("go on", ()), end)
        ranking, cuts, budget.start = found
        budget.cuts.update(cuts)
        answer: pl.DataFrame = ranking
        return answer

    def _start(self, end: float) -> None:
        """Start the process and have it load what predict.load loads."""
        environment = {**os.environ, **make_environment([], 1)}
        with note_loading():
            self._workers[0] = Worker([sys.executable, "-m", MODULE], self._job, environment)
            self._ask(("load", ()), end)

    def _ask(self, request: tuple[str, tuple[Any, ...]], end: float) -> tuple[str, Any]:
        try:
            reply, found = self._workers[0].ask(request, min(end - time.monotonic(), threading.TIMEOUT_MAX))
        except WorkerLostError as lost:
            raise MemberError(f"it {lost}: its last lines are above") from lost
        if reply == ERROR:
            raise MemberError(f"{type(found).__name__}: {found}") from found
        return reply, found
