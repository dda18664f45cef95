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
from kaggle_llm.base.accelerators import find_accelerator
from kaggle_llm.competition.competition import (
    TEST,
    TRAIN,
    Competition,
    CompetitionSettings,
    load_competition,
    notebook_seconds,
)
from kaggle_llm.competition.staged import StagedTest
from kaggle_llm.inference.model import read_models
from kaggle_llm.kaggle.bundle import identify_bundle
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.kaggle.rows import read_held_out
from kaggle_llm.rehearsal.checks import Check, note_errors
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
    check_session,
    check_submission,
    check_time,
    describe_submission,
)

if TYPE_CHECKING:
    import polars as pl

USUAL_RAM_GB = 29  # of the machine with two T4s
HEALTHY_ROWS = 4  # among the hostile ones, compared with the rerun's


@dataclass
class Results:
    """The sessions so far and the checks on them."""

    sessions: list[Session] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    submission: pl.DataFrame | None = None
    """The rerun's submission; None where it cannot be read."""
    score: float | None = None
    """The metric of the rerun's submission on the rows that have a label; None where they do not define it."""
    scored_rows: int = 0


def rehearse(
    run: str, rows: int | None = None, limit: str | None = None, replay: int | None = None, memory: str | None = None
) -> dict[str, Any]:
    """The report, also written as report.json and report.txt. Raises FileNotFoundError without a bundle.

    rows: number of rows of the hidden test; limit: of each session, by default the notebook's; replay: also predict
    this fold's validation rows with the bundle; memory: of all processes of a session together, by default that of the
    runtime's machine, or of the usual one where it is not known.
    """
    bundle, record = paths.bundle_folder(run), records.read_complete(run)
    if not (bundle / MANIFEST).is_file():
        raise FileNotFoundError(f"{run} has no bundle: run `kaggle-llm bundle {run}` first")
    if replay is not None and str(replay) not in record.settings["fold_models"]:
        raise ValueError(f"--replay {replay}: {run} has the folds {', '.join(record.settings['fold_models'])}")
    settings = CompetitionSettings(**record.settings["config"]["competition"])
    manifest = records.read_json(bundle / MANIFEST)
    seconds = parse_duration(limit) if limit else notebook_seconds(settings.hours)
    ram = find_accelerator(manifest["runtime"]["accelerator"]).ram_gb or USUAL_RAM_GB
    memory_limit = parse_memory(memory or f"{ram}GB")
    folder = paths.rehearsals_folder(run) / datetime.now().strftime("%Y%m%d-%H%M%S")
    held_out, note = read_held_out(run)
    test, truth, origin = hidden_test(settings, rows, [] if note else held_out["id"].to_list())
    shipped = read_models(record.settings["ship"])
    results = Results(checks=[check_bundle(bundle, record)])
    with note_errors("rehearsal", results.checks, folder):
        with open_site(folder, bundle, settings, shipped, seconds, memory_limit) as site:
            rehearse_public(site, results)
            rehearse_rerun(site, test, truth, results)
            rehearse_hostile(site, test, results)
            results.checks += run_drills(site)
            if replay is not None:
                replay_fold(site, run, record, replay, results)
        results.checks += [check_mount(results.sessions), check_memory(results.sessions)]
    records.write_json(folder / MANIFEST, manifest)  # for trace, as the bundle may be made again
    rerun = next((session for session in results.sessions if session.name == RERUN), None)
    report = {
        "run": run,
        "bundle": identify_bundle(manifest),
        "ok": all(check.ok for check in results.checks),
        "checks": [asdict(check) for check in results.checks],
        "rows": test.rows.height,
        "seconds": round(rerun.seconds, 1) if rerun else 0.0,
        "peak_rss_mb": round(rerun.usage.peak / MIB) if rerun else 0,
        "memory_method": describe_method(),
        "network": "blocked" if is_ok(results, "network") else "open",
        "network_method": find_method(),
        "score": results.score,
        "scored_rows": results.scored_rows,
        "cv": records.read_json(paths.run_folder(run) / "metrics.json")["cv"],
        "test": origin,
        "command": describe_command(run, rows=rows, limit=limit, replay=replay, memory=memory),
        "sessions": [describe_session(session) for session in results.sessions],
        "submission": describe_submission(folder / "submission.csv", results.submission),
    }
    records.write_text(folder / "report.txt", describe_report(report))
    records.write_json(folder / "report.json", report)
    link_latest(folder)
    return report


def rehearse_public(site: Site, results: Results) -> None:
    """The run before a submission, on the public test set."""
    with open_session(site, PUBLIC, FLAT, None) as session:
        results.checks.append(check_session(session))
    results.sessions.append(session)


def rehearse_rerun(site: Site, test: StagedTest, truth: pl.DataFrame, results: Results) -> None:
    """Kaggle's run on the hidden test, and its score: read while its test set is mounted, which cells may refer to."""
    with open_session(site, RERUN, OWNED, test.encode()) as session:
        results.submission, valid = check_submission(session)
        results.checks += [check_network(session), check_notebook(session), check_time(session), check_origin(session)]
        results.checks += [valid, check_independence(session)]
        if results.submission is not None and is_ok(results, "notebook", "submission"):
            score_rerun(session, results.submission, truth, results)
    results.sessions.append(session)


def rehearse_hostile(site: Site, test: StagedTest, results: Results) -> None:
    """Some rows of the rerun among hostile ones; skipped where the rerun failed, as these would fail too."""
    if not is_ok(results, "notebook", "time"):
        results.checks.append(Check(HOSTILE, False, "not run: the rerun failed or was cut"))
        return
    competition = load_competition(site.settings)
    source = test if test.rows.height else hidden_test(site.settings, None)[0]
    healthy = source.with_rows(source.rows.head(HEALTHY_ROWS))
    files, hostile = make_hostile_test(competition, healthy, list_ids(competition, test))
    try:
        with open_session(site, HOSTILE, NESTED, files) as session:
            results.checks.append(check_hostile(session, hostile, site.folder))
    except (ValueError, LookupError, TypeError) as error:  # of a read() that reshapes
        results.checks.append(Check(HOSTILE, False, f"{site.settings.name} cannot read them: {error}"))
    else:
        results.sessions.append(session)


def list_ids(competition: Competition, test: StagedTest) -> set[str]:
    """The ids that rows of the rerun, of the public test and of the training table have in their files."""
    staged = set(competition.tables[TEST].read_ids(test.rows).drop_nulls())
    return staged | competition.ids_in_file(TEST) | competition.ids_in_file(TRAIN)


def replay_fold(site: Site, run: str, record: records.Record, fold: int, results: Results) -> None:
    """Predict the fold's validation rows with the bundle and that fold's weights; must give its out-of-fold rows."""
    import polars as pl

    models = read_models(record.settings["fold_models"][str(fold)])
    expected = pl.read_parquet(paths.run_folder(run) / "oof.parquet").filter(pl.col("fold") == fold)
    test = load_competition(site.settings).as_test(expected["id"].to_list())
    exchange_models(site.depot, models)
    with open_session(site, REPLAY, OWNED, test.encode()) as session:
        results.checks.append(check_replay(session, fold, expected))
    results.sessions.append(session)


def is_ok(results: Results, *names: str) -> bool:
    return all(check.ok for check in results.checks if check.name in names)


def score_rerun(rerun: Session, submission: pl.DataFrame, truth: pl.DataFrame, results: Results) -> None:
    """Score the submission on the rows that have a label; an error of the metric becomes a failed check."""
    with note_errors("score", results.checks, rerun.folder):
        answer = rerun.competition.ranking_of(submission).join(truth.select("id"), on="id", how="semi")
        results.scored_rows = answer.height
        results.score = rerun.competition.metric.try_score(answer, truth) if answer.height else None


def describe_command(run: str, **options: object) -> str:
    """The command that rehearses the same again."""
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["kaggle-llm", "rehearse", run, *words])


def link_latest(folder: Path) -> None:
    link = folder.parent / "latest"
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
