"""The `kaggle` CLI as a process: it authenticates when imported, and what arrived counts, not its exit code.

Reading is repeated when the network or Kaggle stumbles. Writing is not: whoever writes looks first at what is there.
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
READS = 6  # times that a question is asked
SILENCE = 300.0  # seconds without an answer to a question after which the network is taken to be gone
STUMBLED = re.compile(
    r"\b(429|500|502|503|504)\b.{0,20}(Error|Too Many)|Connection ?(Error|aborted|refused|reset)|Connection broken|"
    r"RemoteDisconnected|Max retries exceeded|timed out|did not answer",
    re.IGNORECASE,
)
ABSENT = re.compile(r"\b(403|404)\b|Permission '\w+\.get' was denied")  # Kaggle says either of what is not there
LOGGED_OUT = re.compile(r"\b401\b|Authentication required|Unauthorized|kaggle auth login")


class KaggleError(OSError):
    """What the kaggle CLI said when it failed."""

    @property
    def stumbled(self) -> bool:
        """Whether the same command may succeed a moment later."""
        return bool(STUMBLED.search(str(self)))

    @property
    def absent(self) -> bool:
        """Whether what was asked for does not exist, or is not ours."""
        return bool(ABSENT.search(str(self)))


def run_kaggle(*words: str, timeout: float | None = None, more: Mapping[str, str] | None = None) -> str:
    """Output of `kaggle WORDS`; raises KaggleError with the CLI's own words where it fails.

    timeout: seconds; more: environment variables beside ours.
    """
    try:
        code, said = start_program(words, {**os.environ, **(more or {})}, timeout)
    except subprocess.TimeoutExpired:
        code, said = 1, f"it did not answer for {timeout:.0f} s"
    if code:
        raise KaggleError(f"kaggle {' '.join(words)} failed: {describe_failure(said) or f'exit code {code}'}")
    return said


def start_program(words: tuple[str, ...], environment: Mapping[str, str], timeout: float | None) -> tuple[int, str]:
    """Exit code of the CLI, and all that it said."""
    program = Path(sys.executable).with_name("kaggle")
    done = subprocess.run(
        [str(program), *words], capture_output=True, text=True, check=False, env=dict(environment), timeout=timeout
    )
    return done.returncode, f"{done.stdout}\n{done.stderr}".strip()


def describe_failure(said: str) -> str:
    """The CLI's last words, without a traceback's lines; with the way out where nobody is logged in."""
    if LOGGED_OUT.search(said):
        return "Kaggle does not know you (401 Unauthorized): log in with `kaggle auth login`, or renew kaggle.json"
    if "Traceback (most recent call last)" in said:
        return said.splitlines()[-1][-1000:]
    return said[-1000:]


def ask_kaggle(*words: str) -> str:
    """The answer to a question, which is asked again when the network or Kaggle stumbles."""
    for attempt in range(1, READS):
        try:
            return run_kaggle(*words, timeout=SILENCE)
        except KaggleError as error:
            if not error.stumbled:
                raise
            print(f"{error}; once more in {2**attempt} s", file=sys.stderr, flush=True)
            pause(2**attempt)
    return run_kaggle(*words, timeout=SILENCE)


def pause(seconds: float) -> None:
    """The one place where the round trip waits."""
    time.sleep(seconds)


def read_answer(said: str) -> Any:
    """The JSON in an answer, behind lines such as a warning of an old version; None where there is none."""
    found = re.search(r"^[\[{]", said, re.MULTILINE)
    return json.JSONDecoder().raw_decode(said, found.start())[0] if found else None


def find_owner() -> str:
    """Kaggle's name of whoever is logged in; raises KaggleError where nobody is."""
    said = ask_kaggle("config", "view")
    found = re.search(r"^- username: (\S+)$", said, re.MULTILINE)
    if found is None or found[1] == "None":
        raise KaggleError(f"kaggle config view names no user: log in with `kaggle auth login`; it says: {said[-300:]}")
    return found[1]


def fetch_competition(name: str) -> Path:
    """Download and unpack a competition's data into input/<name>/; complete or absent."""
    folder = paths.root() / "input" / name
    if (folder / MARK).is_file():
        return folder
    if folder.exists():
        raise FileExistsError(f"{paths.relative(folder)} exists and was not made by fetch: move it away first")
    download = folder.with_name(f".{name}.fetching")
    shutil.rmtree(download, ignore_errors=True)
    download.mkdir(parents=True)
    try:
        said = run_kaggle("competitions", "download", "-c", name, "-p", str(download))
        unpack_archives(download)
        if not any(download.iterdir()):
            raise OSError(f"nothing arrived for {name}; have you accepted the competition's rules? kaggle said: {said}")
        (download / MARK).touch()
        download.rename(folder)
    finally:
        shutil.rmtree(download, ignore_errors=True)
    return folder


def unpack_archives(folder: Path) -> None:
    """Unpack every .zip in place and drop it; a member that would leave the folder is refused."""
    for archive in sorted(folder.glob("*.zip")):
        with zipfile.ZipFile(archive) as file:
            for member in file.namelist():
                if not (folder / member).resolve().is_relative_to(folder.resolve()):
                    raise ValueError(f"{archive.name} has the member {member!r}, which lies outside the folder")
            file.extractall(folder)
        archive.unlink()
