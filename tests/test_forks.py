"""Programs in forks: what they get from their caller, how they end, and that none outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forks
import pytest

pytestmark = pytest.mark.timeout(120)


def start(code: str, *words: str, **options: object) -> subprocess.Popen[str]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([forks.python(), "-c", code, *words], text=True, **{**pipes, **options})  # type: ignore


def test_a_program_has_its_callers_folder_environment_streams_and_words(tmp_path: Path) -> None:
    code = "import os, sys; print(os.getcwd(), os.environ['COLOUR'], sys.argv[1:], input(), 'torch' in sys.modules)"
    program = start(code, "a b", cwd=tmp_path, env={**os.environ, "COLOUR": "red"})
    assert program.communicate("typed\n")[0].split("\n")[0] == f"{tmp_path} red ['a b'] typed True"
    assert program.returncode == 0


@pytest.mark.parametrize(
    ("code", "expected", "said"),
    [
        ("raise SystemExit(7)", 7, ""),
        ("raise SystemExit('in words')", 1, "in words"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("import os; os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_it_ends_as_the_program_does(code: str, expected: int, said: str) -> None:
    program = start(code)
    _, errors = program.communicate()
    assert program.returncode == expected and said in errors


def test_the_package_is_loaded_unless_the_path_has_another(tmp_path: Path) -> None:
    code = "import sys; print('kaggle_llm.cli' in sys.modules); import kaggle_llm; print(kaggle_llm.__file__)"
    loaded, own = start(code).communicate()[0].split()
    assert loaded == "True" and Path(own).parts[-3:] == ("src", "kaggle_llm", "__init__.py")
    other = tmp_path / "kaggle_llm" / "__init__.py"
    other.parent.mkdir()
    other.touch()
    said, _ = start(code, env={**os.environ, "PYTHONPATH": str(tmp_path)}).communicate()
    assert said.split() == ["False", str(other)]


def test_many_at_once_have_each_their_own_end() -> None:
    programs = [start(f"import time; time.sleep(0.3); raise SystemExit({number})") for number in range(12)]
    assert [program.wait() for program in programs] == list(range(12))


def test_a_signal_reaches_it_and_it_dies_with_its_caller() -> None:
    asleep = "import os, time; print(os.getpid(), flush=True); time.sleep(1000)"
    ended, left = start(asleep), start(asleep)
    pids = [int(program.stdout.readline()) for program in (ended, left) if program.stdout]
    ended.send_signal(signal.SIGTERM)  # SIGINT is ignored where the tests were started in the background
    assert ended.wait() == -signal.SIGTERM
    left.kill()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_client_that_goes_before_it_has_asked_leaves_the_server_working() -> None:
    for sent in (b"", (1000).to_bytes(4, "big") + b"{"):
        connection = forks.connect()
        if sent:
            connection.sendall(sent)
        connection.close()
    assert start("raise SystemExit(3)").wait() == 3
    assert sys.executable != forks.python()
