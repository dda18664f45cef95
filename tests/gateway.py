"""A stand-in for kaggle_evaluation's gateway and inference server, as strict as they are; without gRPC.

The gateway hands out shuffled single rows over a socket; the server calls what it was given on the only thread of a
pool, off the main thread. Whatever Kaggle ends a submission for raises SubmissionError here.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import polars as pl


class SubmissionError(Exception):
    """The submission has failed; the message begins with the reason's name."""


class InferenceServer:
    """Listens from `serve` on, and calls the function, which has a name of its own, for each batch."""

    def __init__(self, function: Callable[..., Any]) -> None:
        if function.__name__ == "<lambda>":
            raise ValueError("the function needs a name: the gateway calls it by that")
        self.function = function
        self.pool = ThreadPoolExecutor(max_workers=1)

    def serve(self, address: str) -> None:
        """Answer one gateway; ends with it."""
        with Listener(address) as listener, listener.accept() as connection:
            while self._answer(connection):
                pass

    def serve_in_background(self, address: str) -> threading.Thread:
        thread = threading.Thread(target=self.serve, args=(address,), daemon=True)
        thread.start()
        return thread

    def _answer(self, connection: Connection) -> bool:
        try:
            name, batch = connection.recv()
            assert name == self.function.__name__
            future = self.pool.submit(self.function, *batch)
            error = future.exception()
            connection.send(("raised", repr(error)) if error else ("answered", future.result()))
        except (EOFError, OSError):
            return False
        return True


class Gateway:
    """Asks for the rows of `test` in an order of its own and returns the submission.

    start_limit: seconds until the server must be listening (15 minutes on Kaggle). response_timeout: seconds for every
    call but the first, which has none. by_column: hand out the columns of a row one by one, as AIMO 2 and 3 do, not the
    row with its sample submission.
    """

    def __init__(
        self,
        test: pl.DataFrame,
        sample: pl.DataFrame,
        start_limit: float = 900,
        response_timeout: float = 3600,
        by_column: bool = False,
    ) -> None:
        self.test, self.sample, self.by_column = test, sample, by_column
        self.start_limit, self.response_timeout = start_limit, response_timeout
        self.seconds: dict[str, float] = {}
        """Of each call, by row id, in the order asked."""

    def run(self, address: str, name: str = "predict", seed: int = 0) -> pl.DataFrame:
        answers = []
        with self._connect(address) as connection:
            for row, sample in self._batches(seed):
                start = time.monotonic()
                connection.send((name, tuple(row.get_columns()) if self.by_column else (row, sample)))
                if not connection.poll(self.response_timeout if answers else None):
                    raise SubmissionError(f"TIMEOUT: no answer for {self.response_timeout} s")
                self.seconds[str(sample[0, 0])] = time.monotonic() - start
                answers.append(self._check(connection.recv(), sample))
        return pl.concat(answers)

    def _connect(self, address: str) -> Connection:
        end = time.monotonic() + self.start_limit
        while True:
            try:
                return Client(address)
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > end:
                    raise SubmissionError(f"SERVER_NEVER_STARTED: not listening after {self.start_limit} s") from None
                time.sleep(0.05)

    def _batches(self, seed: int) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        for at in random.Random(seed).sample(range(self.test.height), self.test.height):
            yield self.test[at : at + 1], self.sample[at : at + 1]

    def _check(self, said: tuple[str, Any], sample: pl.DataFrame) -> pl.DataFrame:
        """The answer with the ids that were asked for, whatever ids it has."""
        kind, answer = said
        if kind == "raised":
            raise SubmissionError(f"SERVER_RAISED_EXCEPTION: {answer}")
        if answer is None:
            raise SubmissionError("INVALID_SUBMISSION: None")
        id_column, *columns = sample.columns
        if isinstance(answer, int | float | str):
            answer = pl.DataFrame({columns[0]: [answer]})
        elif isinstance(answer, pl.Series):
            answer = answer.alias(columns[0]).to_frame()
        if answer.height != sample.height:
            raise SubmissionError(f"INVALID_SUBMISSION: {answer.height} rows, {sample.height} asked")
        if any(column not in answer.columns for column in columns):
            raise SubmissionError(f"INVALID_SUBMISSION: columns {answer.columns}, asked {sample.columns}")
        return pl.DataFrame([sample[id_column], *(answer[column] for column in columns)])
