"""The board reads JSON only and answers at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def write_run(root: Path, run: str, cv: float, **more: object) -> None:
    metrics = {
        **{"run": run, "metric": "map@25", "greater_is_better": True, "cv": cv, "interval": [cv - 0.1, cv + 0.1]},
        **{"before": None, "folds": [], "groups": {}, "also": {}, "smoke": False, **more},
    }
    (root / "output" / run).mkdir(parents=True)
    (root / "output" / run / "metrics.json").write_text(json.dumps(metrics))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(30):
        write_run(tmp_path, f"exp{number:03d}_a", number / 100)
    write_run(tmp_path, "exp029_a--r32", 0.5, before=0.25)
    (tmp_path / "output" / "exp003_a" / "parent.json").write_text('{"parent": "exp002_a"}')
    (tmp_path / "output" / "exp003_a" / "submissions.json").write_text('[{"public_score": 0.123}]')
    (tmp_path / "exp" / "exp003_a").mkdir(parents=True)
    (tmp_path / "exp" / "exp003_a" / "train.py").write_text('"""A better idea.\n\nMore of it."""\n')
    return tmp_path


def board(root: Path, *words: str, python: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "KAGGLE_LLM_ROOT": str(root), "COLUMNS": "200"}
    command = [sys.executable, *python, "-m", "kaggle_llm.cli", "board", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)


def test_a_line_per_run_best_first_with_parent_lb_and_idea(root: Path) -> None:
    entries = json.loads(board(root, "--json").stdout)
    assert len(entries) == 31
    assert [entry["run"] for entry in entries[:2]] == ["exp029_a--r32", "exp029_a"]
    assert entries[0]["parent"] == "exp029_a" and entries[0]["before"] == 0.25
    (third,) = [entry for entry in entries if entry["run"] == "exp003_a"]
    assert (third["parent"], third["lb"], third["idea"]) == ("exp002_a", 0.123, "A better idea.")
    table = board(root).stdout
    (line,) = [line for line in table.splitlines() if line.split()[:1] == ["exp003_a"]]
    assert " 0.123 " in line and "A better idea." in line and "None" not in table


def test_runs_stand_by_competition(root: Path) -> None:
    for run, competition in (("exp029_a", "essays"), ("exp001_a", "chats"), ("exp002_a", "essays")):
        config = {"settings": {"config": {"competition": {"name": competition}}}}
        (root / "output" / run / "record.json").write_text(json.dumps(config))
    entries = json.loads(board(root, "--json").stdout)
    ordered = [(entry["competition"], entry["run"]) for entry in entries if entry["complete"]]
    assert ordered == [("chats", "exp001_a"), ("essays", "exp029_a"), ("essays", "exp002_a")]
    table = board(root).stdout
    assert all(title in table for title in ("runs of chats", "runs of essays", "runs that are not complete"))


def test_it_needs_no_heavy_import(root: Path) -> None:
    said = board(root, python=("-X", "importtime")).stderr
    modules = {line.rpartition("|")[2].strip() for line in said.splitlines()}
    assert "kaggle_llm.experiment.board" in modules
    assert not modules & {"torch", "polars", "numpy", "transformers", "omegaconf"}
