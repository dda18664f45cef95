"""A predict server for competitions whose gateway hands the test rows out, one call at a time (kaggle_evaluation).

The gateway's inference server is given the bound method `PredictServer.predict`. The model is loaded in a process of
its own (serve_worker.py), so the server listens at once, and a call that hangs or crashes costs its rows the answer
and nothing else: the process is killed and made anew, and the rows get the fallback. Every row goes through
`answer()`, as in CV: a call's rows are laid out as test.csv in a folder that the competition reads from.

Leaves server.log, what that process says, in the working folder.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from kaggle_llm.base.config import load_config
from kaggle_llm.competition.competition import SAMPLE, TEST, read_csv
from kaggle_llm.engines.pool import OFFLINE, Worker, WorkerLostError
from kaggle_llm.inference.budget import budget_until
from kaggle_llm.inference.run import import_predict
from kaggle_llm.kaggle.predict import Mounts, parse_mounts

if TYPE_CHECKING:
    import polars as pl

ANSWER = "submission.csv"
LOADS = 3  # a model that failed to load so often in a row will not
FAILURES = 3  # exceptions in a row after which the process is made anew: a GPU may be lost
EASE = 0.8  # of a call's time: then the prediction stops by itself; at the whole of it the process is killed
FAILED = "failed"  # the first part of a reply that is a traceback


@dataclass
class ServerSettings:
    rows: int | None = None
    """Rows that the gateway asks for in all: each may take its share of what is left. None: unknown."""
    call_seconds: float = 240.0
    """The longest that a call may take, the first one apart: below the gateway's own limit, which ends everything."""
    load_seconds: float = 1200.0
    """The longest that loading may take before it is tried again."""
    fallback: str | None = None
    """The cell of a row without an answer; None: what the sample submission says."""

    def __post_init__(self) -> None:
        if not (self.call_seconds > 0 and self.load_seconds > 0 and (self.rows is None or self.rows > 0)):
            raise ValueError(
                f"rows = {self.rows}, call_seconds = {self.call_seconds}, load_seconds = {self.load_seconds}: "
                f"they must be above 0"
            )


class PredictServer:
    """`predict` answers the gateway's calls. The model is loading when this returns; `close` ends its process.

    Raises ValueError where a row without an answer would get an empty cell.
    """

    def __init__(self, mounts: Mounts, settings: ServerSettings) -> None:
        check_fallback(mounts.competition, settings)
        self.mounts = mounts
        self.settings, self.budget = settings, budget_until(mounts.deadline)
        self.rows = self.fallbacks = self.calls = 0
        """Rows and calls so far, and the rows among them that got the fallback."""
        self._lock = threading.Lock()
        self._temporary = TemporaryDirectory(prefix="served-")
        self._served = Path(self._temporary.name)
        link_tables(mounts.competition, self._served)
        self._model = Model(mounts, self._served, settings.load_seconds)

    def predict(self, row: pl.DataFrame, sample_submission: pl.DataFrame) -> pl.DataFrame:
        """The answer to the rows of one call, in the rows, columns and types of their sample submission.

        It never raises for what the experiment does, and takes no longer than the rows' share of the time. Only the
        first call, for which the gateway waits, also waits until the model is loaded.
        """
        import polars as pl

        with self._lock:
            try:
                found, why = self._ask(row, sample_submission)
            except (OSError, ValueError, pl.exceptions.PolarsError) as error:  # a full disk, a table that is no CSV
                found, why = None, f"{type(error).__name__}: {error}"
            answer, spare = fit_answer(found, sample_submission, self.settings.fallback)
            self.calls += 1
            self.rows += sample_submission.height
            self.fallbacks += spare
            if why or spare:
                print(f"call {self.calls}: {spare} row(s) get the fallback: {why or 'no answer'}", flush=True)
            return answer

    def close(self) -> None:
        """End the model's process and what it started."""
        self._model.kill()
        self._temporary.cleanup()

    def _ask(self, row: pl.DataFrame, sample: pl.DataFrame) -> tuple[pl.DataFrame | None, str]:
        """The answer as text, or what it offered before it was killed; and what went wrong, or ""."""
        end = time.monotonic() + self._share(sample.height)
        wait = self._share(sample.height) if self.calls else self.budget.left()
        if not self._model.wait_until_loaded(wait):
            return None, "the model is not loaded"
        seconds = end - time.monotonic() if self.calls else self._share(sample.height)
        if seconds <= 0:
            return None, "no time is left"
        for name, frame in ((TEST, row), (SAMPLE, sample)):
            write_table(frame, self._served / f"{name}.csv")
        (self._served / ANSWER).unlink(missing_ok=True)
        why = self._model.ask(seconds)
        return (read_csv(self._served / ANSWER) if (self._served / ANSWER).is_file() else None), why

    def _share(self, rows: int) -> float:
        """Seconds for a call of so many rows: what is left for each row that is still to come, in `call_seconds`."""
        left = max(self.budget.left(), 0.0)
        if self.settings.rows is not None:
            left *= rows / max(self.settings.rows - self.rows, rows, 1)
        return min(left, self.settings.call_seconds)


class Model:
    """The process that holds the model; killed and made anew when it dies, or takes too long.

    served: the folder that it reads a call's rows from and writes the answer to.
    """

    def __init__(self, mounts: Mounts, served: Path, load_seconds: float) -> None:
        self.bundle, self.load_seconds = mounts.bundle, load_seconds
        self.job = json.dumps({"served": str(served), "mounts": worker_words(mounts)})
        self.lost = self.failures = 0
        """Loads, and answers, that failed one after the other."""
        self._start()

    def wait_until_loaded(self, seconds: float) -> bool:
        """Whether it takes questions within so many seconds; loading goes on if not."""
        end = time.monotonic() + seconds
        while self.lost < LOADS:
            try:
                self._loading.result(max(end - time.monotonic(), 0.0))
            except TimeoutError:
                return False
            except WorkerLostError as error:
                self.lost += 1
                self._replace(f"loading failed, {self.lost} of {LOADS} times: it {error}")
            else:
                self.lost = 0
                if not self._worker.has_ended():
                    return True
                self._replace("the model's process ended between two calls")
        return False

    def ask(self, seconds: float) -> str:
        """Have the rows in the served folder answered; returns what went wrong, or ""."""
        try:
            kind, what = self._worker.ask(("answer", (EASE * seconds,)), seconds)
        except WorkerLostError as error:
            self._replace(f"the model's process is made anew: it {error}")
            return f"the model's process {error}"
        self.failures = self.failures + 1 if kind == FAILED else 0
        if self.failures == FAILURES:
            self.failures = 0
            self._replace(f"the model's process is made anew: {FAILURES} calls failed one after the other")
        return str(what)

    def kill(self) -> None:
        """End the process and all that it started."""
        self._worker.kill()
        self._worker.connection.close()

    def _start(self) -> None:
        command = [sys.executable, "-m", "kaggle_llm.kaggle.serve_worker"]
        self._worker = Worker(command, self.job, worker_environment(self.bundle))
        self._loading: Future[object] = Future()
        threading.Thread(target=self._load, args=(self._worker, self._loading), daemon=True).start()

    def _load(self, worker: Worker, loading: Future[object]) -> None:
        try:
            loading.set_result(worker.ask(("load", ()), self.load_seconds))
        except WorkerLostError as error:
            loading.set_exception(error)

    def _replace(self, why: str) -> None:
        """Kill it, and unless it is of no use, start another one, which loads while the gateway goes on."""
        print(why, flush=True)
        self.kill()
        if self.lost < LOADS:
            self._start()


def open_server(words: Sequence[str]) -> PredictServer:
    """The server of a bundle, with the config's `server`; words: the arguments of kaggle_llm.kaggle.predict."""
    mounts = parse_mounts(words)
    config = load_config(mounts.bundle / "config.yaml", import_predict(mounts.exp).Config)
    return PredictServer(mounts, getattr(config, "server", ServerSettings()))


def run_server(server: PredictServer) -> None:
    """Hand `predict` to the competition's own kaggle_evaluation: for the rerun, else for the mounted test set.

    Raises RuntimeError where a row of the mounted test set got the fallback: in the rerun nobody would see it.
    """
    competition = server.mounts.competition
    inference_server = find_inference_server(competition)(server.predict)
    if os.getenv("KAGGLE_IS_COMPETITION_RERUN"):
        inference_server.serve()
        return
    inference_server.run_local_gateway((str(competition / f"{TEST}.csv"),))
    if server.fallbacks:
        raise RuntimeError(f"{server.fallbacks} of {server.rows} rows got the fallback: see above and server.log")


def find_inference_server(competition: Path) -> Any:
    """The class <X>InferenceServer of kaggle_evaluation, which lies in the competition's folder."""
    sys.path.insert(0, str(competition))
    found = sorted((competition / "kaggle_evaluation").glob("*_inference_server.py"))
    if len(found) != 1:
        raise FileNotFoundError(f"{competition} has {len(found)} kaggle_evaluation/*_inference_server.py, not one")
    module = importlib.import_module(f"kaggle_evaluation.{found[0].stem}")
    (maker,) = [
        value
        for name, value in vars(module).items()
        if name.endswith("InferenceServer") and getattr(value, "__module__", "") == module.__name__
    ]
    return maker


def check_fallback(competition: Path, settings: ServerSettings) -> None:
    """Raises ValueError where neither the settings nor the sample submission says what a cell may be."""
    sample = read_csv(competition / f"{SAMPLE}.csv")
    empty = [column for column in sample.columns[1:] if sample[column].null_count()]
    if settings.fallback is None and empty:
        raise ValueError(f"{SAMPLE}.csv has empty cells in {empty}: set server.fallback to what a cell may be")


def fit_answer(found: pl.DataFrame | None, sample: pl.DataFrame, fallback: str | None) -> tuple[pl.DataFrame, int]:
    """The sample's ids, columns and types with the cells of `found`, and how many rows have the fallback instead.

    found: all columns as text. A row whose cells are not all there, of the column's type, and finite has none.
    """
    import polars as pl

    id_column, *columns = sample.columns
    if found is None or found.columns != sample.columns:
        found = pl.DataFrame(schema=dict.fromkeys(sample.columns, pl.String()))
    asked = pl.DataFrame({id_column: sample[id_column].cast(pl.String())})
    rows = asked.join(found.unique(id_column, keep="first"), on=id_column, how="left", maintain_order="left")
    cells = [fit_column(rows[column], sample.schema[column]) for column in columns]
    right = pl.Series([all(cell is not None for cell in row) for row in zip(*cells, strict=True)], dtype=pl.Boolean())
    spares = [spare_column(sample[column], fallback) for column in columns]
    filled = [
        cell.zip_with(right, spare).alias(column) for cell, spare, column in zip(cells, spares, columns, strict=True)
    ]
    return pl.DataFrame([sample[id_column], *filled]), sample.height - int(right.sum())


def fit_column(texts: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Texts as the type; null where they are none of it, or not finite."""
    import polars as pl

    try:
        values = texts.cast(dtype, strict=False)
    except pl.exceptions.PolarsError:  # no text is of this type
        return pl.Series(texts.name, [None] * texts.len(), dtype=dtype)
    if not dtype.is_float():
        return values
    return pl.select(pl.when(values.is_finite()).then(values)).to_series()


def spare_column(sample: pl.Series, fallback: str | None) -> pl.Series:
    """The fallback as the sample's type; the sample's own cells where there is none, or where it does not fit."""
    import polars as pl

    if fallback is None:
        return sample
    return fit_column(pl.repeat(fallback, sample.len(), dtype=pl.String(), eager=True), sample.dtype).fill_null(sample)


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """A CSV in place of the link, or of the call before."""
    path.unlink(missing_ok=True)
    frame.write_csv(path)


def link_tables(competition: Path, served: Path) -> None:
    """All that the competition's folder holds, so that what a call brings can take its place."""
    for path in competition.iterdir():
        (served / path.name).symlink_to(path.resolve())


def worker_words(mounts: Mounts) -> list[str]:
    """The mounts as arguments again."""
    words = ["--bundle", str(mounts.bundle), "--competition", str(mounts.competition)]
    words += [word for place, folder in mounts.places.items() for word in ("--place", f"{place}={folder}")]
    return [*words, "--working", str(mounts.working), "--deadline", str(mounts.deadline)]


def worker_environment(bundle: Path) -> dict[str, str]:
    """The bundle's own package first; no network, no writing into the mount."""
    path = os.pathsep.join(part for part in (str(bundle / "src"), os.environ.get("PYTHONPATH")) if part)
    return {**os.environ, **OFFLINE, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
