"""The process of a predict server that holds the model: loads it, then answers one call after the other.

python -m kaggle_llm.kaggle.serve_worker PIPE SERVED …  (then the arguments of kaggle_llm.kaggle.predict)

PIPE: file descriptor of the connection to the server. Reads SERVED/test.csv, leaves SERVED/submission.csv.
Ends with the server, however that ends, even in the middle of a call.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

from kaggle_llm import records
from kaggle_llm.competition import TEST, Competition, load_competition
from kaggle_llm.inference.budget import Budget
from kaggle_llm.kaggle.predict import Mounts, check_dataset, open_run, parse_mounts
from kaggle_llm.kaggle.server import ANSWER
from kaggle_llm.run import Run, answer, import_predict

if TYPE_CHECKING:
    import polars as pl

WARM_UP = 30.0  # seconds; of the first row's prediction, beside what loads the weights
TAIL = 4000  # characters of a traceback, so that a message never fills the pipe


def main() -> None:
    pipe, served, *words = sys.argv[1:]
    os.set_inheritable(int(pipe), False)  # what a prediction starts must not hold the pipe open
    connection, calls = Connection(int(pipe)), SimpleQueue[float]()
    threading.Thread(target=listen, args=(connection, calls), daemon=True).start()
    mounts = parse_mounts(words)
    run = load_run(mounts, Path(served))
    connection.send(("loaded", ""))
    while True:
        seconds = calls.get()
        connection.send(try_to_answer(mounts.exp, run, run.competition, seconds))


def listen(connection: Connection, calls: SimpleQueue[float]) -> None:
    """Pass the calls on; when the server is gone, end this process and what it started, busy or not."""
    try:
        while True:
            calls.put(connection.recv())
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)


def load_run(mounts: Mounts, served: Path) -> Run:
    """The bundle's Run on the served folder, its models in memory: one row of the mounted test set is predicted."""
    start = time.monotonic()
    for folder in (mounts.bundle, *(path.parent for path in mounts.models.values())):
        check_dataset(folder)
    run = open_run(replace(mounts, competition=served, working=served))
    if len(run.members()) == 1:  # an ensemble's members take turns
        run.loaded(import_predict(mounts.exp))
    mounted = load_competition(run.config.competition, mounts.competition)
    _, what = try_to_answer(mounts.exp, run, mounted, WARM_UP, rows=1)
    print(f"loaded in {time.monotonic() - start:.0f} s {what}", flush=True)
    return run


def try_to_answer(
    exp: Path, run: Run, competition: Competition, seconds: float, rows: int | None = None
) -> tuple[str, str]:
    """("answered", ""), or ("failed", traceback). rows: of the competition's test set, None for all."""
    run.budget = Budget(seconds)
    try:
        ranking = answer(exp, run, competition.table(TEST).slice(0, rows))
        write_answer(run.competition, ranking)
    except BaseException:  # whatever an experiment does, sys.exit() too, costs it this call and not the next one
        what = traceback.format_exc()
        print(what, flush=True)
        return "failed", what[-TAIL:]
    return "answered", ""


def write_answer(competition: Competition, ranking: pl.DataFrame) -> None:
    """The rows that have an item, as a submission; the server fills the others."""
    import polars as pl

    answered = ranking.filter(pl.col("items").list.len() > 0)
    records.write_text(competition.folder / ANSWER, competition.submission(answered).write_csv())


if __name__ == "__main__":
    main()
