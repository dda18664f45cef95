"""The process of a predict server that holds the model: `python -m kaggle_llm.kaggle.serve_worker DESCRIPTOR JOB`.

Started by server.py: loads the model, then answers one call after the other. Reads test.csv of the served folder,
leaves submission.csv there, and server.log in the working folder. Ends with the server, however that ends, even in the
middle of a call.
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
from kaggle_llm.kaggle.server import ANSWER_FILE, CALL_FAILED

if TYPE_CHECKING:
    import polars as pl

WARM_UP_SECONDS = 30.0  # for the first row's prediction, without loading the weights
TRACEBACK_CHARACTERS = 4000  # so that a reply never fills the pipe


def main(descriptor: int, served: Path, words: Sequence[str]) -> None:
    """Load at the first request, answer at every other one. served: the folder of a call's rows."""
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
    """Append the output of this process and its child processes to the log from here on."""
    with path.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)


def load_run(mounts: Mounts, served: Path) -> Run:
    """The bundle's Run on the served folder, its models loaded by predicting one row of the mounted test set."""
    start = time.monotonic()
    with hash_beside(check_mounts(mounts)):
        run = open_run(replace(mounts, competition=served, working=served))
        if len(split_folds(run.models)) == 1:  # an ensemble's members are loaded one after the other
            run.loaded(import_predict(mounts.exp))
        mounted = load_competition(run.config.competition, mounts.competition)
        _, error = try_to_answer(mounts.exp, run, mounted, WARM_UP_SECONDS, rows=1)
    print(f"loaded in {time.monotonic() - start:.0f} s {error}", flush=True)
    return run


def try_to_answer(
    exp: Path, run: Run, competition: Competition, seconds: float, rows: int | None = None
) -> tuple[str, str]:
    """("answered", ""), or (CALL_FAILED, traceback). rows: how many of the test set's first rows; None: all."""
    run.budget = Budget(seconds)
    try:
        ranking = answer(exp, run, competition.table(TEST).slice(0, rows))
        write_answer(run.competition, ranking)
    except BaseException:  # any error, even sys.exit(), costs this call and not the next one
        error = traceback.format_exc()
        print(error, flush=True)
        return CALL_FAILED, error[-TRACEBACK_CHARACTERS:]
    return "answered", ""


def write_answer(competition: Competition, ranking: pl.DataFrame) -> None:
    """Write the rows that have an answer as a submission; the server fills in the others."""
    answered = ranking.filter(ranking[answer_columns(ranking)[1]].list.len() > 0)
    records.write_text(competition.folder / ANSWER_FILE, competition.submission(answered).write_csv())


if __name__ == "__main__":
    job = json.loads(sys.argv[2])
    main(int(sys.argv[1]), Path(job["served"]), job["mounts"])
