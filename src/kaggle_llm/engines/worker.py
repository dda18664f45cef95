"""One worker of a pool: `python -m kaggle_llm.engines.worker DESCRIPTOR JOB`, started by pool.py.

Makes an engine and answers the pool's calls over a connection until it is told to end. Leaves nothing on disk. When
the pool is gone it ends its process group at once, also in the middle of a call: no engine's process lives on.
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

WATCH = 1.0  # seconds between two looks at the parent
BROKEN = {"EngineDeadError", "AcceleratorError"}  # vLLM's core died; CUDA is of no use to this process any more

Request = tuple[str, tuple[Any, ...]]  # a method and its arguments; None: the end
Reply = tuple[str, Any]  # ANSWER and what the method gave, or ERROR and the exception
ANSWER, ERROR = "answer", "error"
OWN = ("__main__", "predict")  # modules of this process: the caller has others of these names, or none


def main(descriptor: int, job: dict[str, Any]) -> None:
    """Answer until the end. job: folder, base and settings of the engine, which is made at the first call."""
    connection, requests = open_requests(descriptor)
    base = Path(job["base"]) if job["base"] else None
    serve(connection, requests, partial(make_engine, Path(job["folder"]), EngineSettings(**job["settings"]), base))


class Closable(Protocol):
    def close(self) -> None: ...


def serve(connection: Connection, requests: SimpleQueue[Request | None], make: Callable[[], Closable]) -> None:
    """Answer requests with the methods of what `make` makes at the first one, which is closed at the end."""
    served: Closable | None = None
    while (request := requests.get()) is not None:
        kind, arguments = request
        try:
            if served is None:
                with note_loading():
                    served = make()
            reply: Reply = (ANSWER, getattr(served, kind)(*arguments))
        except BaseException as error:  # the caller's to judge, but for those after which nothing works here
            if not isinstance(error, Exception) or BROKEN & {kind.__name__ for kind in type(error).__mro__}:
                traceback.print_exc()
                end_group()
            reply = (ERROR, make_portable(error))
        connection.send(reply)
    if served is not None:
        served.close()


def open_requests(descriptor: int) -> tuple[Connection, SimpleQueue[Request | None]]:
    """The connection to the process that started this one, and where its requests arrive."""
    os.set_inheritable(descriptor, False)  # with a copy in another process, the parent would not see this one's end
    connection = Connection(descriptor)
    requests: SimpleQueue[Request | None] = SimpleQueue()
    threading.Thread(target=listen, args=(connection, requests, os.getppid()), daemon=True).start()
    return connection, requests


def listen(connection: Connection, requests: SimpleQueue[Request | None], parent: int) -> None:
    """Pass requests on, in a thread of its own; end the process group when the parent or a process of ours is lost.

    Where vLLM's core is killed, as for want of memory, vLLM waits for its answer for ever (0.32).
    """
    ours: set[Any] = set()
    request: Request | None = ("", ())
    try:
        while True:
            while not connection.poll(WATCH):
                ours |= set(active_children())
                lost = [child.name for child in ours if is_killed(child.exitcode)] if request is not None else []
                if lost:
                    print(f"{lost[0]}, a process that worker {os.getpid()} needs, was killed", file=sys.stderr)
                if lost or os.getppid() != parent:
                    end_group()
            request = connection.recv()
            requests.put(request)
    except (EOFError, OSError):
        end_group()


def is_killed(exitcode: int | None) -> bool:
    """By the system or a fault of its own: SIGTERM is how vLLM ends its processes."""
    return exitcode is not None and exitcode < 0 and exitcode != -signal.SIGTERM


def end_group() -> None:
    """Kill this process and all that it started, such as vLLM's."""
    os.killpg(os.getpgid(0), signal.SIGKILL)


def make_portable(error: BaseException) -> BaseException:
    """The exception with this process's traceback as a note; a RuntimeError in words where it cannot be pickled."""
    note = "".join(traceback.format_exception(error))
    try:
        if type(pickle.loads(pickle.dumps(error))) is not type(error) or type(error).__module__ in OWN:
            raise TypeError("pickled as another type, or of this process only")
    except (TypeError, ValueError, AttributeError, ImportError, pickle.PickleError):
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.__cause__ = error.__context__ = None
    error.add_note(f"in the worker:\n{note}")
    return error


if __name__ == "__main__":
    main(int(sys.argv[1]), json.loads(sys.argv[2]))
