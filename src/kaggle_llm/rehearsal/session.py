"""Sessions of one rehearsal: each is an execution of the bundle's notebook on a stand-in for /kaggle.

Leaves log.txt and KEPT_FILES in the session's folder; the stand-in is removed afterwards.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kaggle_llm.base import records
from kaggle_llm.competition.competition import Competition, CompetitionSettings
from kaggle_llm.inference.model import Model
from kaggle_llm.kaggle.predict import OFFERED
from kaggle_llm.rehearsal.memory_limit import Usage
from kaggle_llm.rehearsal.sandbox import NAMESPACE, Sandbox, find_method
from kaggle_llm.rehearsal.stage import Depot, Layout, attach, fill_depot, stage_competition

PUBLIC, RERUN, HOSTILE, REPLAY = "public", "rerun", "hostile", "replay"
RERUN_VARIABLE = "KAGGLE_IS_COMPETITION_RERUN"
ERROR_LINE = re.compile(r"[\w.]*(Error|Exception): ")
SEE_ABOVE = "see its log above"  # ends an error of the boot script that has another cause
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
KILL_GRACE_SECONDS = 120.0  # after the limit, until the notebook itself is killed
KEPT_FILES = ("executed.ipynb", "submission.csv", "ranking.parquet", "prediction.json", "timing.json")
PREDICTION_FILES = (*KEPT_FILES, "origin.json", OFFERED)  # left by a prediction in working/
RUN_MODULE = """
import subprocess, sys, time
from pathlib import Path
import boot
module, code, root, limit = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), float(sys.argv[4])
python, m, _, *words = boot.predict_command(code, root, time.time() + limit)
site = boot.install_wheels(code, root)
sys.exit(subprocess.run([python, m, module, *words], env=boot.environment(code, site)).returncode)
"""


@dataclass(frozen=True)
class Site:
    """Shared by all sessions of a rehearsal: the depot, one working folder, one home, and the limits."""

    folder: Path
    bundle: Path
    settings: CompetitionSettings
    depot: Depot
    sandbox: Sandbox
    limit: float
    """Seconds of one session."""
    memory: int
    """Bytes of all processes together."""

    @property
    def working(self) -> Path:
        return self.sandbox.kaggle / "working"

    def inside(self, path: Path) -> Path:
        """A path of the stand-in as the sandboxed process sees it."""
        return self.sandbox.mount / path.relative_to(self.sandbox.kaggle)


@dataclass(frozen=True)
class Session:
    """One execution of the notebook; its stand-in exists while `open_session` is open."""

    name: str
    layout: Layout
    site: Site
    folder: Path
    competition: Competition
    code: Path
    seconds: float
    usage: Usage
    error: str
    written: list[str]
    """Files below input/ that were written, changed or removed."""

    def run_module(self, module: str, log: Path) -> int:
        """Run another module of the bundle as the boot script runs the prediction; returns its exit code."""
        code, root = self.site.inside(self.code), self.site.sandbox.mount
        words = [module, str(code), str(root), str(self.site.limit)]
        environment = {"PYTHONPATH": str(code / "submission"), "PYTHONDONTWRITEBYTECODE": "1", RERUN_VARIABLE: "1"}
        command = [sys.executable, "-c", RUN_MODULE, *words]
        return self.site.sandbox.run(command, log, environment, self.site.limit)


@contextmanager
def open_site(
    folder: Path, bundle: Path, settings: CompetitionSettings, shipped: Sequence[Model], limit: float, memory: int
) -> Iterator[Site]:
    """A stand-in below `folder`, removed afterwards. shipped: the run's models. limit: seconds; memory: bytes."""
    kaggle, depot = folder / "kaggle", Depot(folder / "depot")
    (kaggle / "working").mkdir(parents=True)
    with tempfile.TemporaryDirectory(prefix="kaggle-llm-") as scratch:
        mount, home = Path(scratch) / "kaggle", Path(scratch) / "home"
        mount.mkdir()
        home.mkdir()
        sandbox = Sandbox(kaggle, mount if find_method() == NAMESPACE else kaggle, home)
        try:
            fill_depot(bundle, shipped, depot)
            yield Site(folder, bundle, settings, depot, sandbox, limit, memory)
        finally:
            for stand_in in (kaggle, depot.folder):
                shutil.rmtree(stand_in, ignore_errors=True)


@contextmanager
def open_session(site: Site, name: str, layout: Layout, test: Mapping[str, bytes] | None) -> Iterator[Session]:
    """Stage, execute, keep the output. test: files of the test set; None: the public ones, not in a rerun.

    The rerun starts with the home and working/ of the public session, without the prediction's own files: whatever an
    experiment cached of the public test is there. The other sessions start with an empty working/.
    """
    folder = site.folder if name == RERUN else site.folder / name
    folder.mkdir(exist_ok=True)
    clear_working(site.working, PREDICTION_FILES if name == RERUN else None)
    mount = site.sandbox.kaggle / "input"
    with attach(site.depot, mount, layout) as code:
        competition = stage_competition(site.settings, test, mount / layout.competitions / site.settings.name)
        yield execute(site, name, layout, folder, competition, code)


def clear_working(working: Path, names: tuple[str, ...] | None) -> None:
    """Remove these files, or everything."""
    for path in list(working.iterdir()):
        if path.is_dir() and names is None:
            shutil.rmtree(path)
        elif names is None or path.name in names:
            path.unlink()


def execute(site: Site, name: str, layout: Layout, folder: Path, competition: Competition, code: Path) -> Session:
    shutil.copyfile(site.bundle / "notebook.ipynb", site.working / "notebook.ipynb")
    runner = site.inside(code) / "src" / "kaggle_llm" / "rehearsal" / "execute.py"
    working = site.sandbox.mount / "working"
    command = [sys.executable, str(runner), str(working / "notebook.ipynb"), str(working / "executed.ipynb")]
    environment = {"KAGGLE_LLM_LIMIT": str(site.limit), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {} if name == PUBLIC else {RERUN_VARIABLE: "1"}
    before, log, usage = list_mount(site.sandbox.kaggle / "input"), folder / "log.txt", Usage(site.memory)
    start, error = time.monotonic(), ""
    try:
        returned = site.sandbox.run(command, log, environment, site.limit + KILL_GRACE_SECONDS, usage)
        if returned:
            error = f"exit code {returned}: {find_prediction_error(log)}"
    except subprocess.TimeoutExpired:
        error = f"still running {KILL_GRACE_SECONDS:.0f} s after the limit of {site.limit:.0f} s: killed"
    except MemoryError as stopped:
        error = f"killed: {stopped}"
    seconds = time.monotonic() - start
    for file in KEPT_FILES:
        if (site.working / file).is_file():
            shutil.copyfile(site.working / file, folder / file)
    after = list_mount(site.sandbox.kaggle / "input")
    written = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
    return Session(name, layout, site, folder, competition, code, seconds, usage, error, written)


def list_mount(folder: Path) -> dict[str, tuple[int, int]]:
    """File → its size and time of change."""
    stats = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in stats.items()}


def describe_session(session: Session) -> dict[str, object]:
    """The session's entry in the report."""
    return {
        "name": session.name,
        "layout": session.layout.name,
        "rows": records.read_optional(session.folder / "prediction.json", {}).get("rows"),
        "seconds": round(session.seconds, 1),
        "peak_rss_mb": round(session.usage.peak / 2**20),
    }


def find_prediction_error(log: Path) -> str:
    """The error that ended the prediction, else the last error of the boot script, else the last line."""
    errors = [line for line in read_lines(log) if ERROR_LINE.match(line)]
    own = [line for line in errors if not line.endswith(SEE_ABOVE)]
    return [last_line(log), *errors[-1:], *own[-1:]][-1][-300:]


def last_line(log: Path) -> str:
    """The last line that is not empty."""
    return ["no output", *read_lines(log)][-1][-300:]


def read_lines(log: Path) -> list[str]:
    """The lines that are not empty, without colours."""
    text = COLOUR.sub("", log.read_text(encoding="utf-8", errors="replace"))
    return [line.strip() for line in text.splitlines() if line.strip()]
