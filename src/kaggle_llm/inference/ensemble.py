"""Runs each member of an ensemble in its own process (member.py), so that its memory is free for the next one.

Leaves nothing on disk and no process.
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
from kaggle_llm.engines.pool import ERROR_REPLY, Worker, WorkerLostError, end_workers, make_environment
from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.model import Model, describe_model

if TYPE_CHECKING:
    import polars as pl

MEMBERS = "members"  # a bundle's folder with the members' configs
MEMBER_MODULE = "kaggle_llm.inference.member"
OFFER_REPLY = "offer"  # first item of a reply that is a preliminary ranking


@dataclass(frozen=True)
class Member:
    """An ensemble member: an experiment's folder, its resolved config as plain values, and its models."""

    exp: Path
    config: Mapping[str, Any]
    models: Sequence[Model]
    recorded: pl.DataFrame | None = None
    """Its recorded out-of-fold RANKING, used in CV instead of asking it again."""


class MemberError(RuntimeError):
    """A member gave no answer; __cause__ is what it raised, if anything."""


class RecordedAnswers:
    """A member whose answers are recorded."""

    def __init__(self, recorded: pl.DataFrame) -> None:
        self._recorded = recorded

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def answer(self, rows: pl.DataFrame, *_: object) -> pl.DataFrame:
        """The RANKING of `rows`; raises ValueError for rows without a recorded answer."""
        ids = rows["id"].to_list()
        return check_answer(select_rows(self._recorded.select(answer_columns(self._recorded)), ids), ids)


def open_member(member: Member, competition: Path) -> MemberProcess | RecordedAnswers:
    """The member, ready to answer. competition: the folder of the competition's tables."""
    return MemberProcess(member, competition) if member.recorded is None else RecordedAnswers(member.recorded)


class MemberProcess:
    """A member in a process, which starts at the first `answer` and ends with the `with` block."""

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
        """The RANKING of `rows`, as `run.answer` gives it; rows it cuts are counted in the budget.

        seconds: until it is killed. offer: called with every ranking that it offers. Raises MemberError where it
        raises, dies or is killed.
        """
        end = time.monotonic() + seconds
        if not self._workers:
            self._start(end)
        reply, content = self._ask(("answer", (rows, budget.left(), budget.start, offer is not None)), end)
        while reply == OFFER_REPLY and offer:
            offer(content)
            reply, content = self._ask(("go on", ()), end)
        ranking: pl.DataFrame
        ranking, cuts, budget.start = content
        budget.cuts.update(cuts)
        return ranking

    def _start(self, end: float) -> None:
        """Start the process and let it call predict.load."""
        environment = {**os.environ, **make_environment([], 1)}
        with note_loading():
            self._workers[0] = Worker([sys.executable, "-m", MEMBER_MODULE], self._job, environment)
            self._ask(("load", ()), end)

    def _ask(self, request: tuple[str, tuple[Any, ...]], end: float) -> tuple[str, Any]:
        try:
            reply, content = self._workers[0].ask(request, min(end - time.monotonic(), threading.TIMEOUT_MAX))
        except WorkerLostError as lost:
            raise MemberError(f"it {lost}: its last lines are above") from lost
        if reply == ERROR_REPLY:
            raise MemberError(f"{type(content).__name__}: {content}") from content
        return reply, content
