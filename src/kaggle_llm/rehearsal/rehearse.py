"""Run a bundle as Kaggle would, offline, on a hidden test. Leaves output/rehearsals/<run>/<time>/ and `latest`:

report.json, submission.csv, executed.ipynb and log.txt of the hidden test; replay/ with the same of a replay.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm import paths, records
from kaggle_llm.competition import CompetitionSettings, load_competition, read_csv
from kaggle_llm.inference.budget import describe_cuts
from kaggle_llm.kaggle.bundle import identify_bundle, list_entries, read_run
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.rehearsal.checks import Check, compare_rankings, largest_difference
from kaggle_llm.rehearsal.rerun import Rerun, execute_notebook, last_words
from kaggle_llm.rehearsal.sandbox import find_method
from kaggle_llm.rehearsal.stage import hidden_test
from kaggle_llm.tables import print_table

if TYPE_CHECKING:
    import polars as pl


def rehearse(run: str, rows: int | None = None, limit: str = "9h", replay: int | None = None) -> dict[str, Any]:
    """The report, also written as report.json. Raises where there is nothing to rehearse.

    rows: so many rows of the hidden test; replay: also send this fold's validation rows through the bundle.
    """
    bundle, record, seconds = paths.bundle_folder(run), read_run(run), parse_duration(limit)
    if not (bundle / MANIFEST).is_file():
        raise FileNotFoundError(f"{run} has no bundle: run `kaggle-llm bundle {run}` first")
    if replay is not None and str(replay) not in record.settings["fold_models"]:
        raise ValueError(f"--replay {replay}: {run} has the folds {', '.join(record.settings['fold_models'])}")
    settings = CompetitionSettings(**record.settings["config"]["competition"])
    folder = paths.rehearsals_folder(run) / datetime.now().strftime("%Y%m%d-%H%M%S")
    test, truth, origin = hidden_test(settings, rows)
    checks = [check_bundle(bundle, record)]
    with execute_notebook(folder, bundle, settings, test, {}, seconds) as hidden:
        network = check_network(hidden)
        submission, submission_check = check_submission(hidden)
        checks += [network, check_notebook(hidden), check_time(hidden), check_origin(hidden), check_mount(hidden)]
        checks += [submission_check, check_independence(hidden)]
    score = None
    if submission is not None and submission_check.ok and not hidden.error:
        score = hidden.competition.metric.score(hidden.competition.ranking_of(submission), truth)
    if replay is not None:
        checks.append(replay_fold(folder / "replay", run, record, replay, bundle, settings, seconds))
    manifest = records.read_json(bundle / MANIFEST)
    records.write_json(folder / MANIFEST, manifest)  # for trace: the bundle may be made again
    report = {
        "run": run,
        "bundle": identify_bundle(manifest),
        "ok": all(check.ok for check in checks),
        "checks": [asdict(check) for check in checks],
        "rows": test.height,
        "seconds": round(hidden.seconds, 1),
        "peak_rss_mb": hidden.peak_rss_mb,
        "network": "blocked" if network.ok else "open",
        "network_method": find_method(),
        "score": score,
        "cv": records.read_json(paths.run_folder(run) / "metrics.json")["cv"],
        "test": origin,
        "submission": describe_submission(folder / "submission.csv", submission),
    }
    records.write_json(folder / "report.json", report)
    link_latest(folder)
    return report


def check_bundle(bundle: Path, record: records.Record) -> Check:
    """Is every file of the bundle what its manifest says, and is it the run as it stands?"""
    manifest = records.read_json(bundle / MANIFEST)
    if manifest["record"] != record.key:
        return Check("bundle", False, f"{record.kind} was made again since: run `kaggle-llm bundle` again")
    listed = {entry["path"]: entry["sha256"] for entry in manifest["files"]}
    found = {entry["path"]: entry["sha256"] for entry in list_entries(bundle) if entry["path"] != MANIFEST}
    changed = sorted(name for name in {*listed, *found} if listed.get(name) != found.get(name))
    return Check("bundle", not changed, f"changed: {changed[:3]}" if changed else f"{len(listed)} files as listed")


def check_network(rerun: Rerun) -> Check:
    """A connection to the outside must fail, and for the right reason, in a sandbox made like the notebook's."""
    probe = rerun.inside(rerun.code) / "src" / "kaggle_llm" / "rehearsal" / "probe.py"
    log = rerun.folder / "probe.txt"
    done = rerun.sandbox.run([sys.executable, str(probe), find_method()], log, {}, 60)
    return Check("network", done.returncode == 0, f"{find_method()}: {last_words(log)}")


def check_notebook(rerun: Rerun) -> Check:
    return Check("notebook", not rerun.error, rerun.error or f"executed in {rerun.seconds:.0f} s")


def check_time(rerun: Rerun) -> Check:
    """The prediction ended by itself, and nothing was cut."""
    path = rerun.folder / "prediction.json"
    if not path.is_file():
        return Check("time", False, f"the prediction did not end within the limit of {rerun.limit:.0f} s, or failed")
    done = records.read_json(path)
    cut = describe_cuts(done["cut"])
    said = f"{done['seconds']:.0f} s of {rerun.limit:.0f} s for {done['rows']} rows"
    return Check("time", not cut, ", ".join(filter(None, [said, cut])))


def check_origin(rerun: Rerun) -> Check:
    """Code and models came from the mount, not from the repository."""
    path = rerun.working / "origin.json"
    if not path.is_file():
        return Check("origin", False, "the prediction did not get as far as saying where it comes from")
    origin = records.read_json(path)
    mount = rerun.sandbox.mount.resolve()
    outside = {name: found for name, found in origin.items() if not Path(found).is_relative_to(mount)}
    return Check("origin", not outside, f"outside: {outside}" if outside else f"{', '.join(origin)} under the mount")


def check_mount(rerun: Rerun) -> Check:
    """Kaggle's mounts are read-only: nothing may have been written there."""
    return Check("mount", not rerun.written, f"written: {rerun.written[:3]}" if rerun.written else "unchanged")


def check_submission(rerun: Rerun) -> tuple[pl.DataFrame | None, Check]:
    path = rerun.folder / "submission.csv"
    if not path.is_file():
        return None, Check("submission", False, "there is no submission.csv")
    try:
        submission = read_csv(path)
    except ValueError as error:
        return None, Check("submission", False, str(error))
    problems = rerun.competition.check_submission(submission)
    detail = "; ".join(problems[:3]) or f"{submission.height} rows: columns, ids, order and labels are right"
    return submission, Check("submission", not problems, detail)


def check_independence(rerun: Rerun) -> Check:
    """A row alone, in another order and among other rows: by the bundle's own code in the same kind of sandbox."""
    if not (rerun.working / "ranking.parquet").is_file():
        return Check("row independence", False, "there is no ranking.parquet to compare with")
    log = rerun.folder / "independence.txt"
    try:
        code = rerun.run_module("kaggle_llm.rehearsal.independence", log)
    except subprocess.TimeoutExpired:
        return Check("row independence", False, f"not done after {rerun.limit:.0f} s")
    return Check("row independence", code == 0, last_words(log))


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

    models = {name: paths.absolute(path) for name, path in record.settings["fold_models"][str(fold)].items()}
    expected = pl.read_parquet(paths.run_folder(run) / "oof.parquet").filter(pl.col("fold") == fold)
    test = load_competition(settings).test_csv(expected["id"].to_list())
    with execute_notebook(folder, bundle, settings, test, models, limit) as rerun:
        if rerun.error or not (folder / "ranking.parquet").is_file():
            return Check("replay", False, rerun.error or "the prediction wrote no ranking.parquet")
    # A wide row of test.csv may bring siblings that another fold validated.
    found = pl.read_parquet(folder / "ranking.parquet").join(expected.select("id"), on="id", how="semi")
    problems = compare_rankings(found, expected)
    if problems:
        detail = f"{len(problems)} of {expected.height} rows of fold {fold}: {problems[0]}"
        return Check("replay", False, detail)
    worst = largest_difference(found, expected)
    detail = f"{expected.height} rows of fold {fold}: same lists, largest |Δ score| {worst:.1e}"
    return Check("replay", True, detail)


def describe_submission(path: Path, submission: pl.DataFrame | None) -> dict[str, Any] | None:
    if submission is None:
        return None
    return {"path": paths.relative(path), "rows": submission.height, "sha256": records.hash_file(path)}


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
    title = f"rehearsal of {report['run']}: {report['rows']} rows of {report['test']}"
    print_table(title, ("check", "", "detail"), rows)
    score = "none" if report["score"] is None else f"{report['score']:.4f}"
    print(f"ok: {report['ok']}, private score: {score} (CV {report['cv']:.4f}), {report['seconds']} s, ", end="")
    print(f"{report['peak_rss_mb']} MB")
