"""Sessions of one rehearsal: each is an execution of the bundle's notebook on a stand-in for /kaggle.

Leaves in the session's folder log.txt and what KEPT names; the stand-in is gone afterwards.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from kaggle_llm.base import records
from kaggle_llm.competition.competition import Competition, CompetitionSettings
from kaggle_llm.inference.model import Model
from kaggle_llm.rehearsal.memory_limit import Usage
from kaggle_llm.rehearsal.sandbox import NAMESPACE, Sandbox, find_method
from kaggle_llm.rehearsal.stage import Depot, Layout, attach, fill_depot, stage_competition

PUBLIC, RERUN, HOSTILE, REPLAY = "public", "rerun", "hostile", "replay"
RERUN_VARIABLE = "KAGGLE_IS_COMPETITION_RERUN"
ERROR = re.compile(r"[\w.]*(Error|Exception): ")
POINTS_UP = "its log stands above"  # of an error of the boot script
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
GRACE = 120.0  # seconds after the limit until the notebook itself is killed
KEPT = ("executed.ipynb", "submission.csv", "ranking.parquet", "prediction.json", "timing.json")
MARKS = (*KEPT, "origin.json")  # what a prediction leaves in working/
BESIDE = """
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
    """What the sessions of a rehearsal share: the depot, one working folder and one home, and their limits."""

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
        """Where the sandboxed process sees a path of the stand-in."""
        return self.sandbox.mount / path.relative_to(self.sandbox.kaggle)


@dataclass(frozen=True)
class Session:
    """What an execution left; its stand-in is there while `open_session` is open."""

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
        """Exit code of another module of the bundle, started as the boot script starts the prediction."""
        code, root = self.site.inside(self.code), self.site.sandbox.mount
        words = [module, str(code), str(root), str(self.site.limit)]
        environment = {"PYTHONPATH": str(code / "submission"), "PYTHONDONTWRITEBYTECODE": "1", RERUN_VARIABLE: "1"}
        command = [sys.executable, "-c", BESIDE, *words]
        return self.site.sandbox.run(command, log, environment, self.site.limit)


@contextmanager
def open_site(
    folder: Path, bundle: Path, settings: CompetitionSettings, shipped: Sequence[Model], limit: float, memory: int
) -> Iterator[Site]:
    """A stand-in below `folder`, gone afterwards. shipped: the run's models. limit: seconds; memory: bytes."""
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
def open_session(site: Site, name: str, layout: Layout, test: bytes | None) -> Iterator[Session]:
    """Stage, execute, keep what it wrote. test: test.csv; None: the competition's own, in no rerun.

    The rerun finds working/ and the home as the public session left them, but for the prediction's own marks: what
    somebody remembers of the public test is there. The others start with an empty working/.
    """
    folder = site.folder if name == RERUN else site.folder / name
    folder.mkdir(exist_ok=True)
    clear_working(site.working, MARKS if name == RERUN else None)
    mount = site.sandbox.kaggle / "input"
    with attach(site.depot, mount, layout) as code:
        competition = stage_competition(site.settings, test, mount / layout.competitions / site.settings.name)
        yield execute(site, name, layout, folder, competition, code)


def clear_working(working: Path, names: tuple[str, ...] | None) -> None:
    """Remove these, or everything."""
    for path in list(working.iterdir()):
        if path.is_dir() and names is None:
            shutil.rmtree(path)
        elif names is None or path.name in names:
            path.unlink()


def execute(site: Site, name: str, layout: Layout, folder: Path, competition: Competition, code: Path) -> Session:
    shutil.copyfile(site.bundle / "notebook.ipynb", site.working / "notebook.ipynb")
    runner = site.inside(code) / "src" / "kaggle_llm" / "rehearsal" / "execute.py"
    seen = site.sandbox.mount / "working"
    command = [sys.executable, str(runner), str(seen / "notebook.ipynb"), str(seen / "executed.ipynb")]
    environment = {"KAGGLE_LLM_LIMIT": str(site.limit), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {} if name == PUBLIC else {RERUN_VARIABLE: "1"}
    before, log, usage = list_mount(site.sandbox.kaggle / "input"), folder / "log.txt", Usage(site.memory)
    start, error = time.monotonic(), ""
    try:
        code_of_exit = site.sandbox.run(command, log, environment, site.limit + GRACE, usage)
        if code_of_exit:
            error = f"exit code {code_of_exit}: {find_error(log)}"
    except subprocess.TimeoutExpired:
        error = f"still running {GRACE:.0f} s after the limit of {site.limit:.0f} s: killed"
    except MemoryError as stopped:
        error = f"killed: {stopped}"
    seconds = time.monotonic() - start
    for kept in KEPT:
        if (site.working / kept).is_file():
            shutil.copyfile(site.working / kept, folder / kept)
    after = list_mount(site.sandbox.kaggle / "input")
    written = sorted(path for path in {*before, *after} if before.get(path) != after.get(path))
    return Session(name, layout, site, folder, competition, code, seconds, usage, error, written)


def list_mount(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file: what a read-only mount keeps."""
    found = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def describe_session(session: Session) -> dict[str, object]:
    """Its entry in the report."""
    path = session.folder / "prediction.json"
    rows = records.read_json(path)["rows"] if path.is_file() else None
    return {
        "name": session.name,
        "layout": session.layout.name,
        "rows": rows,
        "seconds": round(session.seconds, 1),
        "peak_rss_mb": round(session.usage.peak / 2**20),
    }


def find_error(log: Path) -> str:
    """The error that the prediction died of, else what the boot script said last."""
    errors = [line for line in read_lines(log) if ERROR.match(line)]
    own = [line for line in errors if not line.endswith(POINTS_UP)]
    return [last_words(log), *errors[-1:], *own[-1:]][-1][-300:]


def last_words(log: Path) -> str:
    """The last line that says something."""
    return ["no output", *read_lines(log)][-1][-300:]


def read_lines(log: Path) -> list[str]:
    """Those that say something, without colours."""
    text = COLOUR.sub("", log.read_text(encoding="utf-8", errors="replace"))
    return [line.strip() for line in text.splitlines() if line.strip()]
