"""The process of a predict server that holds the model: `python -m kaggle_llm.kaggle.serve_worker DESCRIPTOR JOB`.

Started by server.py: loads the model, then answers one call after the other. Reads the served folder's test.csv,
leaves submission.csv there, and server.log in the working folder. Ends with the server, however that ends, also in
the middle of a call.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.base import records
from kaggle_llm.competition.competition import TEST, Competition, load_competition
from kaggle_llm.competition.rankings import answer_columns
from kaggle_llm.engines.worker import open_requests
from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.model import split_folds
from kaggle_llm.inference.run import Run, answer, import_predict
from kaggle_llm.kaggle.predict import Mounts, check_mounts, hash_beside, open_run, parse_mounts
from kaggle_llm.kaggle.server import ANSWER, FAILED

if TYPE_CHECKING:
    import polars as pl

WARM_UP = 30.0  # seconds; of the first row's prediction, beside what loads the weights
TAIL = 4000  # characters of a traceback, so that a reply never fills the pipe


def main(descriptor: int, served: Path, words: Sequence[str]) -> None:
    """Load at the first request, answer at each other one. served: the folder of a call's rows."""
    connection, requests = open_requests(descriptor)
    mounts = parse_mounts(words)
    write_log(mounts.working / "server.log")
    requests.get()
    run = load_run(mounts, served)
    connection.send(("loaded", ""))
    while (request := requests.get()) is not None:
        (seconds,) = request[1]
        connection.send(try_to_answer(mounts.exp, run, run.competition, seconds))


def write_log(path: Path) -> None:
    """From here on, what this process and those that it starts say goes behind what the log holds."""
    with path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def load_run(mounts: Mounts, served: Path) -> Run:
    """The bundle's Run on the served folder, its models in memory: one row of the mounted test set is predicted."""
    start = time.monotonic()
    with hash_beside(check_mounts(mounts)):
        run = open_run(replace(mounts, competition=served, working=served))
        if len(split_folds(run.models)) == 1:  # an ensemble's members take turns
            run.loaded(import_predict(mounts.exp))
        mounted = load_competition(run.config.competition, mounts.competition)
        _, what = try_to_answer(mounts.exp, run, mounted, WARM_UP, rows=1)
    print(f"loaded in {time.monotonic() - start:.0f} s {what}", flush=True)
    return run


def try_to_answer(
    exp: Path, run: Run, competition: Competition, seconds: float, rows: int | None = None
) -> tuple[str, str]:
    """("answered", ""), or (FAILED, traceback). rows: of the competition's test set, None for all."""
    run.budget = Budget(seconds)
    try:
        ranking = answer(exp, run, competition.table(TEST).slice(0, rows))
        write_answer(run.competition, ranking)
    except BaseException:  # whatever an experiment does, sys.exit() too, costs it this call and not the next one
        what = traceback.format_exc()
        print(what, flush=True)
        return FAILED, what[-TAIL:]
    return "answered", ""


def write_answer(competition: Competition, ranking: pl.DataFrame) -> None:
    """The rows that have an item, as a submission; the server fills the others."""
    answered = ranking.filter(ranking[answer_columns(ranking)[1]].list.len() > 0)
    records.write_text(competition.folder / ANSWER, competition.submission(answered).write_csv())


if __name__ == "__main__":
    job = json.loads(sys.argv[2])
    main(int(sys.argv[1]), Path(job["served"]), job["mounts"])
