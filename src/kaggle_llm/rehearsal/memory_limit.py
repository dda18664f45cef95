"""Memory of a process and of all below it: watched from outside, stopped at a limit. Leaves nothing on disk.

Twice a second the proportional set sizes are summed, which says how much it is and whose. Where the system lets us make
a control group, the kernel itself holds the limit in it: nothing grows unseen between two looks.
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

if TYPE_CHECKING:
    import psutil

GIB, MIB = 2**30, 2**20
INTERVAL = 0.5  # seconds between two looks
GROUPS = Path("/sys/fs/cgroup")
LIMITS = ("memory.max", "memory.limit_in_bytes")  # of version 2 and of version 1
WITHOUT_SWAP = (("memory.swap.max", 0), ("memory.memsw.limit_in_bytes", 1))  # Kaggle has none; times the limit
EVENTS = ("memory.events", "memory.oom_control")
ENTER = 'echo $$ > "$0/cgroup.procs" && exec "$@"'
SHOWN = 120  # characters of a command line
PATIENCE = 5.0  # seconds until a group whose processes were killed is empty


@dataclass
class Usage:
    """What was seen of one tree of processes, in bytes."""

    limit: int
    peak: int = 0
    largest: int = 0
    """Of the largest process at the peak."""
    name: str = ""
    """Its command line."""
    stopped: bool = False
    """By the kernel, at the limit of the group."""

    @property
    def over(self) -> bool:
        return self.stopped or self.peak > self.limit

    def __str__(self) -> str:
        limit = f"over the limit of {show_bytes(self.limit)}" + (", the kernel says" if self.stopped else "")
        return f"{limit}: seen {show_bytes(self.peak)}, largest process {show_bytes(self.largest)} ({self.name})"

    def look(self, pid: int) -> None:
        """Measure the tree now, and keep it where it is the peak."""
        found = measure_tree(pid)
        total = sum(size for size, _ in found)
        if total > self.peak:
            self.peak, (self.largest, self.name) = total, max(found)

    def wait(self, process: subprocess.Popen[bytes], timeout: float) -> int:
        """The exit code; raises MemoryError above the limit, subprocess.TimeoutExpired after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        while True:
            self.look(process.pid)
            if self.over:
                raise MemoryError(str(self))
            try:
                return process.wait(min(INTERVAL, max(deadline - time.monotonic(), 0)))
            except subprocess.TimeoutExpired:
                if time.monotonic() >= deadline:
                    raise


def measure_tree(pid: int) -> list[tuple[int, str]]:
    """Bytes and command line of a process and of all below it, those that can still be asked."""
    import psutil

    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                found.append((measure_process(process), " ".join(process.cmdline())[:SHOWN]))
    return found


def measure_process(process: psutil.Process) -> int:
    """Proportional set size, in which shared pages count once; the resident set size where the system has no other."""
    import psutil

    try:
        found = process.memory_full_info()
    except psutil.AccessDenied:
        found = process.memory_info()
    return int(getattr(found, "pss", found.rss))


def describe_method() -> str:
    watched = f"{'PSS' if sys.platform == 'linux' else 'RSS'} of the process tree every {INTERVAL} s"
    return f"{watched}, control group" if find_parent() else watched


@functools.cache
def find_parent() -> Path | None:
    """The control group below which a process can be given a limit; None where the system does not let us."""
    for parent in list_parents():
        with _made_group(parent, 2**40) as group:
            if group and subprocess.run(enter(group, ["true"]), capture_output=True, check=False).returncode == 0:
                return parent
    return None


def list_parents() -> Iterator[Path]:
    """This process's own groups with a memory controller (version 1), and its group of version 2 and those above."""
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
    """A control group with the limit, None where there can be none. Raises MemoryError at the end where it was hit."""
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
    """False where the group has no memory controller of ours."""
    for name in LIMITS:
        if (group / name).is_file():
            (group / name).write_text(str(limit))
            for other, times in WITHOUT_SWAP:
                if (group / other).is_file():
                    (group / other).write_text(str(limit * times))
            return True
    return False


def count_kills(group: Path) -> int:
    """How many processes the kernel has killed at the group's limit."""
    text = "\n".join((group / name).read_text() for name in EVENTS if (group / name).is_file())
    return sum(int(number) for number in re.findall(r"^oom_kill (\d+)$", text, re.M))


def remove_group(group: Path) -> None:
    """Once its processes have ended."""
    deadline = time.monotonic() + PATIENCE
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
    """Bytes of "29GB" or "500MB", in powers of 1024 as memory is sold."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(GB|MB)", text.strip())
    if found is None or not float(found[1]):
        raise ValueError(f"memory {text!r}: write it like 29GB or 500MB")
    return round(float(found[1]) * {"GB": GIB, "MB": MIB}[found[2]])


def show_bytes(size: int) -> str:
    return f"{size / GIB:.1f} GB" if size >= GIB else f"{size / MIB:.0f} MB"
