"""The checks on a session: one function each."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths, records
from kaggle_llm.competition.csv_table import read_csv
from kaggle_llm.inference.budget import describe_cuts
from kaggle_llm.kaggle.bundle import find_changes
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.rehearsal.checks import Check, compare_rankings, count_moved, largest_difference
from kaggle_llm.rehearsal.memory_limit import describe_method, show_bytes
from kaggle_llm.rehearsal.sandbox import find_method
from kaggle_llm.rehearsal.session import Session, last_line

if TYPE_CHECKING:
    import polars as pl


def check_bundle(bundle: Path, record: records.Record) -> Check:
    """Does every file of the bundle match its manifest, and is it of the run as it is now?"""
    manifest = records.read_json(bundle / MANIFEST)
    if manifest["record"] != record.key:
        return Check("bundle", False, f"{record.kind} was made again since: run `kaggle-llm bundle` again")
    changed = find_changes(bundle, manifest)
    return Check("bundle", not changed, f"changed: {changed[:3]}" if changed else f"{len(manifest['files'])} files")


def check_network(session: Session) -> Check:
    """A connection to the outside must fail for the right reason, in a sandbox like the notebook's."""
    probe = session.site.inside(session.code) / "src" / "kaggle_llm" / "rehearsal" / "probe.py"
    log = session.folder / "probe.txt"
    code = session.site.sandbox.run([sys.executable, str(probe), find_method()], log, {}, 60)
    return Check("network", code == 0, f"{find_method()}: {last_line(log)}")


def check_notebook(session: Session) -> Check:
    return Check("notebook", not session.error, session.error or f"executed in {session.seconds:.0f} s")


def check_time(session: Session) -> Check:
    """The prediction ended before the limit, and no row was cut."""
    path, limit = session.folder / "prediction.json", session.site.limit
    if not path.is_file():
        return Check("time", False, f"the prediction did not end within the limit of {limit:.0f} s, or failed")
    prediction = records.read_json(path)
    cut = describe_cuts(prediction["cut"])
    used = f"{prediction['seconds']:.0f} s of {limit:.0f} s for {prediction['rows']} rows"
    return Check("time", not cut, ", ".join(filter(None, [used, cut])))


def check_origin(session: Session) -> Check:
    """Code and models came from the mount, not from the repository."""
    path = session.site.working / "origin.json"
    if not path.is_file():
        return Check("origin", False, "the prediction ended before it wrote origin.json")
    origin = records.read_json(path)
    mount = session.site.sandbox.mount.resolve()
    outside = {name: path for name, path in origin.items() if not Path(path).is_relative_to(mount)}
    return Check("origin", not outside, f"outside: {outside}" if outside else f"{', '.join(origin)} under the mount")


def check_mount(sessions: Sequence[Session]) -> Check:
    """Kaggle's mounts are read-only: nothing was written there."""
    written = [path for session in sessions for path in session.written]
    return Check("mount", not written, f"written: {written[:3]}" if written else "unchanged")


def check_memory(sessions: Sequence[Session]) -> Check:
    """All processes of a session together stayed below the limit."""
    over = [session for session in sessions if session.usage.over]
    if over:
        return Check("memory", False, "; ".join(f"{session.name}: {session.usage}" for session in over))
    largest = max(sessions, key=lambda session: session.usage.peak)
    peak, limit = show_bytes(largest.usage.peak), show_bytes(largest.usage.limit)
    return Check("memory", True, f"peak {peak} of {limit} ({largest.name}); {describe_method()}")


def check_submission(session: Session) -> tuple[pl.DataFrame | None, Check]:
    path = session.folder / "submission.csv"
    if not path.is_file():
        return None, Check("submission", False, "there is no submission.csv")
    try:
        submission = read_csv(path)
    except ValueError as error:
        return None, Check("submission", False, str(error))
    problems = session.competition.check_submission(submission)
    right = [f"{submission.height} rows: columns, ids, order and labels are right"]
    detail = "; ".join(filter(None, [*(problems[:3] or right), session.competition.describe_empty(submission)]))
    return submission, Check("submission", not problems, detail)


def check_session(session: Session) -> Check:
    """The checks of notebook, submission and time as one, under the session's name."""
    checks = [check_notebook(session), check_submission(session)[1], check_time(session)]
    failed = [check.detail for check in checks if not check.ok]
    return Check(session.name, not failed, "; ".join(failed) or checks[-1].detail)


def check_hostile(session: Session, hostile: int, rerun: Path) -> Check:
    """A valid submission, with the healthy rows predicted as in the rerun. rerun: the folder with its ranking."""
    import polars as pl

    check = check_session(session)
    if not check.ok:
        return check
    hostile_ranking, expected = (pl.read_parquet(folder / "ranking.parquet") for folder in (session.folder, rerun))
    hostile_ranking = hostile_ranking.join(expected.select("id"), on="id", how="semi")
    problems = compare_rankings(hostile_ranking, expected.join(hostile_ranking.select("id"), on="id", how="semi"))
    if problems:
        return Check(session.name, False, f"among hostile rows: {problems[0]}")
    rows = f"{hostile} hostile rows" if hostile else "no hostile rows, as read() reshapes the test file"
    return Check(session.name, True, f"{rows}; {hostile_ranking.height} healthy rows answered as in the rerun")


def check_independence(session: Session) -> Check:
    """A row gets the same answer alone, in another order and among other rows, by the bundle's code in the sandbox."""
    if not (session.site.working / "ranking.parquet").is_file():
        return Check("row independence", False, "there is no ranking.parquet to compare with")
    log = session.folder / "independence.txt"
    try:
        code = session.run_module("kaggle_llm.rehearsal.independence", log)
    except subprocess.TimeoutExpired:
        return Check("row independence", False, f"not done after {session.site.limit:.0f} s")
    return Check("row independence", code == 0, last_line(log))


def check_replay(session: Session, fold: int, expected: pl.DataFrame) -> Check:
    """The replayed rows equal the fold's out-of-fold rows. expected: those rows, as training computed them."""
    import polars as pl

    path = session.folder / "ranking.parquet"
    if session.error or not path.is_file():
        return Check("replay", False, session.error or "the prediction wrote no ranking.parquet")
    # A wide row of test.csv may have rows of other folds too.
    replayed = pl.read_parquet(path).join(expected.select("id"), on="id", how="semi")
    problems = compare_rankings(replayed, expected)
    if problems:
        return Check("replay", False, f"{len(problems)} of {expected.height} rows of fold {fold}: {problems[0]}")
    moved = count_moved(replayed, expected)
    lists = f"equal scores in another order in {moved} of them" if moved else "same lists"
    worst = largest_difference(replayed, expected)
    detail = f"{expected.height} rows of fold {fold}: {lists}, largest |Δ score| {worst:.1e}"
    return Check("replay", True, detail)


def describe_submission(path: Path, submission: pl.DataFrame | None) -> dict[str, Any] | None:
    if submission is None:
        return None
    return {"path": paths.relative(path), "rows": submission.height, "sha256": records.hash_file(path)}
