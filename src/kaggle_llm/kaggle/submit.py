"""`kaggle-llm submit`: submit exactly the kernel version that was pushed, once, if every gate is open; get its score.

Leaves output/<run>/submissions.json, a list in the order of submission, which git keeps: {"date", "message", "kernel",
"version", "ref", "status", "public_score", "private_score", "cv", "timed", "bundle", "git"}.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.competition.competition import CompetitionSettings, notebook_seconds
from kaggle_llm.kaggle.bundle import find_changes, identify_bundle
from kaggle_llm.kaggle.client import KaggleError, ask_kaggle, pause, read_answer, run_kaggle
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.kaggle.push import PUSH, kernel_slug, open_bundle
from kaggle_llm.kaggle.timed import ENDING, TIMED, describe_timed, extrapolate_hours

SUBMISSIONS = "submissions.json"
SCORE_POLL_SECONDS = 60.0
SUBMIT_RECHECKS = 4  # listings, 5 s apart, for a submission whose call got no answer
LISTED = 200  # submissions that are searched


def submit_run(run: str, message: str) -> dict[str, Any]:
    """Submit the pushed kernel version of the run's bundle and wait for its score; returns its submissions.json entry.

    Called again, it waits for the same submission and never makes a second one of the same kernel version.
    Raises ValueError where a gate is shut, OSError where Kaggle refuses it or the submission fails.
    """
    folder, manifest = open_bundle(run)
    pushed = check_gates(run, folder, manifest)
    competition, tag = manifest["competition"], f"[{run} v{pushed['version']} {pushed['bundle'][:8]}]"
    show_expectations(run, manifest)
    submission = find_submission(competition, tag)
    if submission:
        print(f"{tag} was submitted before: waiting for its score", flush=True)
    else:
        check_limit(competition)
        submission = send_submission(competition, pushed, f"{message} {tag}", tag)
    note_submission(run, message, pushed, submission)
    entry = note_submission(run, message, pushed, wait_for_score(competition, tag))
    if entry["status"] != "COMPLETE":
        raise OSError(f"the submission {tag} ended with {entry['status']}: Kaggle's page of the competition says why")
    print(f"{tag}: public score {entry['public_score']}, CV {entry['cv']:.4f}", flush=True)
    return entry


def check_gates(run: str, folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The bundle's push.json; raises ValueError with every gate that is shut."""
    pushed = records.read_optional(paths.pushes_folder(kernel_slug(manifest)) / PUSH)
    shut = list(find_shut_gates(run, folder, manifest, pushed))
    if pushed is None or shut:
        raise ValueError(f"{run} is not submitted: " + "; ".join(shut))
    return dict(pushed)


def find_shut_gates(run: str, folder: Path, manifest: dict[str, Any], pushed: dict[str, Any] | None) -> Iterator[str]:
    """Why the bundle must not be submitted, each with the way out."""
    bundle = identify_bundle(manifest)
    if records.read_json(paths.run_folder(run) / "metrics.json")["smoke"]:
        yield "it is a smoke run: train it whole"
    changed = find_changes(folder, manifest)
    if changed:
        yield f"{changed[0]} of the bundle changed since it was made: kaggle-llm bundle {run}"
    path = paths.rehearsals_folder(run) / "latest" / "report.json"
    report = records.read_optional(path)
    if report is None or report.get("bundle") != bundle:
        yield f"this bundle was not rehearsed: kaggle-llm rehearse {run}"
    elif not report["ok"]:
        failed = ", ".join(check["name"] for check in report["checks"] if not check["ok"])
        yield f"its rehearsal failed ({failed}): {paths.relative(path)} says why"
    if pushed is None or pushed["bundle"] != bundle:
        yield f"this bundle was not pushed: kaggle-llm push {run}"
    elif not pushed["output"]["ok"]:
        yield f"its output on Kaggle is not right ({'; '.join(pushed['output']['problems'])}): fix it, then push again"


def show_expectations(run: str, manifest: dict[str, Any]) -> None:
    """Print CV and, if there is a timed run of this bundle, its score and the hours that the hidden test will take."""
    metrics = records.read_json(paths.run_folder(run) / "metrics.json")
    print(f"{run}: {metrics['metric']} in CV {metrics['cv']:.4f}", flush=True)
    timed = read_timed(manifest)
    if timed is None:
        print(f"no timed run of this bundle: kaggle-llm push {run} --rows N measures it on Kaggle", file=sys.stderr)
        return
    rows, source = hidden_rows(run)
    print(describe_timed(timed), flush=True)
    hours, limit = extrapolate_hours(timed["timing"], rows), manifest.get("hours", CompetitionSettings.hours)
    print(f"{hours:.2f} h of {limit:g} h (competition.hours) for {rows} rows ({source})", flush=True)
    if hours * 3600 > notebook_seconds(limit):
        print("WARNING: it will not end in time; rows that are cut get the fallback", file=sys.stderr)


def read_timed(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """timed.json of exactly this bundle; None without one."""
    timed = records.read_optional(paths.pushes_folder(kernel_slug(manifest, ENDING)) / TIMED)
    return timed if timed and timed["bundle"] == identify_bundle(manifest) else None


def hidden_rows(run: str) -> tuple[int, str]:
    """Rows of the hidden test by the config, else of the rehearsal; and which of the two it is."""
    config = records.read_json(paths.run_folder(run) / records.RECORD)["settings"]["config"]["competition"]
    if config.get("hidden_rows"):
        return config["hidden_rows"], "competition.hidden_rows"
    report = records.read_json(paths.rehearsals_folder(run) / "latest" / "report.json")
    return report["rows"], "as many as were rehearsed; set competition.hidden_rows for another number"


def check_limit(competition: str) -> None:
    """Print how many submissions are left today; raises ValueError where none is."""
    limits = read_answer(ask_kaggle("competitions", "submission-limits", competition, "--json")) or {}
    today, left = limits.get("numToday", 0), limits.get("numAllowedNow", 0)
    print(f"{competition}: {today} submissions today, {left} left", flush=True)
    if left < 1:
        raise ValueError(f"no submission to {competition} is left today ({today} made): the limit is Kaggle's, in UTC")


def send_submission(competition: str, pushed: Mapping[str, Any], message: str, tag: str) -> dict[str, Any]:
    """Submit; returns the submission as Kaggle lists it. After an error it may still have arrived."""
    words = ["-k", pushed["kernel"], "-v", str(pushed["version"]), "-f", "submission.csv", "-m", message]
    failure = OSError(f"Kaggle accepted the submission {tag}, but does not list it: look at the competition's page")
    try:
        print(run_kaggle("competitions", "submit", competition, *words), flush=True)
    except KaggleError as error:
        failure = error
    for _ in range(SUBMIT_RECHECKS):
        if submission := find_submission(competition, tag):
            return submission
        pause(5.0)
    raise failure


def find_submission(competition: str, tag: str) -> dict[str, Any] | None:
    """The submission with the tag in its description, as the CLI lists it."""
    words = ["--format", "json", "--page-size", str(LISTED)]
    listed = read_answer(ask_kaggle("competitions", "submissions", competition, *words)) or []
    return next((entry for entry in listed if tag in (entry.get("description") or "")), None)


def wait_for_score(competition: str, tag: str) -> dict[str, Any]:
    """The submission once it is scored or failed; a rerun takes hours, and an interrupted wait goes on."""
    attempt = 0
    while True:
        submission = find_submission(competition, tag)
        if submission is None:
            raise OSError(f"{competition} does not list the submission {tag} any more: look at the competition's page")
        if status_of(submission) != "PENDING":
            return submission
        if attempt % 10 == 0:
            print(f"{tag}: pending; Ctrl-C and the same command later goes on waiting", flush=True)
        attempt += 1
        pause(SCORE_POLL_SECONDS)


def status_of(submission: Mapping[str, Any]) -> str:
    """PENDING, COMPLETE or ERROR of "SubmissionStatus.COMPLETE"."""
    return str(submission["status"]).rpartition(".")[2].upper()


def note_submission(run: str, message: str, pushed: Mapping[str, Any], submission: Mapping[str, Any]) -> dict[str, Any]:
    """Add or update the submission's entry in submissions.json; returns the entry."""
    path = paths.run_folder(run) / SUBMISSIONS
    entries = records.read_optional(path, [])
    kernel = (pushed["kernel"], pushed["version"])
    entry = next((entry for entry in entries if (entry["kernel"], entry["version"]) == kernel), None)
    if entry is None:
        entry = {"date": datetime.now().isoformat(timespec="seconds"), "message": message}
        entries.append(entry)
    timed = read_timed(records.read_json(paths.bundle_folder(run) / MANIFEST))
    entry |= {
        "kernel": pushed["kernel"],
        "version": pushed["version"],
        "ref": submission["ref"],
        "status": status_of(submission),
        "public_score": as_number(submission["publicScore"]),
        "private_score": as_number(submission["privateScore"]),
        "cv": records.read_json(paths.run_folder(run) / "metrics.json")["cv"],
        "timed": timed and {name: timed[name] for name in ("rows", "timing", "score", "oof")},
        "bundle": pushed["bundle"],
        "git": records.git_state(),
    }
    records.write_json(path, entries)
    return entry


def as_number(text: str | float | None) -> float | None:
    """A score as Kaggle lists it; None for an empty one."""
    return float(text) if text not in (None, "") else None
