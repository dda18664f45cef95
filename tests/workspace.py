"""A repository of its own for tests that run experiments as processes: pico models under the demo's names."""

from __future__ import annotations

import importlib
import os
import shutil
import sqlite3
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import forks

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT = 600  # seconds; a process that hangs ends, on the slowest machine none that works does


@dataclass(frozen=True)
class Workspace:
    """exp/, submission/, input/ as in the repository; the package is the installed one."""

    root: Path
    timeout: int = TIMEOUT
    """Seconds that a process may take."""

    @property
    def output(self) -> Path:
        return self.root / "output"

    def train(self, experiment: str, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.python(str(self.root / "exp" / experiment / "train.py"), *words, **more)

    def cli(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        return self.python("-m", "kaggle_llm.cli", *words, **more)

    def python(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """`python WORDS…` in a process that has the libraries loaded."""
        return self.call(forks.python(), *words, **more)

    def call(self, *command: str, **more: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "KAGGLE_LLM_ROOT": str(self.root), "PYTHONDONTWRITEBYTECODE": "1", **more}
        return subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, timeout=self.timeout, check=False
        )


def make_workspace(
    root: Path, llm: Path, encoder: Path, train_rows: int = 60, hidden_rows: int = 6, seed: int = 0
) -> Workspace:
    """The generated competitions, small, and two models under the names that the experiments ask for."""
    from kaggle_llm_demo.__main__ import DEMOS

    for folder in ("exp", "submission"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in DEMOS:
        demo = importlib.import_module(f"kaggle_llm_demo.{name}")
        hidden = root / "output" / "hidden" / demo.NAME
        demo.build_competition(root / "input" / demo.NAME, hidden, seed, train_rows, hidden_rows)
    (root / "input" / "models").mkdir()
    (root / "input" / "models" / "SmolLM2-135M-Instruct").symlink_to(llm)
    (root / "input" / "models" / "all-MiniLM-L6-v2").symlink_to(encoder)
    return Workspace(root)


def copy_workspace(source: Workspace, root: Path) -> Workspace:
    """To be written to: weights are hard links, as in a bundle, and never change in their place."""

    def copy(path: str, target: str) -> None:
        os.link(path, target) if path.endswith(".safetensors") else shutil.copy2(path, target)

    shutil.copytree(source.root, root, symlinks=True, copy_function=copy, dirs_exist_ok=True)
    return replace(source, root=root)


def succeed(done: subprocess.CompletedProcess[str]) -> str:
    """Standard output of a process that must have succeeded."""
    assert done.returncode == 0, f"{done.args}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def read_answers(workspace: Workspace) -> frozenset[tuple[str, bytes]]:
    """Model and key of every answer of a model that is kept."""
    found = set()
    for path in (workspace.output / "cache" / "answers").glob("*.sqlite"):
        database = sqlite3.connect(path)
        found |= {(path.stem, key) for (key,) in database.execute("SELECT key FROM answers")}
        database.close()
    return frozenset(found)
