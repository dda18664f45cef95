"""Run a command without network and without the repository in sight.

Where the system allows it: Linux namespaces of its own (network with loopback only, mounts with the bundle read-only
and the repository's folders covered). Elsewhere: a guard in every Python process that refuses connections. Both hold
back what reaches out by mistake; neither is a defence against code that means harm.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kaggle_llm.base import paths
from kaggle_llm.rehearsal.memory_limit import Usage, enter, limited_group

HERE = Path(__file__).parent
KEPT = ("PATH", "LANG", "OMP_NUM_THREADS", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
NAMESPACE, GUARD = "namespace", "guard"
ANY_MEMORY = 2**50  # bytes: no limit


@functools.cache
def find_method() -> str:
    """NAMESPACE where a trial of all that a rehearsal mounts succeeds, else GUARD."""
    if not shutil.which("unshare"):
        return GUARD
    place = paths.root() / "output"
    place.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place, prefix=".trial-") as kaggle, tempfile.TemporaryDirectory() as mount:
        for name in ("input", "working"):
            (Path(kaggle) / name).mkdir()
        box = Sandbox(Path(kaggle), Path(mount), Path(mount))
        trial = _inside(box, [sys.executable, "-c", "pass"], NAMESPACE)
        done = subprocess.run(trial, capture_output=True, check=False, timeout=60)
    return NAMESPACE if done.returncode == 0 else GUARD


@dataclass(frozen=True)
class Sandbox:
    """A stand-in for /kaggle: `kaggle` holds input/ and working/ on disk, `mount` is where the process sees it."""

    kaggle: Path
    mount: Path
    home: Path
    """HOME and TMPDIR of what runs inside."""
    full: bool = False
    """working/ is a disk without room; only where the method is NAMESPACE."""

    def run(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        timeout: float,
        usage: Usage | None = None,
    ) -> int:
        """The exit code, with output appended to `log`.

        Raises subprocess.TimeoutExpired, or MemoryError above the limit of `usage`, after killing all of it.
        """
        usage, method = usage or Usage(ANY_MEMORY), find_method()
        with limited_group(usage) as group, log.open("ab") as out:
            line = _inside(self, command, method)
            process = subprocess.Popen(
                enter(group, line) if group else line,
                cwd=self.kaggle / "working",
                stdout=out,
                stderr=out,
                env=self._environment(method, environment),
            )
            try:
                return usage.wait(process, timeout)
            except BaseException:  # too late, too large, or interrupted: nothing of it goes on alone
                kill_tree(process.pid)
                process.wait()
                raise

    def _environment(self, method: str, more: Mapping[str, str]) -> dict[str, str]:
        """A clean one: no settings of ours, a home that is thrown away, no token of the user's."""
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        home = {"HOME": str(self.home), "TMPDIR": str(self.home)}
        found = {**kept, **home, "KAGGLE_LLM_KAGGLE": str(self.mount), **more}
        if method == GUARD:
            found["PYTHONPATH"] = os.pathsep.join([str(HERE / "guard"), *found.get("PYTHONPATH", "").split(os.pathsep)])
        return found


def _inside(sandbox: Sandbox, command: Sequence[str], method: str) -> list[str]:
    """The command line that runs `command` inside."""
    if method == GUARD:
        return list(command)
    plan = {
        "kaggle": str(sandbox.kaggle),
        "mount": str(sandbox.mount),
        "covered": [str(folder) for folder in covered_folders()],
        "full": sandbox.full,
        "command": list(command),
    }
    spaces = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child"]
    return [*spaces, sys.executable, "-I", str(HERE / "inside.py"), json.dumps(plan)]


def covered_folders() -> list[Path]:
    """Every folder of the repository, and of the checkout that the package comes from, but the environment's."""
    checkout = HERE.parents[2]
    repositories = {paths.root(), *([checkout] if (checkout / "pyproject.toml").is_file() else [])}
    folders = [folder for repository in repositories for folder in repository.iterdir() if folder.is_dir()]
    return [folder for folder in sorted(folders) if not Path(sys.prefix).is_relative_to(folder)]


def kill_tree(pid: int) -> None:
    """Kill a process and all below it: a notebook's kernel has a session of its own."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
