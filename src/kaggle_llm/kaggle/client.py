"""Run the `kaggle` CLI as a process: importing it would authenticate. Callers check what arrived, not its exit code.

Reading is repeated after a network or server error. Writing is not: callers first look at what is there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths

MARK = ".fetched"  # written last into a competition folder
READ_ATTEMPTS = 6
READ_TIMEOUT = 300.0  # seconds
TRANSIENT = re.compile(
    r"\b(429|500|502|503|504)\b.{0,20}(Error|Too Many)|Connection ?(Error|aborted|refused|reset)|Connection broken|"
    r"RemoteDisconnected|Max retries exceeded|timed out|did not answer",
    re.IGNORECASE,
)
ABSENT = re.compile(r"\b(403|404)\b|Permission '\w+\.get' was denied")  # either one where nothing is there
LOGGED_OUT = re.compile(r"\b401\b|Authentication required|Unauthorized|kaggle auth login")


class KaggleError(OSError):
    """The kaggle CLI failed; its output is the message."""

    @property
    def is_transient(self) -> bool:
        """Whether the same command may succeed a moment later."""
        return bool(TRANSIENT.search(str(self)))

    @property
    def is_absent(self) -> bool:
        """Whether the dataset or kernel asked for does not exist, or is not ours."""
        return bool(ABSENT.search(str(self)))


def run_kaggle(*words: str, timeout: float | None = None, variables: Mapping[str, str] | None = None) -> str:
    """Output of `kaggle WORDS`; raises KaggleError with the CLI's output where it fails.

    timeout: seconds; variables: of the environment, added to ours.
    """
    try:
        code, output = start_program(words, {**os.environ, **(variables or {})}, timeout)
    except subprocess.TimeoutExpired:
        code, output = 1, f"it did not answer for {timeout:.0f} s"
    if code:
        raise KaggleError(f"kaggle {' '.join(words)} failed: {describe_failure(output) or f'exit code {code}'}")
    return output


def start_program(words: tuple[str, ...], environment: Mapping[str, str], timeout: float | None) -> tuple[int, str]:
    """Exit code and output of the CLI, stdout and stderr."""
    program = Path(sys.executable).with_name("kaggle")
    done = subprocess.run(
        [str(program), *words], capture_output=True, text=True, check=False, env=dict(environment), timeout=timeout
    )
    return done.returncode, f"{done.stdout}\n{done.stderr}".strip()


def describe_failure(output: str) -> str:
    """The end of the CLI's output (the last line of a traceback), or how to log in."""
    if LOGGED_OUT.search(output):
        return "Kaggle does not know you (401 Unauthorized): log in with `kaggle auth login`, or renew kaggle.json"
    if "Traceback (most recent call last)" in output:
        return output.splitlines()[-1][-1000:]
    return output[-1000:]


def ask_kaggle(*words: str) -> str:
    """Output of a command that only reads, repeated after a network or server error."""
    for attempt in range(1, READ_ATTEMPTS):
        try:
            return run_kaggle(*words, timeout=READ_TIMEOUT)
        except KaggleError as error:
            if not error.is_transient:
                raise
            print(f"{error}; trying again in {2**attempt} s", file=sys.stderr, flush=True)
            pause(2**attempt)
    return run_kaggle(*words, timeout=READ_TIMEOUT)


def pause(seconds: float) -> None:
    """Sleep: the one place where push and submit wait, replaced in tests."""
    time.sleep(seconds)


def read_answer(output: str) -> Any:
    """The JSON in the CLI's output, after lines such as a warning of an old version; None where there is none."""
    start = re.search(r"^[\[{]", output, re.MULTILINE)
    return json.JSONDecoder().raw_decode(output, start.start())[0] if start else None


def find_owner() -> str:
    """The Kaggle user that is logged in; raises KaggleError without one."""
    output = ask_kaggle("config", "view")
    match = re.search(r"^- username: (\S+)$", output, re.MULTILINE)
    if match is None or match[1] == "None":
        raise KaggleError(
            f"kaggle config view names no user: log in with `kaggle auth login`; it says: {output[-300:]}"
        )
    return match[1]


def fetch_competition(name: str) -> Path:
    """Download and unpack a competition's data into input/<name>/, whole or not at all; returns the folder."""
    folder = paths.root() / "input" / name
    if (folder / MARK).is_file():
        return folder
    if folder.exists():
        raise FileExistsError(f"{paths.relative(folder)} exists and was not made by fetch: move it away first")
    download = folder.with_name(f".{name}.fetching")
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir(parents=True)
    try:
        output = run_kaggle("competitions", "download", "-c", name, "-p", str(download))
        unpack_archives(download)
        if not any(download.iterdir()):
            raise OSError(
                f"nothing arrived for {name}; have you accepted the competition's rules? kaggle said: {output}"
            )
        (download / MARK).touch()
        download.rename(folder)
    finally:
        shutil.rmtree(download, ignore_errors=True)
    return folder


def unpack_archives(folder: Path) -> None:
    """Unpack every .zip in place and delete it. Raises ValueError for a member that would leave the folder."""
    for archive in sorted(folder.glob("*.zip")):
        with zipfile.ZipFile(archive) as file:
            for member in file.namelist():
                if not (folder / member).resolve().is_relative_to(folder.resolve()):
                    raise ValueError(f"{archive.name} has the member {member!r}, which lies outside the folder")
            file.extractall(folder)
        archive.unlink()
