"""Rehearsals: the real notebook, offline, on pico models; and that each check can fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
from light import RUN as LIGHT
from light import bundle_edited, open_light_site
from workspace import ROOT, Workspace, succeed

import kaggle_llm.rehearsal.sandbox as sandbox
from kaggle_llm.base.records import read_complete
from kaggle_llm.competition.competition import Competition
from kaggle_llm.rehearsal import rehearse
from kaggle_llm.rehearsal.checks import compare_rankings, largest_difference
from kaggle_llm.rehearsal.drills import run_drills
from kaggle_llm.rehearsal.memory_limit import Usage
from kaggle_llm.rehearsal.rehearse import Results, rehearse_hostile, rehearse_rerun, replay_fold, score_rerun
from kaggle_llm.rehearsal.report import parse_duration
from kaggle_llm.rehearsal.session import Session, Site, describe_session
from kaggle_llm.rehearsal.stage import OWNED, hidden_test
from kaggle_llm.rehearsal.verdicts import check_bundle, check_mount, check_origin, check_replay, check_time

SMOKE = "exp002_rerank--smoke"
DRILLS = ("a missing dataset", "a wrong wheel", "a corrupt weight file", "a full working folder")
CHECKS = [
    *("bundle", "public", "network", "notebook", "time", "origin", "submission", "row independence", "hostile"),
    *(f"drill: {name}" for name in DRILLS),
    *("mount", "memory"),
]
REHEARSAL = Path(sandbox.__file__).parent


def report_of(workspace: Workspace, run: str) -> dict:
    return json.loads((workspace.output / "rehearsals" / run / "latest" / "report.json").read_text())


def failed_in(report: dict) -> set[str]:
    return {name for name, ok in checks_of(report).items() if not ok}


def checks_of(report: dict) -> dict[str, bool]:
    return {check["name"]: check["ok"] for check in report["checks"]}


@pytest.mark.timeout(400)
def test_a_bundle_is_rehearsed_offline_and_replayed(rehearsed: Workspace) -> None:
    """With models: test_copies.py."""
    report = report_of(rehearsed, LIGHT)
    assert report["ok"] is True and report["network"] == "blocked"
    assert report["network_method"] in ("namespace", "guard")
    assert checks_of(report) == dict.fromkeys([*CHECKS, "replay"], True)
    assert [session["rows"] for session in report["sessions"]] == [3, 6, 20, 8]
    layouts = [session["layout"] for session in report["sessions"]]
    assert layouts[:3] == ["input/<slug>", "input/datasets/<owner>/<slug>", "input/…/<slug>"]
    assert report["sessions"][1]["seconds"] == report["seconds"] and report["memory_method"]
    assert report["rows"] == 6 and report["submission"]["rows"] == 6 and 0 <= report["score"] <= 1
    assert report["seconds"] > 0 and report["peak_rss_mb"] > 0
    folder = rehearsed.output / "rehearsals" / LIGHT / "latest"
    left = {"report.json", "report.txt", "submission.csv", "executed.ipynb", "log.txt", "timing.json", "MANIFEST.json"}
    assert {path.name for path in folder.iterdir()} >= {*left, "public", "hostile", "replay", "drills"}
    assert not {"kaggle", "depot"} & {path.name for path in folder.iterdir()}, "the stand-in is gone"
    assert json.loads((folder / "timing.json").read_text())["rows"] == 6
    assert (folder / "report.txt").read_text() in (rehearsed.root / "said.txt").read_text(), "what is printed is kept"
    hidden = pl.read_csv(rehearsed.output / "hidden" / "demo-misconceptions" / "test.csv")
    assert pl.read_csv(folder / "submission.csv")["id"].to_list() == hidden["id"].to_list()


SLOW = """
import time
found = make_ranking(rows["id"].to_list(), [loaded[n : n + 25] for n in start], [range(25, 0, -1)] * len(start))
run.offer(found)
for _ in run.budget.take(list(rows.iter_slices(4)), "second look"):
    time.sleep(1)
return found
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_too_short_a_limit_ends_in_time_with_a_valid_file_and_says_what_it_cut(light: Workspace) -> None:
    bundle_edited(light, SLOW)
    done = light.cli("rehearse", LIGHT, "--rows", "200", "--limit", "30s")
    report = report_of(light, LIGHT)
    assert done.returncode == 1 and report["rows"] == report["submission"]["rows"] == 200
    details = {check["name"]: check["detail"] for check in report["checks"]}
    assert failed_in(report) == {"time", "hostile"}
    found = re.fullmatch(
        r"(\d+) s of 30 s for 200 rows, cut by the time limit: second look of (\d+) rows", details["time"]
    )
    assert found and int(found[1]) <= 30 and 0 < int(found[2]) < 200


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_failing_prediction_ends_in_a_report_that_says_why(light: Workspace) -> None:
    bundle_edited(light, "return make_ranking(['a', 'b'], [loaded[:1]] * 2, [[1.0]] * 2)")
    done = light.cli("rehearse", LIGHT)
    report = report_of(light, LIGHT)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert failed_in(report) == {"public", "notebook", "time", "row independence", "hostile"}
    assert report["score"] is None and report["sessions"][1]["rows"] is None
    (said,) = (check["detail"] for check in report["checks"] if check["name"] == "notebook")
    assert said.startswith("exit code 1: ValueError: ") and "6 rows asked, 2 rows ranked" in said


@pytest.mark.timeout(400)
def test_a_prediction_that_fails_after_it_offered_answers_leaves_a_notebook_that_works_and_no_good_rehearsal(
    light: Workspace, tmp_path: Path
) -> None:
    ranked = 'make_ranking(rows["id"].to_list(), [loaded[n : n + 25] for n in start], [range(25, 0, -1)] * len(start))'
    edit = f"run.offer({ranked})\nraise MemoryError('no room for the second model')"
    with open_light_site(light, tmp_path / "site", edit) as site:
        rehearse_rerun(site, *hidden_test(site.settings, None)[:2], found := Results())
        log = (site.folder / "log.txt").read_text()
    checks = {check.name: check for check in found.checks}
    assert checks["notebook"].ok and checks["submission"].ok and found.score is not None
    assert not checks["time"].ok and "or failed" in checks["time"].detail
    assert "no room for the second model" in log and "WARNING: THE PREDICTION FAILED" in log


@pytest.fixture
def tables(light: Workspace) -> Iterator[dict[str, Path]]:
    """The files of the hidden test and of the competition, to be changed; as they were again afterwards."""
    folders = light.output / "hidden" / "demo-misconceptions", light.root / "input" / "demo-misconceptions"
    paths = [path for folder in folders for path in folder.glob("*.csv")]
    contents = [path.read_bytes() for path in paths]
    for path in paths:
        path.unlink()  # it may be a hard link
        path.write_bytes(contents[paths.index(path)])
    yield {f"{path.parent.parent.name}/{path.stem}": path for path in paths}
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_whole_numbers_are_ids_that_no_hostile_row_takes(
    light: Workspace, tmp_path: Path, tables: dict[str, Path]
) -> None:
    """The rows of the hidden test that are not among the hostile ones have the next numbers."""
    starts = {"input/test": 0, "input/sample_submission": 0, "hidden/test": 3, "hidden/solution": 3, "input/train": 9}
    for name, start in starts.items():
        rows = pl.read_csv(tables[name], infer_schema=False)
        rows.with_columns(id=pl.int_range(start, start + pl.len()).cast(pl.String)).write_csv(tables[name])
    with open_light_site(light, tmp_path / "site") as site:
        found, (test, truth, _) = Results(), hidden_test(site.settings, None)
        rehearse_rerun(site, test, truth, found)
        rehearse_hostile(site, test, found)
        answered = pl.read_parquet(found.sessions[1].folder / "ranking.parquet")["id"].cast(pl.Int64)
    assert all(check.ok for check in found.checks), found.checks
    assert test.rows["id"].to_list() == ["3", "4", "5", "6", "7", "8"]
    last = pl.read_csv(tables["input/train"])["id"].max()
    assert sorted(answered) == [3, 4, 5, 6, *range(last + 1, last + 17)]


@pytest.mark.timeout(400)
def test_what_depends_on_other_rows_or_on_changed_code_is_caught_and_rows_without_a_label_are_not_scored(
    light: Workspace, tmp_path: Path, tables: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prediction that looks at the number of rows, put in after training: CV is not what ships.

    One row of the solution has an empty label, one is missing. The test set is mounted while its submission is read:
    where rows vary in number, the cells alone do not name the rows.
    """
    original, seen = Competition.ranking_of, []

    def ranking_of(self: Competition, submission: pl.DataFrame) -> pl.DataFrame:
        seen.append(self.table("test")["id"].to_list() == submission["id"].to_list())
        return original(self, submission)

    monkeypatch.setattr(Competition, "ranking_of", ranking_of)
    rows = pl.read_csv(tables["hidden/solution"], infer_schema=False)
    labels = [None, *rows["misconception_id"][1:]]
    rows.with_columns(misconception_id=pl.Series(labels))[:-1].write_csv(tables["hidden/solution"])
    with open_light_site(light, tmp_path / "site", "start = [n + rows.height % 9 for n in start]") as site:
        found, (test, truth, _) = Results(), hidden_test(site.settings, None)
        rehearse_rerun(site, test, truth, found)
        metric = found.sessions[0].competition.metric
        ranking = pl.read_parquet(site.folder / "ranking.parquet")
        rehearse_hostile(site, test, found)
        replay_fold(site, LIGHT, read_complete(LIGHT), 0, found)
    assert {check.name for check in found.checks if not check.ok} == {"row independence", "hostile", "replay"}
    assert test.rows.height == 6
    assert (found.scored_rows, found.score) == (4, metric.score(ranking[1:-1], truth))
    assert seen and all(seen)


def test_a_metric_that_fails_is_a_failed_check(tmp_path: Path) -> None:
    competition: Any = SimpleNamespace(ranking_of=lambda submission: submission.select("nothing"))
    session: Any = SimpleNamespace(competition=competition, folder=tmp_path)
    score_rerun(session, pl.DataFrame({"id": ["a"]}), pl.DataFrame({"id": ["a"]}), found := Results())
    (check,) = found.checks
    assert (check.name, check.ok, found.score) == ("score", False, None)
    assert check.detail.startswith("ColumnNotFoundError: ") and "Traceback" in (tmp_path / "error.txt").read_text()


def test_whatever_fails_leaves_a_report(light: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError("no space left on device")

    bundle_edited(light)
    monkeypatch.setattr(rehearse, "rehearse_public", fail)
    report = rehearse.rehearse(LIGHT)
    (failed,) = (check for check in report["checks"] if not check["ok"])
    assert (report["ok"], report["score"], failed["name"]) == (False, None, "rehearsal")
    assert failed["detail"].startswith("OSError: no space left on device (output/rehearsals/")
    assert report == report_of(light, LIGHT)


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_no_and_one_row_are_rehearsed(light: Workspace, tmp_path: Path) -> None:
    with open_light_site(light, tmp_path / "site") as site:
        for rows in (0, 1):
            found, (test, truth, _) = Results(), hidden_test(site.settings, rows)
            rehearse_rerun(site, test, truth, found)
            rehearse_hostile(site, test, found)
            assert all(check.ok for check in found.checks), found.checks
            assert found.submission is not None and found.submission.height == truth.height == rows
            assert (found.score is None) == (rows == 0)
            asked = describe_session(found.sessions[1])["rows"]
            assert asked == 16 + (rows or 4), "hostile rows need healthy ones"


@pytest.mark.release
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rows", [0, 1, 10_000])
def test_a_hidden_test_of_any_size_is_rehearsed_on_models(trained: Workspace, rows: int) -> None:
    succeed(trained.cli("bundle", SMOKE))
    succeed(replace(trained, timeout=800).cli("rehearse", SMOKE, "--rows", str(rows)))
    report = report_of(trained, SMOKE)
    assert report["rows"] == report["submission"]["rows"] == rows


@pytest.mark.parametrize("method", ["namespace", "guard"])
def test_outside_a_sandbox_nothing_is_proven(method: str) -> None:
    """Also on a machine that is offline anyway."""
    probe = [sys.executable, str(REHEARSAL / "probe.py"), method]
    assert subprocess.run(probe, capture_output=True, timeout=60, check=False).returncode == 1


@pytest.fixture
def without_unshare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    sandbox.find_method.cache_clear()
    yield
    sandbox.find_method.cache_clear()


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.usefixtures("without_unshare")
def test_without_namespaces_the_guard_rehearses_the_same(light: Workspace, tmp_path: Path) -> None:
    with open_light_site(light, tmp_path / "site") as site:
        found = Results()
        rehearse_rerun(site, *hidden_test(site.settings, None)[:2], found)
        drills = run_drills(site)
    checks = {check.name: check for check in [*found.checks, *drills]}
    assert all(check.ok for check in checks.values()), checks
    assert re.match(r"guard: .* the rehearsal has no network", checks["network"].detail)
    assert checks["drill: a full working folder"].detail.startswith("not drilled")


def test_a_changed_bundle_and_a_run_made_again_are_caught(trained: Workspace) -> None:
    from kaggle_llm.base.records import read_record

    succeed(trained.cli("bundle", SMOKE))
    bundle, record = trained.output / "bundles" / SMOKE, read_record(trained.output / SMOKE)
    assert record is not None and check_bundle(bundle, record).ok
    other = replace(record, key="0" * 64)
    assert "was made again since" in check_bundle(bundle, other).detail
    (config,) = bundle.glob("*-code/config.yaml")
    config.write_text(config.read_text() + "# changed\n")
    assert not check_bundle(bundle, record).ok and "config.yaml" in check_bundle(bundle, record).detail


def test_a_replay_of_a_fold_that_is_not_there_is_refused_at_once(trained: Workspace) -> None:
    succeed(trained.cli("bundle", SMOKE))
    done = trained.cli("rehearse", SMOKE, "--replay", "7")
    assert done.returncode != 0 and "has the folds 0" in done.stderr and "Traceback" not in done.stderr


def test_nothing_to_rehearse_is_said(light: Workspace) -> None:
    done = light.cli("rehearse", "exp001_retrieve--none")
    assert done.returncode != 0 and "is no complete run" in done.stderr
    succeed(light.train("exp001_retrieve", "--smoke", "run=bare"))
    done = light.cli("rehearse", "exp001_retrieve--bare-smoke")
    assert done.returncode != 0 and "has no bundle: run `kaggle-llm bundle" in done.stderr


def test_the_guard_lets_python_reach_this_machine_only() -> None:
    environment = {**os.environ, "PYTHONPATH": str(REHEARSAL / "guard")}
    probe = [sys.executable, str(REHEARSAL / "probe.py"), "guard"]
    done = subprocess.run(probe, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and "the rehearsal has no network" in done.stdout
    code = """
import socket, subprocess, sys
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
child = "import socket; socket.create_connection(('192.0.2.1', 9), timeout=5)"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True).stderr[-200:])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "the rehearsal has no network: connection to 192.0.2.1 refused" in done.stdout


@pytest.mark.skipif(sandbox.find_method() != sandbox.NAMESPACE, reason="this system allows no namespaces")
def test_the_namespace_has_loopback_only_and_a_read_only_mount(tmp_path: Path) -> None:
    (tmp_path / "kaggle" / "input").mkdir(parents=True)
    (tmp_path / "kaggle" / "working").mkdir()
    (tmp_path / "mount").mkdir()
    code = """
import os, pathlib, socket
root = pathlib.Path(os.environ["KAGGLE_LLM_KAGGLE"])
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(server.getsockname()).close()
(root / "working" / "a").write_text("x")
try:
    (root / "input" / "a").write_text("x")
except OSError as error:
    print("read-only:", error.strerror)
print([name for _, name in socket.if_nameindex()], sorted(os.listdir(os.environ["REPOSITORY"] + "/src")))
"""
    box = sandbox.Sandbox(tmp_path / "kaggle", tmp_path / "mount", tmp_path)
    log = tmp_path / "log.txt"
    repository = {"REPOSITORY": str(ROOT)}
    assert box.run([sys.executable, "-c", code], log, repository, 60) == 0, log.read_text()
    assert log.read_text().splitlines() == ["read-only: Read-only file system", "['lo'] []"]
    assert (tmp_path / "kaggle" / "working" / "a").read_text() == "x"
    with pytest.raises(subprocess.TimeoutExpired):
        box.run([sys.executable, "-c", "import time; time.sleep(60)"], log, {}, 1)


def test_cut_rows_foreign_code_and_a_written_mount_fail_their_checks(tmp_path: Path) -> None:
    working = tmp_path / "kaggle" / "working"
    working.mkdir(parents=True)
    box = sandbox.Sandbox(tmp_path / "kaggle", tmp_path / "kaggle", tmp_path)
    site = Site(tmp_path, tmp_path, None, None, box, 60.0, 1)  # type: ignore[arg-type]
    session = Session("rerun", OWNED, site, tmp_path, None, tmp_path, 1.0, Usage(1), "", [])  # type: ignore[arg-type]
    written = replace(session, written=["datasets/a/b"])
    assert check_mount([session]).ok and not check_mount([session, written]).ok
    for cut, ok in (({}, True), ({"reranking": 3}, False)):
        (tmp_path / "prediction.json").write_text(json.dumps({"rows": 9, "cut": cut, "seconds": 5}))
        assert check_time(session).ok is ok and ("reranking of 3 rows" in check_time(session).detail) is not ok
    for package, ok in ((tmp_path / "kaggle" / "input" / "a", True), (tmp_path / "src", False)):
        (working / "origin.json").write_text(json.dumps({"package": str(package)}))
        assert check_origin(session).ok is ok


def test_rankings_are_compared_by_list_and_score() -> None:
    from kaggle_llm.competition.rankings import make_ranking

    one = make_ranking(["a", "b"], [["x", "y"], []], [[1.0, 0.5], []])
    assert compare_rankings(one, one) == [] and largest_difference(one, one) == 0
    near = make_ranking(["a", "b"], [["x", "y"], []], [[1.00005, 0.5], []])
    assert compare_rankings(near, one) == [] and largest_difference(near, one) == pytest.approx(5e-5)
    far = make_ranking(["a", "b"], [["x", "y"], []], [[1.001, 0.5], []])
    assert "differs by 1.0e-03" in compare_rankings(far, one)[0]
    other = make_ranking(["a", "c"], [["x", "z"], []], [[1.0, 0.5], []])
    assert compare_rankings(other, one) == [
        "row b is missing",
        "row a: the list differs from rank 2 on",
        "row c was not expected",
    ]


def test_only_items_with_equal_scores_may_change_places(tmp_path: Path) -> None:
    """A tie of two items that the members of a blend rank crosswise was broken by the last bit, elsewhere in replay."""
    from kaggle_llm.competition.rankings import make_ranking

    one = make_ranking(["a"], [["x", "y", "z"]], [[1.0, 0.50002, 0.5]])
    tied = make_ranking(["a"], [["x", "z", "y"]], [[1.0, 0.50001, 0.5]])
    assert compare_rankings(tied, one) == [] and largest_difference(tied, one) == pytest.approx(2e-5)
    details = []
    for answered in (one, tied):
        answered.write_parquet(tmp_path / "ranking.parquet")
        replayed = check_replay(SimpleNamespace(folder=tmp_path, error=""), 0, one)  # type: ignore[arg-type]
        assert replayed.ok
        details.append(replayed.detail)
    assert "same lists" in details[0] and "equal scores in another order in 1 of them" in details[1]
    swapped = make_ranking(["a"], [["y", "x", "z"]], [[1.0, 0.50002, 0.5]])
    assert compare_rankings(swapped, one) == ["row a: the list differs from rank 1 on"]
    broken = make_ranking(["a"], [["x", "y", "z"]], [[float("nan"), 0.50002, 0.5]])
    assert compare_rankings(broken, one) == ["row a: a score differs by inf"]


@pytest.mark.parametrize(("text", "seconds"), [("9h", 32400), ("90m", 5400), ("1h30m", 5400), ("30s", 30)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "9", "h", "9 hours", "-1h"])
def test_bad_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 9h"):
        parse_duration(text)
