"""The kaggle CLI's `main` in forks of a process that has imported it: some hundred calls without its second of start.

A Forks is started once; `Forks.start_program` takes the place of client.start_program. The CLI's own waiting is cut,
and so is its search for translations of each word of its help, which takes half of a call.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path


class Forks:
    def __init__(self, home: Path) -> None:
        from kaggle_server import environment

        command = [sys.executable, __file__]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process = subprocess.Popen(command, env=environment(home, "http://127.0.0.1:9"), **pipes)  # type: ignore[call-overload]

    def start_program(
        self, words: tuple[str, ...], environment: Mapping[str, str], timeout: float | None
    ) -> tuple[int, str]:
        """As client.start_program."""
        self._process.stdin.write(json.dumps([words, dict(environment), timeout]) + "\n")
        self._process.stdin.flush()
        code, said = json.loads(self._process.stdout.readline())
        if code is None:
            raise subprocess.TimeoutExpired("kaggle", timeout or 0)
        return code, said

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait(10)


def main() -> None:
    import gettext

    import kaggle.cli

    gettext.find = lambda *_, **__: None  # type: ignore[assignment]
    for line in sys.stdin:
        words, environment, timeout = json.loads(line)
        with tempfile.TemporaryFile() as said:
            pid = os.fork()
            if pid == 0:
                run(kaggle.cli.main, words, environment, said.fileno())
            code = wait(pid, timeout)
            said.seek(0)
            print(json.dumps([code, said.read().decode(errors="replace").strip()]), flush=True)


def run(program, words: list[str], environment: dict[str, str], said: int) -> None:  # type: ignore[no-untyped-def]
    """In the fork: never returns."""
    import traceback

    os.environ.clear()
    os.environ.update(environment)
    for descriptor in (1, 2):
        os.dup2(said, descriptor)
    tempfile.tempdir = None
    sys.argv, time.sleep = ["kaggle", *words], lambda _: None
    code = 0
    try:
        program()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(pid: int, timeout: float | None) -> int | None:
    """The fork's exit code; None where it was killed for its silence."""
    end = time.monotonic() + (timeout or 1e9)
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        time.sleep(0.002)


if __name__ == "__main__":
    main()
