"""Rehearsals: the real notebook, offline, on pico models; and that each check can fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from workspace import Workspace, succeed

import kaggle_llm.rehearsal.sandbox as sandbox
from kaggle_llm.rehearsal.checks import compare_rankings, largest_difference
from kaggle_llm.rehearsal.rehearse import parse_duration

SMOKE = "exp002_rerank--smoke"
REHEARSAL = Path(sandbox.__file__).parent


def report_of(workspace: Workspace, run: str) -> dict:
    return json.loads((workspace.output / "rehearsals" / run / "latest" / "report.json").read_text())


def checks_of(report: dict) -> dict[str, bool]:
    return {check["name"]: check["ok"] for check in report["checks"]}


@pytest.mark.timeout(400)
def test_a_bundle_is_rehearsed_offline_and_replayed(trained: Workspace) -> None:
    succeed(trained.cli("bundle", SMOKE))
    succeed(trained.cli("rehearse", SMOKE, "--replay", "0"))
    report = report_of(trained, SMOKE)
    assert report["ok"] is True and report["network"] == "blocked"
    assert report["network_method"] in ("namespace", "guard")
    names = {"bundle", "network", "notebook", "time", "origin", "mount", "submission", "row independence", "replay"}
    assert checks_of(report) == dict.fromkeys(names, True)
    assert report["rows"] == 6 and report["submission"]["rows"] == 6 and 0 <= report["score"] <= 1
    assert report["seconds"] > 0 and report["peak_rss_mb"] > 0
    folder = trained.output / "rehearsals" / SMOKE / "latest"
    assert {p.name for p in folder.iterdir()} >= {"report.json", "submission.csv", "executed.ipynb", "log.txt"}
    assert not (folder / "kaggle").exists(), "the stand-in is gone"
    hidden = pl.read_csv(trained.output / "hidden" / "demo-misconceptions" / "test.csv")
    assert pl.read_csv(folder / "submission.csv")["id"].to_list() == hidden["id"].to_list()


@pytest.mark.timeout(400)
def test_what_depends_on_other_rows_or_on_changed_code_is_caught(trained: Workspace) -> None:
    """A prediction that looks at the number of rows, put in after training: CV is not what ships."""
    succeed(trained.cli("new", "exp001_retrieve", "exp902_leaky"))
    succeed(trained.train("exp902_leaky", "--smoke"))
    predict = trained.root / "exp" / "exp902_leaky" / "predict.py"
    source = predict.read_text()
    last = "    return loaded.search(rows)\n"
    assert source.endswith(last)
    leaky = "    found = loaded.search(rows)\n    return found.with_columns(pl.col('scores') + 0.1 * rows.height)\n"
    predict.write_text(source.removesuffix(last) + leaky)
    succeed(trained.cli("bundle", "exp902_leaky--smoke"))
    done = trained.cli("rehearse", "exp902_leaky--smoke", "--replay", "0", "--rows", "9")
    report = report_of(trained, "exp902_leaky--smoke")
    assert done.returncode == 1 and report["ok"] is False and report["rows"] == 9
    failed = {name for name, ok in checks_of(report).items() if not ok}
    assert failed == {"row independence", "replay"}


SLOW = """    found = loaded.search(rows)
    run.offer(found)
    for _ in run.budget.take(list(rows.iter_slices(4)), "second look"):
        time.sleep(1)
    return found
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_too_short_a_limit_ends_in_time_with_a_valid_file_and_says_what_it_cut(trained: Workspace) -> None:
    succeed(trained.cli("new", "exp001_retrieve", "exp904_slow"))
    succeed(trained.train("exp904_slow", "--smoke"))
    predict = trained.root / "exp" / "exp904_slow" / "predict.py"
    source = predict.read_text().replace("from dataclasses", "import time\nfrom dataclasses", 1)
    predict.write_text(source.removesuffix("    return loaded.search(rows)\n") + SLOW)
    succeed(trained.cli("bundle", "exp904_slow--smoke"))
    done = trained.cli("rehearse", "exp904_slow--smoke", "--rows", "200", "--limit", "30s")
    report = report_of(trained, "exp904_slow--smoke")
    assert done.returncode == 1 and report["rows"] == report["submission"]["rows"] == 200
    checks, details = checks_of(report), {check["name"]: check["detail"] for check in report["checks"]}
    assert checks["notebook"] and checks["submission"] and not checks["time"]
    found = re.fullmatch(
        r"(\d+) s of 30 s for 200 rows, cut by the time limit: second look of (\d+) rows", details["time"]
    )
    assert found and int(found[1]) <= 30 and 0 < int(found[2]) < 200


@pytest.mark.timeout(400)
def test_a_failing_prediction_ends_in_a_report_that_says_why(trained: Workspace) -> None:
    succeed(trained.cli("new", "exp001_retrieve", "exp903_broken"))
    succeed(trained.train("exp903_broken", "--smoke"))
    predict = trained.root / "exp" / "exp903_broken" / "predict.py"
    predict.write_text(predict.read_text().replace("loaded.search(rows)", "loaded.search(rows.head(2))"))
    succeed(trained.cli("bundle", "exp903_broken--smoke"))
    done = trained.cli("rehearse", "exp903_broken--smoke")
    report = report_of(trained, "exp903_broken--smoke")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    failed = {name for name, ok in checks_of(report).items() if not ok}
    assert failed == {"notebook", "time", "row independence"} and report["score"] is None
    log = (trained.output / "rehearsals" / "exp903_broken--smoke" / "latest" / "log.txt").read_text()
    assert "6 rows asked, 2 rows ranked" in log


@pytest.mark.parametrize("method", ["namespace", "guard"])
def test_outside_a_sandbox_nothing_is_proven(method: str) -> None:
    """Also on a machine that is offline anyway."""
    probe = [sys.executable, str(REHEARSAL / "probe.py"), method]
    assert subprocess.run(probe, capture_output=True, timeout=60, check=False).returncode == 1


@pytest.mark.timeout(400)
def test_without_namespaces_the_guard_rehearses_the_same(trained: Workspace, tmp_path: Path) -> None:
    succeed(trained.train("exp001_retrieve", "--smoke"))
    succeed(trained.cli("bundle", "exp001_retrieve--smoke"))
    (tmp_path / "bin").mkdir()
    path = {"PATH": str(tmp_path / "bin")}  # where there is no unshare
    succeed(trained.call(sys.executable, "-m", "kaggle_llm.cli", "rehearse", "exp001_retrieve--smoke", **path))
    report = report_of(trained, "exp001_retrieve--smoke")
    assert report["ok"] and report["network"] == "blocked" and report["network_method"] == "guard"


def test_a_changed_bundle_and_a_run_made_again_are_caught(trained: Workspace) -> None:
    from kaggle_llm.records import read_record
    from kaggle_llm.rehearsal.rehearse import check_bundle

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


def test_nothing_to_rehearse_is_said(trained: Workspace) -> None:
    done = trained.cli("rehearse", "exp001_retrieve--none")
    assert done.returncode != 0 and "is no complete run" in done.stderr
    succeed(trained.train("exp001_retrieve", "--smoke", "run=bare"))
    done = trained.cli("rehearse", "exp001_retrieve--bare-smoke")
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
    box = sandbox.Sandbox(tmp_path / "kaggle", tmp_path / "mount")
    log = tmp_path / "log.txt"
    repository = {"REPOSITORY": str(sandbox.paths.root())}
    assert box.run([sys.executable, "-c", code], log, repository, 60).returncode == 0, log.read_text()
    assert log.read_text().splitlines() == ["read-only: Read-only file system", "['lo'] []"]
    assert (tmp_path / "kaggle" / "working" / "a").read_text() == "x"
    with pytest.raises(subprocess.TimeoutExpired):
        box.run([sys.executable, "-c", "import time; time.sleep(60)"], log, {}, 1)


def test_cut_rows_foreign_code_and_a_written_mount_fail_their_checks(tmp_path: Path) -> None:
    from kaggle_llm.rehearsal.rehearse import check_mount, check_origin, check_time
    from kaggle_llm.rehearsal.rerun import Rerun

    (tmp_path / "kaggle" / "working").mkdir(parents=True)
    box = sandbox.Sandbox(tmp_path / "kaggle", tmp_path / "kaggle")
    rerun = Rerun(tmp_path, box, None, tmp_path, 60.0, 1.0, 1, "", [])  # type: ignore[arg-type]
    assert check_mount(rerun).ok and not check_mount(replace(rerun, written=["datasets/a/b"])).ok
    for cut, ok in (({}, True), ({"reranking": 3}, False)):
        (tmp_path / "prediction.json").write_text(json.dumps({"rows": 9, "cut": cut, "seconds": 5}))
        assert check_time(rerun).ok is ok and ("reranking of 3 rows" in check_time(rerun).detail) is not ok
    for package, ok in ((tmp_path / "kaggle" / "input" / "a", True), (tmp_path / "src", False)):
        (tmp_path / "kaggle" / "working" / "origin.json").write_text(json.dumps({"package": str(package)}))
        assert check_origin(rerun).ok is ok


def test_rankings_are_compared_by_list_and_score() -> None:
    from kaggle_llm.rankings import make_ranking

    one = make_ranking(["a", "b"], [["x", "y"], []], [[1.0, 0.5], []])
    assert compare_rankings(one, one) == [] and largest_difference(one, one) == 0
    near = make_ranking(["a", "b"], [["x", "y"], []], [[1.00005, 0.5], []])
    assert compare_rankings(near, one) == [] and largest_difference(near, one) == pytest.approx(5e-5)
    far = make_ranking(["a", "b"], [["x", "y"], []], [[1.001, 0.5], []])
    assert "differs by 1.0e-03" in compare_rankings(far, one)[0]
    other = make_ranking(["a", "c"], [["x", "z"], []], [[1.0, 0.5], []])
    assert compare_rankings(other, one) == [
        "row b is missing",
        "row a: another list from place 2 on",
        "row c was not expected",
    ]


@pytest.mark.parametrize(("text", "seconds"), [("9h", 32400), ("90m", 5400), ("1h30m", 5400), ("30s", 30)])
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "9", "h", "9 hours", "-1h"])
def test_bad_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write it like 9h"):
        parse_duration(text)
