"""A rehearsal's check of a session fails where its file is absent, unreadable or wrong."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kaggle_llm.base import records
from kaggle_llm.rehearsal.rehearse import HOSTILE, Results, rehearse_hostile
from kaggle_llm.rehearsal.report import describe_report
from kaggle_llm.rehearsal.verdicts import (
    Check,
    check_independence,
    check_mount,
    check_network,
    check_session,
    check_submission,
)


@pytest.fixture
def session(tmp_path: Path) -> Any:
    """A session that left nothing; its competition finds a submission's first column wrong where it is no `id`."""
    (tmp_path / "working").mkdir()
    competition = SimpleNamespace(
        check_submission=lambda submission: [] if submission.columns[0] == "id" else ["columns differ"],
        describe_empty=lambda submission: "",
    )
    site = SimpleNamespace(limit=60.0, working=tmp_path / "working", sandbox=SimpleNamespace(mount=tmp_path / "kaggle"))
    return SimpleNamespace(
        name="public", folder=tmp_path, competition=competition, site=site, error="", seconds=1.0, written=[]
    )


@pytest.mark.parametrize(
    ("text", "ok", "said"),
    [
        (None, False, "there is no submission.csv"),
        ('id,answer\n"a,1\n', False, ""),
        ("row,answer\na,1\n", False, "columns differ"),
        ("id,answer\na,1\nb,2\n", True, "2 rows: columns, ids, order and labels are right"),
    ],
)
def test_a_submission_is_there_readable_and_right(session: Any, text: str | None, ok: bool, said: str) -> None:
    if text is not None:
        (session.folder / "submission.csv").write_text(text)
    submission, check = check_submission(session)
    assert check.ok is ok and said in check.detail and check.name == "submission"
    assert (submission is None) is (text is None or text.count('"') == 1)


@pytest.mark.parametrize("code", [0, 1])
def test_the_exit_code_of_what_runs_in_the_sandbox_decides(session: Any, code: int) -> None:
    def run(*words: Any) -> int:
        log = next(word for word in words if isinstance(word, Path))
        log.write_text("first\nthe last line\n")
        return code

    session.site.sandbox.run, session.site.inside = run, lambda path: path
    session.code, session.run_module = session.folder, run
    (session.site.working / "ranking.parquet").touch()
    for check in (check_network(session), check_independence(session)):
        assert check.ok is (code == 0) and check.detail.endswith("the last line")
    (session.site.working / "ranking.parquet").unlink()
    assert not check_independence(session).ok


def test_a_session_is_ok_only_where_each_of_its_checks_is(session: Any) -> None:
    (session.folder / "submission.csv").write_text("id,answer\na,1\n")
    records.write_json(session.folder / "prediction.json", {"rows": 1, "seconds": 1.0, "cut": {}})
    assert check_session(session).ok and check_mount([session]).ok
    session.error, session.written = "a cell failed", ["input/x"]
    assert not check_session(session).ok and check_session(session).detail.startswith("a cell failed")
    assert not check_mount([session]).ok


@pytest.mark.parametrize("failed", ["notebook", "time"])
def test_hostile_rows_are_not_ok_where_the_rerun_failed(failed: str) -> None:
    nothing: Any = None
    results = Results(checks=[Check(name, name != failed, "") for name in ("notebook", "time", "submission")])
    rehearse_hostile(nothing, nothing, results)
    assert results.checks[-1] == Check(HOSTILE, False, "not run: the rerun failed or was cut")


@pytest.mark.parametrize(
    ("score", "scored", "said"),
    [(0.5, 6, "0.5000 of the 6 rows that have a label (CV"), (0.5, 8, "0.5000 (CV"), (None, 0, "none (CV")],
)
def test_a_report_says_where_rows_have_no_label(score: float | None, scored: int, said: str) -> None:
    report = {"run": "exp1", "rows": 8, "test": "rows", "checks": [], "sessions": [], "ok": True, "cv": 0.4}
    report |= {"score": score, "scored_rows": scored, "seconds": 1.0, "peak_rss_mb": 1}
    assert f"private score: {said}" in describe_report(report)
