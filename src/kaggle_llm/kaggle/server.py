"""A predict server for competitions whose gateway sends the test rows call by call (kaggle_evaluation).

The gateway calls `PredictServer.predict`. The model is loaded in a process of its own (serve_worker.py), so the server
listens at once, and a call that hangs or crashes costs only its own rows: the process is killed and restarted, and the
rows get the fallback. Every row goes through `answer()`, as in CV: a call's rows are written as the test file into a
folder that the competition reads from.

Leaves server.log, the output of that process, in the working folder.
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
from kaggle_llm.competition.competition import SAMPLE, TEST
from kaggle_llm.competition.csv_table import read_csv
from kaggle_llm.competition.data_files import encode_file, find_file, read_file
from kaggle_llm.engines.pool import OFFLINE_VARIABLES, Worker, WorkerLostError
from kaggle_llm.inference.budget import budget_until
from kaggle_llm.inference.run import import_predict
from kaggle_llm.kaggle.predict import Mounts, parse_mounts

if TYPE_CHECKING:
    import polars as pl

ANSWER_FILE = "submission.csv"
LOAD_ATTEMPTS = 3
FAILURES_TO_RESTART = 3  # exceptions in a row after which the process is restarted: a GPU may be lost
SOFT_LIMIT = 0.8  # share of a call's time after which the prediction stops; after all of it the process is killed
CALL_FAILED = "failed"  # the first part of a reply whose second part is a traceback


@dataclass
class ServerSettings:
    rows: int | None = None
    """Rows that the gateway sends in total: each may take its share of the time left. None: unknown."""
    call_seconds: float = 240.0
    """The longest that a call may take, except the first one: below the gateway's limit, which ends the session."""
    load_seconds: float = 1200.0
    """The longest that loading may take before it is tried again."""
    fallback: str | None = None
    """The cell of a row without an answer; None: the sample submission's."""

    def __post_init__(self) -> None:
        if not (self.call_seconds > 0 and self.load_seconds > 0 and (self.rows is None or self.rows > 0)):
            raise ValueError(
                f"rows = {self.rows}, call_seconds = {self.call_seconds}, load_seconds = {self.load_seconds}: "
                f"they must be above 0"
            )


class PredictServer:
    """`predict` answers the gateway's calls. The model is still loading after construction; `close` ends its process.

    Raises ValueError where a row without an answer would get an empty cell.
    """

    def __init__(self, mounts: Mounts, settings: ServerSettings) -> None:
        import polars as pl

        check_fallback(mounts.competition, settings)
        self.mounts = mounts
        self.settings, self.budget = settings, budget_until(mounts.deadline)
        self.rows = self.fallbacks = self.calls = 0
        """Counted so far: rows, rows that got the fallback, calls."""
        self._test = find_file(mounts.competition, TEST)
        self._columns = read_file(self._test).columns
        sample = mounts.competition / f"{SAMPLE}.csv"
        self._sample = pl.read_csv(sample, infer_schema_length=None)  # with the cells' types
        self._lock = threading.Lock()
        self._temporary = TemporaryDirectory(prefix="served-")
        self._served = Path(self._temporary.name)
        for path in mounts.competition.iterdir():  # links: the files of a call replace some of them
            (self._served / path.name).symlink_to(path.resolve())
        self._model = ModelProcess(mounts, self._served, settings.load_seconds)

    def predict(self, *tables: Any) -> pl.DataFrame:
        """The answer to the rows of one call, with the rows, columns and types of their sample submission.

        tables: as gateways give them, see `read_call`. Never raises for an error of the experiment or another kind of
        call, and takes no longer than the rows' share of the time. Only the first call, for which the gateway waits,
        also waits until the model is loaded.
        """
        import polars as pl

        with self._lock:
            predicted, sample = None, self._sample.head(1)
            try:
                row, sample = read_call(tables, self._columns, self._sample)
                predicted, why = self._ask(row, sample)
            except (OSError, ValueError, pl.exceptions.PolarsError) as error:  # a full disk, a table that is no CSV
                why = f"{type(error).__name__}: {error}"
            answer, fallbacks = fit_answer(predicted, sample, self.settings.fallback)
            self.calls += 1
            self.rows += sample.height
            self.fallbacks += fallbacks
            if why or fallbacks:
                print(f"call {self.calls}: {fallbacks} row(s) get the fallback: {why or 'no answer'}", flush=True)
            return answer

    def close(self) -> None:
        """End the model's process and its child processes."""
        self._model.kill()
        self._temporary.cleanup()

    def _ask(self, row: pl.DataFrame, sample: pl.DataFrame) -> tuple[pl.DataFrame | None, str]:
        """The answer as text, or the last one written before a kill; and the error, or ""."""
        end = time.monotonic() + self._share(sample.height)
        wait = self._share(sample.height) if self.calls else self.budget.left()
        if not self._model.wait_until_loaded(wait):
            return None, "the model is not loaded"
        seconds = end - time.monotonic() if self.calls else self._share(sample.height)
        if seconds <= 0:
            return None, "no time is left"
        for name, frame in ((self._test.name, row), (f"{SAMPLE}.csv", sample)):
            write_table(frame, self._served / name)
        (self._served / ANSWER_FILE).unlink(missing_ok=True)
        why = self._model.ask(seconds)
        path = self._served / ANSWER_FILE
        return (read_csv(path) if path.is_file() else None), why

    def _share(self, rows: int) -> float:
        """Seconds for a call of so many rows: their share of the time left, at most `call_seconds`."""
        left = max(self.budget.left(), 0.0)
        if self.settings.rows is not None:
            left *= rows / max(self.settings.rows - self.rows, rows, 1)
        return min(left, self.settings.call_seconds)


class ModelProcess:
    """The process that holds the model; killed and restarted when it dies or takes too long.

    served: the folder from which it reads a call's rows, and to which it writes the answer.
    """

    def __init__(self, mounts: Mounts, served: Path, load_seconds: float) -> None:
        self.bundle, self.load_seconds = mounts.bundle, load_seconds
        self.job = json.dumps({"served": str(served), "mounts": worker_words(mounts)})
        self.lost = self.failures = 0
        """Loads, and answers, that failed in a row."""
        self._start()

    def wait_until_loaded(self, seconds: float) -> bool:
        """Wait at most `seconds`; returns whether the model is loaded. If not, loading goes on."""
        end = time.monotonic() + seconds
        while self.lost < LOAD_ATTEMPTS:
            try:
                self._loading.result(max(end - time.monotonic(), 0.0))
            except TimeoutError:
                return False
            except WorkerLostError as error:
                self.lost += 1
                self._replace(f"loading failed, {self.lost} of {LOAD_ATTEMPTS} times: it {error}")
            else:
                self.lost = 0
                if not self._worker.has_ended():
                    return True
                self._replace("the model's process ended between two calls")
        return False

    def ask(self, seconds: float) -> str:
        """Answer the rows in the served folder; returns the error, or ""."""
        try:
            outcome, problem = self._worker.ask(("answer", (SOFT_LIMIT * seconds,)), seconds)
        except WorkerLostError as error:
            self._replace(f"the model's process is restarted: it {error}")
            return f"the model's process {error}"
        self.failures = self.failures + 1 if outcome == CALL_FAILED else 0
        if self.failures == FAILURES_TO_RESTART:
            self.failures = 0
            self._replace(f"the model's process is restarted: {FAILURES_TO_RESTART} calls failed in a row")
        return str(problem)

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
        """Kill the process and, unless loading failed too often, start another one, which loads in the background."""
        print(why, flush=True)
        self.kill()
        if self.lost < LOAD_ATTEMPTS:
            self._start()


def read_call(tables: Sequence[Any], columns: Sequence[str], sample: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows of a call and their sample submission.

    tables: the rows and their sample submission, or the columns of the rows one by one, as Series or frames (as the
    gateways of AIMO 2 and 3 do). columns: of test.csv, the names of Series without one; sample: the mounted one, whose
    first row's cells are taken. Raises ValueError for anything else.
    """
    import polars as pl

    frames = [table.to_frame() if isinstance(table, pl.Series) else table for table in tables]
    if not frames or not all(isinstance(frame, pl.DataFrame) for frame in frames):
        raise ValueError(f"predict({', '.join(type(table).__name__ for table in tables)}): polars tables are expected")
    if len(frames) == 2 and frames[1].columns == sample.columns:
        return frames[0], frames[1]
    if len(frames) == len(columns) and any(frame.columns == [""] for frame in frames):
        frames = [frame.rename({frame.columns[0]: name}) for frame, name in zip(frames, columns, strict=True)]
    rows = pl.concat(frames, how="horizontal")
    id_column, *cells = sample.columns
    if not set(columns) <= set(rows.columns):
        raise ValueError(f"predict got the columns {rows.columns}, the test file has {list(columns)}")
    ids = rows[id_column if id_column in rows.columns else columns[0]].alias(id_column)
    return rows, pl.DataFrame([ids]).with_columns(pl.lit(sample[cell].first()).alias(cell) for cell in cells)


def open_server(words: Sequence[str]) -> PredictServer:
    """The server of a bundle, with the config's `server`; words: the arguments of kaggle_llm.kaggle.predict."""
    mounts = parse_mounts(words)
    config = load_config(mounts.bundle / "config.yaml", import_predict(mounts.exp).Config)
    return PredictServer(mounts, getattr(config, "server", ServerSettings()))


def run_server(server: PredictServer) -> None:
    """Hand `predict` to the competition's kaggle_evaluation: for the rerun, or else for the mounted test set.

    Raises RuntimeError where a row of the mounted test set got the fallback: in the rerun nobody would notice.
    """
    competition = server.mounts.competition
    inference_server = find_inference_server(competition)(server.predict)
    if os.getenv("KAGGLE_IS_COMPETITION_RERUN"):
        inference_server.serve()
        return
    inference_server.run_local_gateway((str(find_file(competition, TEST)),))
    if server.fallbacks:
        raise RuntimeError(f"{server.fallbacks} of {server.rows} rows got the fallback: see above and server.log")


def find_inference_server(competition: Path) -> Any:
    """The class <X>InferenceServer of kaggle_evaluation, which lies in the competition's folder."""
    sys.path.insert(0, str(competition))
    files = sorted((competition / "kaggle_evaluation").glob("*_inference_server.py"))
    if len(files) != 1:
        raise FileNotFoundError(f"{competition} has {len(files)} kaggle_evaluation/*_inference_server.py, not one")
    module = importlib.import_module(f"kaggle_evaluation.{files[0].stem}")
    (server_class,) = [
        value
        for name, value in vars(module).items()
        if name.endswith("InferenceServer") and getattr(value, "__module__", "") == module.__name__
    ]
    return server_class


def check_fallback(competition: Path, settings: ServerSettings) -> None:
    """Raises ValueError where neither the settings nor the sample submission have a cell for the fallback."""
    sample = read_csv(competition / f"{SAMPLE}.csv")
    empty = [column for column in sample.columns[1:] if sample[column].null_count()]
    if settings.fallback is None and empty:
        raise ValueError(f"{SAMPLE}.csv has empty cells in {empty}: set server.fallback to what a cell may be")


def fit_answer(predicted: pl.DataFrame | None, sample: pl.DataFrame, fallback: str | None) -> tuple[pl.DataFrame, int]:
    """The sample's ids, columns and types with the predicted cells, and how many rows have the fallback instead.

    predicted: all columns as text. A row with a cell that is missing, of another type or not finite gets the fallback.
    """
    import polars as pl

    id_column, *columns = sample.columns
    if predicted is None or predicted.columns != sample.columns:
        predicted = pl.DataFrame(schema=dict.fromkeys(sample.columns, pl.String()))
    ids = pl.DataFrame({id_column: sample[id_column].cast(pl.String())})
    rows = ids.join(predicted.unique(id_column, keep="first"), on=id_column, how="left", maintain_order="left")
    cells = [fit_column(rows[column], sample.schema[column]) for column in columns]
    complete = pl.Series(
        [all(cell is not None for cell in row) for row in zip(*cells, strict=True)], dtype=pl.Boolean()
    )
    fallbacks = [fallback_column(sample[column], fallback) for column in columns]
    filled = [
        own.zip_with(complete, other).alias(column)
        for own, other, column in zip(cells, fallbacks, columns, strict=True)
    ]
    return pl.DataFrame([sample[id_column], *filled]), sample.height - int(complete.sum())


def fit_column(texts: pl.Series, dtype: pl.DataType) -> pl.Series:
    """The texts cast to the type; null where that fails or is not finite."""
    import polars as pl

    try:
        values = texts.cast(dtype, strict=False)
    except pl.exceptions.PolarsError:  # no text is of this type
        return pl.Series(texts.name, [None] * texts.len(), dtype=dtype)
    if not dtype.is_float():
        return values
    return pl.select(pl.when(values.is_finite()).then(values)).to_series()


def fallback_column(sample: pl.Series, fallback: str | None) -> pl.Series:
    """The fallback as the sample's type; the sample's own cells where there is none, or it does not fit the type."""
    import polars as pl

    if fallback is None:
        return sample
    return fit_column(pl.repeat(fallback, sample.len(), dtype=pl.String(), eager=True), sample.dtype).fill_null(sample)


def write_table(frame: pl.DataFrame, path: Path) -> None:
    """Write a table in place of the link, or of the previous call's file."""
    path.unlink(missing_ok=True)
    path.write_bytes(encode_file(frame, path.name))


def worker_words(mounts: Mounts) -> list[str]:
    """The arguments of kaggle_llm.kaggle.predict for these mounts."""
    words = ["--bundle", str(mounts.bundle), "--competition", str(mounts.competition)]
    words += [word for name, folder in mounts.model_folders.items() for word in ("--place", f"{name}={folder}")]
    return [*words, "--working", str(mounts.working), "--deadline", str(mounts.deadline)]


def worker_environment(bundle: Path) -> dict[str, str]:
    """The bundle's own package first; no network, no writing into the mount."""
    path = os.pathsep.join(part for part in (str(bundle / "src"), os.environ.get("PYTHONPATH")) if part)
    return {
        **os.environ,
        **OFFLINE_VARIABLES,
        "PYTHONPATH": path,
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
    }
