"""Run a bundle as Kaggle would, offline, on a hidden test. Leaves output/rehearsals/<run>/<time>/ and `latest`:

report.json, submission.csv, executed.ipynb and log.txt of the hidden test; replay/ with the same of a replay.
"""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm import paths, records
from kaggle_llm.competition import Competition, CompetitionSettings, load_competition, read_csv
from kaggle_llm.kaggle.bundle import list_entries, read_run
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.rehearsal.checks import Check, compare_rankings, largest_difference
from kaggle_llm.rehearsal.sandbox import NAMESPACE, Sandbox, find_method
from kaggle_llm.rehearsal.stage import exchange_models, hidden_test, stage_competition, stage_datasets
from kaggle_llm.tables import print_table

if TYPE_CHECKING:
    import polars as pl

GRACE = 120.0  # seconds after the limit until the notebook itself is killed


@dataclass(frozen=True)
class Rerun:
    """One execution of the notebook on a stand-in for /kaggle."""

    folder: Path
    sandbox: Sandbox
    competition: Competition
    code: Path
    limit: float
    seconds: float
    error: str
    written: list[str]
    """Files below input/ that the notebook wrote, changed or removed."""

    @property
    def working(self) -> Path:
        return self.sandbox.kaggle / "working"

    def inside(self, path: Path) -> Path:
        """Where the sandboxed process sees a path of the stand-in."""
        return self.sandbox.mount / path.relative_to(self.sandbox.kaggle)


def rehearse(run: str, rows: int | None = None, limit: str = "9h", replay: int | None = None) -> dict[str, Any]:
    """The report, also written as report.json. Raises where there is nothing to rehearse."""
    bundle = paths.bundle_folder(run)
    if not (bundle / MANIFEST).is_file():
        raise FileNotFoundError(f"{run} has no bundle: run `kaggle-llm bundle {run}` first")
    record = read_run(run)
    seconds = parse_duration(limit)
    settings = CompetitionSettings(**record.settings["config"]["competition"])
    folder = paths.rehearsals_folder(run) / datetime.now().strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True)
    test, truth, origin = hidden_test(settings, rows)
    checks = [check_bundle(bundle)]
    with execute_notebook(folder, bundle, settings, test, {}, seconds) as hidden:
        checks += [check_network(hidden), check_notebook(hidden), check_origin(hidden), check_mount(hidden)]
        submission, submission_check = check_submission(hidden)
        checks.append(submission_check)
        if submission is not None:
            checks.append(check_independence(hidden))
    score = None
    if submission is not None and submission_check.ok:
        competition = hidden.competition
        score = competition.metric.score(competition.ranking_of(submission), truth)
    if replay is not None:
        checks.append(replay_fold(folder / "replay", run, record, replay, bundle, settings, seconds))
    report = {
        "run": run,
        "ok": all(check.ok for check in checks),
        "checks": [asdict(check) for check in checks],
        "rows": test.height,
        "seconds": round(hidden.seconds, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024),
        "network": "blocked" if checks[1].ok else "open",
        "network_method": find_method(),
        "score": score,
        "test": origin,
        "submission": describe_submission(folder / "submission.csv", submission),
    }
    records.write_json(folder / "report.json", report)
    link_latest(folder)
    return report


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

    models: other weights than the bundle's; {}: the bundle's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kaggle = folder / "kaggle"
    with tempfile.TemporaryDirectory(prefix="kaggle-llm-") as scratch:
        try:
            stage_datasets(bundle, kaggle)
            if models:
                exchange_models(kaggle, models)
            competition = stage_competition(settings, test, kaggle)
            mount = Path(scratch) if find_method() == NAMESPACE else kaggle
            sandbox = Sandbox(kaggle, mount)
            yield run_notebook(folder, bundle, sandbox, competition, limit)
        finally:
            shutil.rmtree(kaggle, ignore_errors=True)


def run_notebook(folder: Path, bundle: Path, sandbox: Sandbox, competition: Competition, limit: float) -> Rerun:
    working = sandbox.kaggle / "working"
    shutil.copyfile(bundle / "notebook.ipynb", working / "notebook.ipynb")
    (code,) = (path.parents[1] for path in sandbox.kaggle.glob("input/datasets/*/*/submission/boot.py"))
    seen_code = sandbox.mount / code.relative_to(sandbox.kaggle)
    runner = seen_code / "src" / "kaggle_llm" / "rehearsal" / "execute.py"
    seen = sandbox.mount / "working"
    command = [sys.executable, str(runner), str(seen / "notebook.ipynb"), str(seen / "executed.ipynb")]
    environment = {
        "KAGGLE_IS_COMPETITION_RERUN": "1",
        "KAGGLE_LLM_LIMIT": str(limit),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    before = list_mount(sandbox.kaggle / "input")
    start, error = time.monotonic(), ""
    try:
        done = sandbox.run(command, folder / "log.txt", environment, limit + GRACE)
        if done.returncode:
            error = f"exit code {done.returncode}: {last_words(folder / 'log.txt')}"
    except subprocess.TimeoutExpired:
        error = f"still running {GRACE:.0f} s after the limit of {limit:.0f} s: killed"
    seconds = time.monotonic() - start
    for name in ("executed.ipynb", "submission.csv", "ranking.parquet"):
        if (working / name).is_file():
            shutil.copyfile(working / name, folder / name)
    after = list_mount(sandbox.kaggle / "input")
    written = sorted(name for name in {*before, *after} if before.get(name) != after.get(name))
    return Rerun(folder, sandbox, competition, code, limit, seconds, error, written)


def list_mount(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file: what a read-only mount keeps."""
    found = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (stat.st_size, stat.st_mtime_ns) for name, stat in found.items()}


def check_bundle(bundle: Path) -> Check:
    """Is the bundle what its manifest says?"""
    manifest = records.read_json(bundle / MANIFEST)
    listed = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    found = {e["path"]: e["sha256"] for e in list_entries(bundle) if e["path"] != MANIFEST}
    changed = sorted(name for name in {*listed, *found} if listed.get(name) != found.get(name))
    return Check("bundle", not changed, f"changed: {changed[:3]}" if changed else f"{len(listed)} files as listed")


def check_network(rerun: Rerun) -> Check:
    """A connection to the outside must fail in the very sandbox."""
    probe = Path(__file__).with_name("probe.py").relative_to(Path(__file__).parents[2])
    log = rerun.folder / "probe.txt"
    done = rerun.sandbox.run([sys.executable, str(rerun.inside(rerun.code / "src" / probe))], log, {}, 60)
    return Check("network", done.returncode == 3, f"{find_method()}: {last_words(log)}")


def check_notebook(rerun: Rerun) -> Check:
    return Check("notebook", not rerun.error, rerun.error or f"executed in {rerun.seconds:.0f} s")


def check_origin(rerun: Rerun) -> Check:
    """Code and models came from the mount, not from the repository."""
    path = rerun.working / "origin.json"
    if not path.is_file():
        return Check("origin", False, "the prediction did not get as far as saying where it comes from")
    origin = records.read_json(path)
    outside = {name: found for name, found in origin.items() if not Path(found).is_relative_to(rerun.sandbox.mount)}
    return Check(
        "origin",
        not outside,
        f"outside the mount: {outside}" if outside else f"{', '.join(origin)} under the mount",
    )


def check_mount(rerun: Rerun) -> Check:
    """Kaggle's mounts are read-only: nothing may have been written there."""
    return Check("mount", not rerun.written, f"written: {rerun.written[:3]}" if rerun.written else "unchanged")


def check_submission(rerun: Rerun) -> tuple[pl.DataFrame | None, Check]:
    path = rerun.folder / "submission.csv"
    if not path.is_file():
        return None, Check("submission", False, "there is no submission.csv")
    submission = read_csv(path)
    problems = rerun.competition.check_submission(submission)
    detail = "; ".join(problems[:3]) or f"{submission.height} rows: columns, ids, order and labels are right"
    return submission, Check("submission", not problems, detail)


def check_independence(rerun: Rerun) -> Check:
    """A row alone, in another order and among other rows: by the bundle's own code in the same sandbox."""
    code = rerun.inside(rerun.code)
    models = records.read_json(rerun.code / MANIFEST)["models"]
    words = [
        "--bundle",
        str(code),
        "--working",
        str(rerun.inside(rerun.working)),
        "--limit",
        str(rerun.limit),
    ]
    words += ["--competition", str(rerun.inside(rerun.competition.folder))]
    for name, slug in models.items():
        words += ["--model", f"{name}={code.parent / slug / 'model'}"]
    log = rerun.folder / "independence.txt"
    environment = {"PYTHONPATH": str(code / "src"), "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "kaggle_llm.rehearsal.independence", *words]
    try:
        done = rerun.sandbox.run(command, log, environment, rerun.limit)
    except subprocess.TimeoutExpired:
        return Check("row independence", False, f"not done after {rerun.limit:.0f} s")
    return Check("row independence", done.returncode == 0, last_words(log))


def replay_fold(
    folder: Path,
    run: str,
    record: records.Record,
    fold: int,
    bundle: Path,
    settings: CompetitionSettings,
    limit: float,
) -> Check:
    """Fold `fold`'s validation rows, unlabelled, through the bundle with that fold's weights = its out-of-fold rows."""
    import polars as pl

    fold_models = record.settings["fold_models"]
    if str(fold) not in fold_models:
        raise ValueError(f"--replay {fold}: {run} has the folds {', '.join(fold_models)}")
    models = {name: paths.absolute(path) for name, path in fold_models[str(fold)].items()}
    expected = pl.read_parquet(paths.run_folder(run) / "oof.parquet").filter(pl.col("fold") == fold)
    test = load_competition(settings).test_csv(expected["id"].to_list())
    with execute_notebook(folder, bundle, settings, test, models, limit) as rerun:
        if rerun.error or not (folder / "ranking.parquet").is_file():
            return Check("replay", False, rerun.error or "the prediction wrote no ranking.parquet")
    found = pl.read_parquet(folder / "ranking.parquet")
    problems = compare_rankings(found, expected)
    if problems:
        return Check("replay", False, f"{len(problems)} of {expected.height} rows of fold {fold}: {problems[0]}")
    worst = largest_difference(found, expected)
    detail = f"{expected.height} rows of fold {fold}: same lists, largest |Δ score| {worst:.1e}"
    return Check("replay", True, detail)


def describe_submission(path: Path, submission: pl.DataFrame | None) -> dict[str, Any] | None:
    if submission is None:
        return None
    return {"path": paths.relative(path), "rows": submission.height, "sha256": records.hash_file(path)}


def last_words(log: Path) -> str:
    """The last line that says something."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return lines[-1][-300:] if lines else "no output"


def link_latest(folder: Path) -> None:
    link = folder.parent / "latest"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)


def parse_duration(text: str) -> float:
    """Seconds of "9h", "90m", "30s" or "1h30m"."""
    found = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip())
    if not text.strip() or found is None:
        raise ValueError(f"limit {text!r}: write it like 9h, 90m, 30s or 1h30m")
    hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds


def print_report(report: Mapping[str, Any]) -> None:
    rows = [[check["name"], "ok" if check["ok"] else "FAILED", check["detail"]] for check in report["checks"]]
    print_table(
        f"rehearsal of {report['run']}: {report['rows']} rows of {report['test']}", ("check", "", "detail"), rows
    )
    score = "none" if report["score"] is None else f"{report['score']:.4f}"
    print(f"ok: {report['ok']}, private score: {score}, {report['seconds']} s, {report['peak_rss_mb']} MB")
