"""Run a command without network and without access to the repository.

Where the system allows it: in Linux namespaces (network with loopback only, the bundle mounted read-only, the
repository's folders covered). Elsewhere: with a guard in every Python process that refuses connections. Both stop
access by mistake; neither is a defence against malicious code.
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
PASSED_VARIABLES = ("PATH", "LANG", "OMP_NUM_THREADS", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES")
NAMESPACE, GUARD = "namespace", "guard"
NO_LIMIT = 2**50  # bytes


@functools.cache
def find_method() -> str:
    """NAMESPACE where a trial with all mounts of a rehearsal succeeds, else GUARD."""
    if not shutil.which("unshare"):
        return GUARD
    output = paths.root() / "output"
    output.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".trial-") as kaggle, tempfile.TemporaryDirectory() as mount:
        for name in ("input", "working"):
            (Path(kaggle) / name).mkdir()
        sandbox = Sandbox(Path(kaggle), Path(mount), Path(mount))
        trial = _inside(sandbox, [sys.executable, "-c", "pass"], NAMESPACE)
        done = subprocess.run(trial, capture_output=True, check=False, timeout=60)
    return NAMESPACE if done.returncode == 0 else GUARD


@dataclass(frozen=True)
class Sandbox:
    """A stand-in for /kaggle: `kaggle` holds input/ and working/ on disk, `mount` is where the process sees it."""

    kaggle: Path
    mount: Path
    home: Path
    """HOME and TMPDIR of the command."""
    full: bool = False
    """working/ is a full disk; only where the method is NAMESPACE."""

    def run(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str],
        timeout: float,
        usage: Usage | None = None,
    ) -> int:
        """The exit code; output is appended to `log`.

        Raises subprocess.TimeoutExpired, or MemoryError above the limit of `usage`, after killing all processes.
        """
        usage, method = usage or Usage(NO_LIMIT), find_method()
        with limited_group(usage) as group, log.open("ab") as out:
            words = _inside(self, command, method)
            process = subprocess.Popen(
                enter(group, words) if group else words,
                cwd=self.kaggle / "working",
                stdout=out,
                stderr=out,
                env=self._environment(method, environment),
            )
            try:
                return usage.wait(process, timeout)
            except BaseException:  # timeout, memory or interrupt: leave no process behind
                kill_tree(process.pid)
                process.wait()
                raise

    def _environment(self, method: str, variables: Mapping[str, str]) -> dict[str, str]:
        """A clean environment: none of our settings, a temporary home, no token of the user."""
        passed = {name: os.environ[name] for name in PASSED_VARIABLES if name in os.environ}
        home = {"HOME": str(self.home), "TMPDIR": str(self.home)}
        environment = {**passed, **home, "KAGGLE_LLM_KAGGLE": str(self.mount), **variables}
        if method == GUARD:
            folders = [str(HERE / "guard"), *environment.get("PYTHONPATH", "").split(os.pathsep)]
            environment["PYTHONPATH"] = os.pathsep.join(folders)
        return environment


def _inside(sandbox: Sandbox, command: Sequence[str], method: str) -> list[str]:
    """The command line that runs `command` in the sandbox."""
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
    """All folders of the repository and of the package's checkout, except that of the Python environment."""
    checkout = HERE.parents[2]
    repositories = {paths.root(), *([checkout] if (checkout / "pyproject.toml").is_file() else [])}
    folders = [folder for repository in repositories for folder in repository.iterdir() if folder.is_dir()]
    return [folder for folder in sorted(folders) if not Path(sys.prefix).is_relative_to(folder)]


def kill_tree(pid: int) -> None:
    """Kill a process and its descendants: a notebook's kernel has a session of its own."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
