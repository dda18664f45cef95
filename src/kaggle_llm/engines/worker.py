"""One worker of a pool: `python -m kaggle_llm.engines.worker DESCRIPTOR JOB`, started by pool.py.

Makes an engine and answers the pool's calls over a connection until it is told to end. Leaves nothing on disk. When
the pool is gone it kills its process group at once, also in the middle of a call, so that no engine's process is left.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing import active_children
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.loading import note_loading
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.pool import ERROR_REPLY

PARENT_POLL_SECONDS = 1.0  # between two looks at the parent
FATAL_ERRORS = {"EngineDeadError", "AcceleratorError"}  # vLLM's core died; CUDA no longer works in this process

Request = tuple[str, tuple[Any, ...]]  # a method and its arguments; None ends the worker
Reply = tuple[str, Any]  # ANSWER_REPLY and the method's result, or ERROR_REPLY and the exception
ANSWER_REPLY = "answer"
LOCAL_MODULES = ("__main__", "predict")  # in the caller's process they are other modules, or missing


def main(descriptor: int, job: dict[str, Any]) -> None:
    """Answer requests until told to end. job: folder, base and settings of the engine, made at the first request."""
    connection, requests = open_requests(descriptor)
    base = Path(job["base"]) if job["base"] else None
    serve(connection, requests, partial(make_engine, Path(job["folder"]), EngineSettings(**job["settings"]), base))


class Closable(Protocol):
    def close(self) -> None: ...


def serve(connection: Connection, requests: SimpleQueue[Request | None], make: Callable[[], Closable]) -> None:
    """Answer requests with the methods of an object that `make` makes at the first one; closed at the end."""
    served: Closable | None = None
    while (request := requests.get()) is not None:
        method, arguments = request
        try:
            if served is None:
                with note_loading():
                    served = make()
            reply: Reply = (ANSWER_REPLY, getattr(served, method)(*arguments))
        except BaseException as error:  # raised in the caller, unless nothing works here any more
            if not isinstance(error, Exception) or FATAL_ERRORS & {cls.__name__ for cls in type(error).__mro__}:
                traceback.print_exc()
                kill_group()
            reply = (ERROR_REPLY, make_portable(error))
        connection.send(reply)
    if served is not None:
        served.close()


def open_requests(descriptor: int) -> tuple[Connection, SimpleQueue[Request | None]]:
    """The connection to the parent process, and the queue of its requests."""
    os.set_inheritable(descriptor, False)  # a child with a copy would hide this process's end from the parent
    connection = Connection(descriptor)
    requests: SimpleQueue[Request | None] = SimpleQueue()
    threading.Thread(target=listen, args=(connection, requests, os.getppid()), daemon=True).start()
    return connection, requests


def listen(connection: Connection, requests: SimpleQueue[Request | None], parent: int) -> None:
    """Queue the requests, in a thread; kill the process group when the parent or a child process is lost.

    vLLM 0.32 waits forever where its core is killed, for example for want of memory.
    """
    children: set[Any] = set()
    request: Request | None = ("", ())
    try:
        while True:
            while not connection.poll(PARENT_POLL_SECONDS):
                children |= set(active_children())
                lost = [child.name for child in children if is_killed(child.exitcode)] if request is not None else []
                if lost:
                    print(f"{lost[0]}, a process that worker {os.getpid()} needs, was killed", file=sys.stderr)
                if lost or os.getppid() != parent:
                    kill_group()
            request = connection.recv()
            requests.put(request)
    except (EOFError, OSError):
        kill_group()


def is_killed(exitcode: int | None) -> bool:
    """Whether a signal ended the process; SIGTERM does not count: vLLM ends its processes with it."""
    return exitcode is not None and exitcode < 0 and exitcode != -signal.SIGTERM


def kill_group() -> None:
    """Kill this process and all that it started, such as vLLM's."""
    os.killpg(os.getpgid(0), signal.SIGKILL)


def make_portable(error: BaseException) -> BaseException:
    """The exception with this process's traceback as a note; a RuntimeError of its text where it cannot be pickled."""
    note = "".join(traceback.format_exception(error))
    try:
        if type(pickle.loads(pickle.dumps(error))) is not type(error) or type(error).__module__ in LOCAL_MODULES:
            raise TypeError("it becomes another type when pickled, or exists in this process only")
    except (TypeError, ValueError, AttributeError, ImportError, pickle.PickleError):
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.__cause__ = error.__context__ = None
    error.add_note(f"in the worker:\n{note}")
    return error


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
