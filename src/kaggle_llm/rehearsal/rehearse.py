"""Run a bundle as Kaggle would, offline, on a hidden test. Leaves output/rehearsals/<run>/<time>/ and `latest`:

report.json, report.txt, MANIFEST.json of the bundle, and of the rerun submission.csv, timing.json, executed.ipynb and
log.txt; public/, hostile/ and replay/ with the same of the other sessions; drills/ with their logs.
"""

from __future__ import annotations

import shlex
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths, records
from kaggle_llm.competition.competition import CompetitionSettings, load_competition
from kaggle_llm.inference.model import read_models
from kaggle_llm.kaggle.bundle import identify_bundle, read_run
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.rehearsal.checks import Check
from kaggle_llm.rehearsal.drills import run_drills
from kaggle_llm.rehearsal.hostile import make_hostile_test
from kaggle_llm.rehearsal.memory_limit import MIB, describe_method, parse_memory
from kaggle_llm.rehearsal.report import describe_report, parse_duration
from kaggle_llm.rehearsal.sandbox import find_method
from kaggle_llm.rehearsal.session import (
    HOSTILE,
    PUBLIC,
    REPLAY,
    RERUN,
    Session,
    Site,
    describe_session,
    open_session,
    open_site,
)
from kaggle_llm.rehearsal.stage import FLAT, NESTED, OWNED, exchange_models, hidden_test
from kaggle_llm.rehearsal.verdicts import (
    check_bundle,
    check_hostile,
    check_independence,
    check_memory,
    check_mount,
    check_network,
    check_notebook,
    check_origin,
    check_replay,
    check_submission,
    check_time,
    check_whole,
    describe_submission,
)

if TYPE_CHECKING:
    import polars as pl

HEALTHY = 4  # rows among the hostile ones that are compared with the rerun's


@dataclass
class Findings:
    """What the sessions so far left."""

    sessions: list[Session] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)


def rehearse(
    run: str, rows: int | None = None, limit: str = "9h", replay: int | None = None, memory: str | None = None
) -> dict[str, Any]:
    """The report, also written as report.json and report.txt. Raises where there is nothing to rehearse.

    rows: so many rows of the hidden test; limit: of each session; replay: also send this fold's validation rows through
    the bundle; memory: of all processes of a session together, by default what the runtime's machine has.
    """
    bundle, record, seconds = paths.bundle_folder(run), read_run(run), parse_duration(limit)
    if not (bundle / MANIFEST).is_file():
        raise FileNotFoundError(f"{run} has no bundle: run `kaggle-llm bundle {run}` first")
    if replay is not None and str(replay) not in record.settings["fold_models"]:
        raise ValueError(f"--replay {replay}: {run} has the folds {', '.join(record.settings['fold_models'])}")
    settings = CompetitionSettings(**record.settings["config"]["competition"])
    manifest = records.read_json(bundle / MANIFEST)
    most = parse_memory(memory or f"{manifest['runtime']['machine']['ram_gb']}GB")
    folder = paths.rehearsals_folder(run) / datetime.now().strftime("%Y%m%d-%H%M%S")
    test, truth, origin = hidden_test(settings, rows)
    shipped = read_models(record.settings["ship"])
    found = Findings(checks=[check_bundle(bundle, record)])
    with open_site(folder, bundle, settings, shipped, seconds, most) as site:
        rehearse_public(site, found)
        submission = rehearse_rerun(site, test, found)
        rehearse_hostile(site, test, found)
        found.checks += run_drills(site)
        if replay is not None:
            replay_fold(site, run, record, replay, found)
    found.checks += [check_mount(found.sessions), check_memory(found.sessions)]
    records.write_json(folder / MANIFEST, manifest)  # for trace: the bundle may be made again
    rerun = next(session for session in found.sessions if session.name == RERUN)
    report = {
        "run": run,
        "bundle": identify_bundle(manifest),
        "ok": all(check.ok for check in found.checks),
        "checks": [asdict(check) for check in found.checks],
        "rows": test.height,
        "seconds": round(rerun.seconds, 1),
        "peak_rss_mb": round(rerun.usage.peak / MIB),
        "memory_method": describe_method(),
        "network": "blocked" if is_ok(found, "network") else "open",
        "network_method": find_method(),
        "score": score_rerun(rerun, submission, truth) if is_ok(found, "notebook", "submission") else None,
        "cv": records.read_json(paths.run_folder(run) / "metrics.json")["cv"],
        "test": origin,
        "command": describe_command(run, rows=rows, limit=limit, replay=replay, memory=memory),
        "sessions": [describe_session(session) for session in found.sessions],
        "submission": describe_submission(folder / "submission.csv", submission),
    }
    records.write_text(folder / "report.txt", describe_report(report))
    records.write_json(folder / "report.json", report)
    link_latest(folder)
    return report


def rehearse_public(site: Site, found: Findings) -> None:
    """The run that everybody makes before submitting: the test set that everybody sees."""
    with open_session(site, PUBLIC, FLAT, None) as session:
        found.checks.append(check_whole(session))
    found.sessions.append(session)


def rehearse_rerun(site: Site, test: pl.DataFrame, found: Findings) -> pl.DataFrame | None:
    """Kaggle's run on the hidden test; its submission, where there is one that can be read."""
    with open_session(site, RERUN, OWNED, test.write_csv().encode()) as session:
        submission, right = check_submission(session)
        found.checks += [check_network(session), check_notebook(session), check_time(session), check_origin(session)]
        found.checks += [right, check_independence(session)]
    found.sessions.append(session)
    return submission


def rehearse_hostile(site: Site, test: pl.DataFrame, found: Findings) -> None:
    """Some rows of the rerun among hostile ones; where it failed, these would fail as well and say nothing new."""
    if not is_ok(found, "notebook", "time"):
        found.checks.append(Check(HOSTILE, False, "not asked: the rerun failed or was cut"))
        return
    competition = load_competition(site.settings)
    healthy = test.head(HEALTHY) if test.height else hidden_test(site.settings, None)[0].head(HEALTHY)
    content, hostile = make_hostile_test(competition, healthy)
    try:
        with open_session(site, HOSTILE, NESTED, content) as session:
            found.checks.append(check_hostile(session, hostile, site.folder))
    except (ValueError, LookupError, TypeError) as error:  # of a read() that reshapes
        found.checks.append(Check(HOSTILE, False, f"{site.settings.name} cannot read them: {error}"))
    else:
        found.sessions.append(session)


def replay_fold(site: Site, run: str, record: records.Record, fold: int, found: Findings) -> None:
    """Fold `fold`'s validation rows, unlabelled, through the bundle with that fold's weights = its out-of-fold rows."""
    import polars as pl

    models = read_models(record.settings["fold_models"][str(fold)])
    expected = pl.read_parquet(paths.run_folder(run) / "oof.parquet").filter(pl.col("fold") == fold)
    test = load_competition(site.settings).test_csv(expected["id"].to_list())
    exchange_models(site.depot, models)
    with open_session(site, REPLAY, OWNED, test.write_csv().encode()) as session:
        found.checks.append(check_replay(session, fold, expected))
    found.sessions.append(session)


def is_ok(found: Findings, *names: str) -> bool:
    return all(check.ok for check in found.checks if check.name in names)


def score_rerun(rerun: Session, submission: pl.DataFrame | None, truth: pl.DataFrame) -> float | None:
    """The metric on what was submitted; None where no row was asked."""
    if submission is None or not truth.height:
        return None
    return rerun.competition.metric.score(rerun.competition.ranking_of(submission), truth)


def describe_command(run: str, **options: object) -> str:
    """The command that rehearses the same again."""
    given = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["kaggle-llm", "rehearse", run, *given])


def link_latest(folder: Path) -> None:
    link = folder.parent / "latest"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
