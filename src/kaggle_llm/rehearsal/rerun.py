"""One execution of a bundle's notebook on a stand-in for /kaggle, as Kaggle's hidden rerun would do it."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm import records
from kaggle_llm.competition import Competition, CompetitionSettings
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.rehearsal.sandbox import NAMESPACE, Sandbox, find_method
from kaggle_llm.rehearsal.stage import exchange_models, stage_competition, stage_datasets

if TYPE_CHECKING:
    import polars as pl

GRACE = 120.0  # seconds after the limit until the notebook itself is killed
KEPT = ("executed.ipynb", "submission.csv", "ranking.parquet", "prediction.json")
# ru_maxrss is in KiB, on macOS in bytes (getrusage(2) of either).
RSS_UNITS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10


@dataclass(frozen=True)
class Rerun:
    """What the execution left; its stand-in is there while `execute_notebook` is open."""

    folder: Path
    sandbox: Sandbox
    competition: Competition
    code: Path
    limit: float
    seconds: float
    peak_rss_mb: int
    """Of the largest process."""
    error: str
    written: list[str]
    """Files below input/ that were written, changed or removed."""

    @property
    def working(self) -> Path:
        return self.sandbox.kaggle / "working"

    def inside(self, path: Path) -> Path:
        """Where the sandboxed process sees a path of the stand-in."""
        return self.sandbox.mount / path.relative_to(self.sandbox.kaggle)

    def run_module(self, module: str, log: Path) -> int:
        """Exit code of another module of the bundle on the same mounts, with the arguments of kaggle.predict."""
        code = self.inside(self.code)
        words = ["--bundle", str(code), "--working", str(self.inside(self.working))]
        words += ["--competition", str(self.inside(self.competition.folder))]
        words += ["--deadline", str(time.time() + self.limit)]
        for name, slug in records.read_json(self.code / MANIFEST)["models"].items():
            words += ["--model", f"{name}={code.parent / slug / 'model'}"]
        offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        environment = {**offline, "PYTHONPATH": str(code / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        return self.sandbox.run([sys.executable, "-m", module, *words], log, environment, self.limit).returncode


@contextmanager
def execute_notebook(
    folder: Path,
    bundle: Path,
    settings: CompetitionSettings,
    test: pl.DataFrame,
    models: Mapping[str, Path],
    limit: float,
) -> Iterator[Rerun]:
    """Stage, execute, keep what it wrote in `folder`; the stand-in is gone afterwards.

    models: other weights than the bundle's; {}: the bundle's own. limit: seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kaggle = folder / "kaggle"
    with tempfile.TemporaryDirectory(prefix="kaggle-llm-") as scratch:
        try:
            stage_datasets(bundle, kaggle)
            if models:
                exchange_models(kaggle, models)
            competition = stage_competition(settings, test, kaggle)
            sandbox = Sandbox(kaggle, Path(scratch) if find_method() == NAMESPACE else kaggle)
            yield _run_notebook(folder, bundle, sandbox, competition, limit)
        finally:
            shutil.rmtree(kaggle, ignore_errors=True)


def _run_notebook(folder: Path, bundle: Path, sandbox: Sandbox, competition: Competition, limit: float) -> Rerun:
    working = sandbox.kaggle / "working"
    shutil.copyfile(bundle / "notebook.ipynb", working / "notebook.ipynb")
    (code,) = (path.parents[1] for path in sandbox.kaggle.glob("input/datasets/*/*/submission/boot.py"))
    runner = sandbox.mount / code.relative_to(sandbox.kaggle) / "src" / "kaggle_llm" / "rehearsal" / "execute.py"
    seen = sandbox.mount / "working"
    command = [sys.executable, str(runner), str(seen / "notebook.ipynb"), str(seen / "executed.ipynb")]
    environment = {"KAGGLE_IS_COMPETITION_RERUN": "1", "KAGGLE_LLM_LIMIT": str(limit), "PYTHONDONTWRITEBYTECODE": "1"}
    before, log = _list_mount(sandbox.kaggle / "input"), folder / "log.txt"
    start, error = time.monotonic(), ""
    try:
        done = sandbox.run(command, log, environment, limit + GRACE)
        if done.returncode:
            error = f"exit code {done.returncode}: {last_words(log)}"
    except subprocess.TimeoutExpired:
        error = f"still running {GRACE:.0f} s after the limit of {limit:.0f} s: killed"
    seconds = time.monotonic() - start
    peak = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / RSS_UNITS_PER_MB)
    for name in KEPT:
        if (working / name).is_file():
            shutil.copyfile(working / name, folder / name)
    after = _list_mount(sandbox.kaggle / "input")
    written = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return Rerun(folder, sandbox, competition, code, limit, seconds, peak, error, written)


def _list_mount(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file: what a read-only mount keeps."""
    found = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def last_words(log: Path) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "no output"
