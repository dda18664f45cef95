"""The process of an ensemble member, `python -m kaggle_llm.inference.member DESCRIPTOR JOB`, started by ensemble.py.

Answers through `run.answer`, as a single model does. Leaves nothing on disk.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from kaggle_llm.base.config import build_config
from kaggle_llm.competition.competition import load_competition
from kaggle_llm.engines.worker import Request, kill_group, open_requests, serve
from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.ensemble import OFFER_REPLY
from kaggle_llm.inference.model import read_model, split_folds
from kaggle_llm.inference.run import Run, answer, import_predict

if TYPE_CHECKING:
    import polars as pl


def main(descriptor: int, job: dict[str, Any]) -> None:
    """Answer requests until told to end. job: exp, config, models and competition of the member."""
    connection, requests = open_requests(descriptor)
    serve(connection, requests, partial(Answering, job, connection, requests))


class Answering:
    """The methods that MemberProcess calls."""

    def __init__(self, job: dict[str, Any], connection: Connection, requests: SimpleQueue[Request | None]) -> None:
        self.exp, self._connection, self._requests = Path(job["exp"]), connection, requests
        config: Any = build_config(job["config"], import_predict(self.exp).Config)
        competition = load_competition(config.competition, Path(job["competition"]))
        models = [read_model(described, Path) for described in job["models"]]
        self.run = Run(config, competition, models, on_offer=self._offer)
        self._wants_offers = False

    def load(self) -> None:
        """Call predict.load; where the member is itself an ensemble, its members load later."""
        if len(split_folds(self.run.models)) == 1:
            self.run.loaded(import_predict(self.exp))

    def answer(
        self, rows: pl.DataFrame, seconds: float, start: float, offers: bool
    ) -> tuple[pl.DataFrame, Counter[str], float]:
        """The RANKING, the rows cut, and the seconds of the longest first chunk so far."""
        self.run.budget, self._wants_offers = Budget(seconds), offers
        self.run.budget.start = start
        ranking = answer(self.exp, self.run, rows)
        return ranking, self.run.budget.cuts, self.run.budget.start

    def close(self) -> None:
        self.run.close()

    def _offer(self, ranking: pl.DataFrame) -> None:
        """Send the ranking to the parent, and wait until it is written."""
        if self._wants_offers:
            self._connection.send((OFFER_REPLY, ranking))
            if self._requests.get() is None:  # the parent no longer waits for an answer
                kill_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
