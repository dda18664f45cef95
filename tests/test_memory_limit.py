"""Memory of a tree of processes: what is counted once, what is stopped, and what the message says."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kaggle_llm.rehearsal import memory_limit
from kaggle_llm.rehearsal.memory_limit import (
    MIB,
    Usage,
    enter,
    find_parent,
    limited_group,
    measure_tree,
    parse_memory,
    show_bytes,
)
from kaggle_llm.rehearsal.sandbox import Sandbox, kill_tree

HOLD = "import sys, time; held = b'x' * (int(sys.argv[1]) << 20); print('held', flush=True); time.sleep(60)"
CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}, sys.argv[1]])"
FORKS = """
import os, time
held = b"x" * (200 << 20)
for _ in range(3):
    if os.fork() == 0:
        break
print("held", flush=True)
time.sleep(60)
"""
BURST = "held = bytearray(b'x' * (400 << 20)); del held"


@contextmanager
def running(code: str, *words: str, lines: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    """A process, once it has said so many lines."""
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE)
    assert process.stdout
    try:
        for _ in range(lines):
            process.stdout.readline()
        yield process
    finally:
        kill_tree(process.pid)
        process.wait()
        process.stdout.close()


@pytest.mark.timeout(60)
def test_a_child_above_the_limit_is_named() -> None:
    usage = Usage(150 * MIB)
    with running(CHILD, "200") as process, pytest.raises(MemoryError) as raised:
        usage.wait(process, 30)
    assert str(raised.value).startswith("over the limit of 150 MB: measured 2")
    assert "largest process 2" in str(raised.value) and "held = b'x'" in str(raised.value)
    assert 200 * MIB < usage.largest < usage.peak < 260 * MIB


@pytest.mark.timeout(60)
def test_below_the_limit_nothing_is_stopped_and_the_peak_is_known() -> None:
    usage = Usage(400 * MIB)
    with running(HOLD, "200") as process, pytest.raises(subprocess.TimeoutExpired):
        usage.wait(process, 1)
    assert not usage.over and 200 * MIB < usage.peak < 230 * MIB
    with running("print(1)") as process:
        assert usage.wait(process, 10) == 0


@pytest.mark.timeout(60)
@pytest.mark.skipif(sys.platform != "linux", reason="no proportional set size")
def test_pages_that_processes_share_count_once() -> None:
    with running(FORKS, lines=4) as process:
        sizes = [size for size, _ in measure_tree(process.pid)]
    assert len(sizes) == 4 and 200 * MIB < sum(sizes) < 300 * MIB, "four times 200 MB by resident set sizes"


@pytest.mark.timeout(60)
def test_the_kernel_holds_the_limit_between_two_looks() -> None:
    """Where it lets us: 400 MB for a moment."""
    if find_parent() is None:
        pytest.skip("this system lets nobody make a control group")
    usage = Usage(200 * MIB)
    with (
        pytest.raises(MemoryError, match="over the limit of 200 MB, stopped by the kernel"),
        limited_group(usage) as group,
    ):
        assert group
        assert subprocess.run(enter(group, [sys.executable, "-c", BURST]), check=False).returncode == -9
    assert usage.over
    assert not group.exists(), "nothing is left behind"
    small = Usage(1000 * MIB)
    with limited_group(small) as group:
        assert group and subprocess.run(enter(group, [sys.executable, "-c", BURST]), check=False).returncode == 0
    assert not small.over


@pytest.mark.timeout(60)
@pytest.mark.parametrize("group", [True, False], ids=["with a group where there can be one", "without"])
def test_a_sandboxed_tree_is_watched_from_outside_and_ends_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: bool
) -> None:
    if not group:
        monkeypatch.setattr(memory_limit, "find_parent", lambda: None)
    for name in ("kaggle/input", "kaggle/working", "mount"):
        (tmp_path / name).mkdir(parents=True)
    box, start = Sandbox(tmp_path / "kaggle", tmp_path / "mount", tmp_path), time.monotonic()
    usage, log = Usage(150 * MIB), tmp_path / "log.txt"
    grows = "import time; held = [b'x' * (20 << 20) for _ in range(100) if time.sleep(0.05) is None]"
    with pytest.raises(MemoryError, match="over the limit of 150 MB"):
        box.run([sys.executable, "-c", grows], log, {}, 50, usage)
    assert time.monotonic() - start < 30 and usage.over and "held = [b'x'" in usage.name


@pytest.mark.parametrize(("text", "size"), [("29GB", 29 * 2**30), ("500MB", 500 * 2**20), ("1.5GB", 3 * 2**29)])
def test_memory_is_written_with_its_unit(text: str, size: int) -> None:
    assert parse_memory(text) == size
    assert parse_memory(show_bytes(size).replace(" ", "")) == size


@pytest.mark.parametrize("text", ["", "29", "29 gb", "-1GB", "0GB", "29Gi"])
def test_bad_memory_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 29GB"):
        parse_memory(text)
