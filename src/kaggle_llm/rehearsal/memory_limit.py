"""Memory of a process and its descendants: measured from outside, stopped at a limit. Leaves nothing on disk.

Twice a second the proportional set sizes are summed, which shows the total and the largest process. Where we may make a
control group, the kernel enforces the limit too, also between two measurements.
"""

from __future__ import annotations

import contextlib
import functools
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.runtime.machine import GIB

if TYPE_CHECKING:
    import psutil

MIB = 2**20
INTERVAL = 0.5  # seconds between two measurements
GROUPS = Path("/sys/fs/cgroup")
LIMITS = ("memory.max", "memory.limit_in_bytes")  # of version 2 and of version 1
NO_SWAP = (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", 1))  # file, multiple of the limit: Kaggle has none
EVENTS = ("memory.events", "memory.oom_control")
ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
COMMAND_CHARACTERS = 120  # shown of a command line
GROUP_REMOVAL_TIMEOUT = 5.0  # seconds until a group whose processes were killed is empty


@dataclass
class Usage:
    """Memory of a process and its descendants, in bytes."""

    limit: int
    peak: int = 0
    largest: int = 0
    """Bytes of the largest process at the peak."""
    name: str = ""
    """Its command line."""
    stopped: bool = False
    """Whether the kernel killed a process at the group's limit."""

    @property
    def over(self) -> bool:
        return self.stopped or self.peak > self.limit

    def __str__(self) -> str:
        limit = f"over the limit of {show_bytes(self.limit)}" + (", stopped by the kernel" if self.stopped else "")
        return f"{limit}: measured {show_bytes(self.peak)}, largest process {show_bytes(self.largest)} ({self.name})"

    def measure(self, pid: int) -> None:
        """Measure the process and its descendants now; keep the figures of a new peak."""
        processes = measure_tree(pid)
        total = sum(size for size, _ in processes)
        if total > self.peak:
            self.peak, (self.largest, self.name) = total, max(processes)

    def wait(self, process: subprocess.Popen[bytes], timeout: float) -> int:
        """The exit code; raises MemoryError above the limit, subprocess.TimeoutExpired after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            self.measure(process.pid)
            if self.over:
                raise MemoryError(str(self))
            try:
                return process.wait(min(INTERVAL, max(deadline - time.monotonic(), 0)))
            except subprocess.TimeoutExpired:
                if time.monotonic() >= deadline:
                    raise


def measure_tree(pid: int) -> list[tuple[int, str]]:
    """(bytes, command line) of a process and its descendants, without those that have ended."""
    import psutil

    measured = []
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                measured.append((measure_process(process), " ".join(process.cmdline())[:COMMAND_CHARACTERS]))
    return measured


def measure_process(process: psutil.Process) -> int:
    """Proportional set size, in which shared pages count once; the resident set size where there is none."""
    import psutil

    try:
        info = process.memory_full_info()
    except psutil.AccessDenied:
        info = process.memory_info()
    return int(getattr(info, "pss", info.rss))


def describe_method() -> str:
    watched = f"{'PSS' if sys.platform == 'linux' else 'RSS'} of the process tree every {INTERVAL} s"
    return f"{watched}, control group" if find_parent() else watched


@functools.cache
def find_parent() -> Path | None:
    """A control group in which we may make a group with a limit; None where there is none."""
    for parent in list_parents():
        with _made_group(parent, 2**40) as group:
            if group and subprocess.run(enter(group, ["true"]), capture_output=True, check=False).returncode == 0:
                return parent
    return None


def list_parents() -> Iterator[Path]:
    """This process's groups with a memory controller (version 1); its group of version 2 and those above it."""
    path = Path("/proc/self/cgroup")
    for line in path.read_text().splitlines() if path.is_file() else ():
        _, controllers, own = line.split(":", 2)
        if "memory" in controllers.split(","):
            yield GROUPS / "memory" / own.lstrip("/")
        elif not controllers:
            folder = GROUPS / own.lstrip("/")
            yield from (above for above in (folder, *folder.parents) if above.is_relative_to(GROUPS))


@contextlib.contextmanager
def limited_group(usage: Usage) -> Iterator[Path | None]:
    """A control group with the limit, None where we may make none. Raises MemoryError at the end if it was hit."""
    parent = find_parent()
    if parent is None:
        yield None
        return
    with _made_group(parent, usage.limit) as group:
        yield group
        usage.stopped = bool(group and count_kills(group))
    if usage.stopped:
        raise MemoryError(str(usage))


@contextlib.contextmanager
def _made_group(parent: Path, limit: int) -> Iterator[Path | None]:
    try:
        group = Path(tempfile.mkdtemp(prefix="kaggle-llm-", dir=parent))
    except OSError:
        yield None
        return
    try:
        yield group if set_limit(group, limit) else None
    finally:
        remove_group(group)


def set_limit(group: Path, limit: int) -> bool:
    """Whether the group has a memory controller that we may set."""
    for name in LIMITS:
        if (group / name).is_file():
            (group / name).write_text(str(limit))
            for swap_name, times in NO_SWAP:
                if (group / swap_name).is_file():
                    (group / swap_name).write_text(str(limit * times))
            return True
    return False


def count_kills(group: Path) -> int:
    """How many processes the kernel has killed at the group's limit."""
    text = "\n".join((group / name).read_text() for name in EVENTS if (group / name).is_file())
    return sum(int(number) for number in re.findall(r"^oom_kill (\d+)$", text, re.M))


def remove_group(group: Path) -> None:
    """Remove the group as soon as its processes have ended."""
    deadline = time.monotonic() + GROUP_REMOVAL_TIMEOUT
    while True:
        try:
            group.rmdir()
        except OSError:
            if time.monotonic() >= deadline:
                return
            time.sleep(0.05)
        else:
            return


def enter(group: Path, command: Sequence[str]) -> list[str]:
    """The command line that runs `command` in the group."""
    return ["/bin/sh", "-c", ENTER, str(group), *command]


def parse_memory(text: str) -> int:
    """Bytes of "29GB" or "500MB", in powers of 1024."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(GB|MB)", text.strip())
    if match is None or not float(match[1]):
        raise ValueError(f"memory {text!r}: write it like 29GB or 500MB")
    return round(float(match[1]) * {"GB": GIB, "MB": MIB}[match[2]])


def show_bytes(size: int) -> str:
    return f"{size / GIB:.1f} GB" if size >= GIB else f"{size / MIB:.0f} MB"
