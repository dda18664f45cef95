"""The ancestry of an artefact reaches the raw data, wherever the artefact was copied to."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from light import RUN as LIGHT
from workspace import Workspace, copy_workspace, succeed

from kaggle_llm.base.records import hash_file, read_json, write_json
from kaggle_llm.kaggle.trace import trace_path

RUN = "exp002_rerank--smoke"


def test_a_copied_submission_is_traced_to_the_raw_csv(rehearsed: Workspace, tmp_path: Path) -> None:
    copy = tmp_path / "best.csv"
    shutil.copyfile(rehearsed.output / "rehearsals" / LIGHT / "latest" / "submission.csv", copy)
    said = succeed(rehearsed.cli("trace", str(copy)))
    for name in ("train.csv", "test.csv", "misconceptions.csv"):
        raw = hash_file(rehearsed.root / "input" / "demo-misconceptions" / name)
        assert f"input/demo-misconceptions/{name}  sha256 {raw}" in said
    record = read_json(rehearsed.output / LIGHT / "record.json")
    assert f"bundle of {LIGHT}" in said and f"key {record['key'][:12]}, seed 0" in said
    assert f"torch {record['versions']['torch']}" in said
    commands = succeed(rehearsed.cli("trace", str(copy), "--again")).splitlines()
    assert commands[-3] == "python exp/exp001_retrieve/train.py --smoke"
    assert commands[-2].startswith(f"kaggle-llm bundle {LIGHT} --runtime ")
    assert commands[-1] == f"kaggle-llm rehearse {LIGHT} --replay 0"


@pytest.mark.parametrize(("older", "newer"), [("exp001_a", "exp009_z"), ("exp009_z", "exp001_a")])
def test_the_newest_rehearsal_that_left_a_submission_is_found_whatever_the_runs_are_called(
    rehearsed: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, older: str, newer: str
) -> None:
    """Three runs left the same file, and one that is newer still left another."""
    workspace = copy_workspace(rehearsed, tmp_path / "root")
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(workspace.root))
    folder = workspace.output / "rehearsals"
    latest = (folder / LIGHT / "latest").resolve()
    for place in (f"{older}/20200101-000000", f"{newer}/20991231-235958", f"{older}/20991231-235959"):
        shutil.copytree(latest, folder / place)
    report = read_json(folder / older / "20991231-235959" / "report.json")
    report["submission"]["sha256"] = "0" * 64
    write_json(folder / older / "20991231-235959" / "report.json", report)
    shutil.copyfile(latest / "submission.csv", tmp_path / "best.csv")
    (found,) = trace_path(str(tmp_path / "best.csv")).parents
    assert found.title == f"rehearsal output/rehearsals/{newer}/20991231-235958"
    shutil.rmtree(folder / newer)
    (found,) = trace_path(str(tmp_path / "best.csv")).parents
    assert found.title == f"rehearsal output/rehearsals/{LIGHT}/{latest.name}"


def test_a_run_is_traced_through_its_models_and_what_changed_since_is_said(trained: Workspace, tmp_path: Path) -> None:
    said = succeed(trained.cli("trace", RUN))
    assert "merged output/" in said and "adapter output/" in said and "folds " in said
    assert re.search(r"base = input/models/SmolLM2-135M-Instruct  content [0-9a-f]{12}", said)
    assert said.count("the file here is the same") == 4
    other = copy_workspace(trained, tmp_path / "other")
    with (other.root / "input" / "demo-misconceptions" / "train.csv").open("a") as file:
        file.write("\n")
    said = succeed(other.cli("trace", RUN))
    assert "the file here is another one now" in said
    for adapter in list(other.output.glob("*/fold0/adapter")):  # a copy's run, made by other tests, has the same one
        shutil.rmtree(adapter)
    assert "adapter  content " in succeed(other.cli("trace", RUN)), "a lost parent is shown by its hash"


def test_what_nobody_recorded_is_refused(trained: Workspace, tmp_path: Path) -> None:
    (tmp_path / "submission.csv").write_text("id,x\n")
    done = trained.cli("trace", str(tmp_path / "submission.csv"))
    assert done.returncode == 1 and "no record here has" in done.stderr
    done = trained.cli("trace", "nothing")
    assert done.returncode == 1 and "neither a path nor a run" in done.stderr


def test_a_folder_is_a_bundle_by_its_place_and_its_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose bundling was cut has no manifest; a copy elsewhere has one, and is no bundle of this repository."""
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    cut, elsewhere = tmp_path / "output" / "bundles" / "exp001_retrieve", tmp_path / "copied"
    cut.mkdir(parents=True)
    elsewhere.mkdir()
    write_json(elsewhere / "MANIFEST.json", {"run": "exp001_retrieve"})
    for folder in (cut, elsewhere):
        with pytest.raises(LookupError, match="has no record, no manifest and no report"):
            trace_path(str(folder))


def test_uncommitted_changes_are_kept_and_apply_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kaggle_llm.base.records import diff_path, git_state, keep_changes

    def git(*words: str) -> None:
        command = ["git", "-C", str(tmp_path / "a"), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        subprocess.run(command, check=True, capture_output=True)

    (tmp_path / "a" / "exp").mkdir(parents=True)
    (tmp_path / "a" / "exp" / "old.py").write_text("x = 1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "a")
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path / "a"))
    assert git_state()["dirty"] is False and "diff" not in git_state()
    subprocess.run(["git", "clone", "-q", tmp_path / "a", tmp_path / "b"], check=True)
    (tmp_path / "a" / "exp" / "old.py").write_text("x = 2\n")
    (tmp_path / "a" / "exp" / "new idea.py").write_text("y = 3\n")
    keep_changes(tmp_path / "run")
    diff = diff_path(tmp_path / "run", git_state()["diff"])
    subprocess.run(["git", "-C", tmp_path / "b", "apply", diff], check=True)
    for name in ("old.py", "new idea.py"):
        assert (tmp_path / "b" / "exp" / name).read_text() == (tmp_path / "a" / "exp" / name).read_text()
