"""Run a command without network and without the repository in sight.

Where the system allows it: Linux namespaces of its own (network with loopback only, mounts with the bundle read-only
and the repository's folders covered). Elsewhere: a guard in every Python process that refuses connections.
"""

from __future__ import annotations

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

from kaggle_llm import paths

HERE = Path(__file__).parent
COVERED = ("src", "exp", "input", "output", "submission", "tests")
NAMESPACE, GUARD = "namespace", "guard"


@functools.cache
def find_method() -> str:
    """NAMESPACE where `unshare` works and mounting inside is allowed, else GUARD."""
    if not shutil.which("unshare"):
        return GUARD
    with tempfile.TemporaryDirectory() as scratch:
        trial = _inside(Sandbox(Path(scratch), Path(scratch)), [sys.executable, "-c", "pass"], NAMESPACE)
        done = subprocess.run(trial, capture_output=True, check=False)
    return NAMESPACE if done.returncode == 0 else GUARD


@dataclass(frozen=True)
class Sandbox:
    """A stand-in for /kaggle: `kaggle` holds input/ and working/ on disk, `mount` is where the process sees it."""

    kaggle: Path
    mount: Path

    def run(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[bytes]:
        """Run to the end with output appended to `log`; raises subprocess.TimeoutExpired after killing all of it."""
        method = find_method()
        with tempfile.TemporaryDirectory() as home, log.open("ab") as out:
            variables = self._environment(home, method) | dict(environment)
            process = subprocess.Popen(
                _inside(self, command, method), stdout=out, stderr=out, env=variables, start_new_session=True
            )
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
                process.wait()
                raise
        return subprocess.CompletedProcess(list(command), code)

    def _environment(self, home: str, method: str) -> dict[str, str]:
        """A clean one: no settings of ours, a home that is thrown away, no token of the user's."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "OMP_NUM_THREADS") if name in os.environ}
        guard = {"PYTHONPATH": str(HERE / "guard")} if method == GUARD else {}
        return {**kept, **guard, "HOME": home, "TMPDIR": home, "KAGGLE_LLM_KAGGLE": str(self.mount)}


def _inside(sandbox: Sandbox, command: Sequence[str], method: str) -> list[str]:
    """The command line that runs `command` inside."""
    if method == GUARD:
        return list(command)
    plan = {
        "kaggle": str(sandbox.kaggle),
        "mount": str(sandbox.mount),
        "covered": [str(paths.root() / name) for name in COVERED if (paths.root() / name).is_dir()],
        "command": list(command),
    }
    spaces = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child"]
    return [*spaces, sys.executable, "-I", str(HERE / "inside.py"), json.dumps(plan)]
