"""Every experiment: a copy of its folder, without an edit, trains, bundles and rehearses, on pico models."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from light import answer_offline
from test_house import SHIPPED
from workspace import Workspace, succeed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ELSEWHERE = {"exp001_retrieve", "exp002_rerank"}  # CI's demo goes the same way with real models
ELSEWHERE |= {"exp007_blend"}  # its members' processes are those of test_blends.py and test_members.py
EXPERIMENTS = [  # a competitor's own needs data and models of its own
    pytest.param(name, marks=pytest.mark.release if name in ELSEWHERE else ()) for name in SHIPPED.split()
]


def read_members(experiment: Path) -> list[str]:
    """The runs that a smoke run blends."""
    smoke = yaml.safe_load((experiment / "config.yaml").read_text())["smoke"]
    return [run.partition("--")[0] for run in smoke.get("members", [])]


@pytest.fixture(params=EXPERIMENTS)
def copied(request: pytest.FixtureRequest, trained: Workspace) -> str:
    """The run of a copy, trained and bundled."""
    source = trained.root / "exp" / request.param
    copy = source.with_name(f"exp9{request.param[4:]}")
    shutil.copytree(source, copy, dirs_exist_ok=True)
    members = read_members(source)
    for member in members:
        succeed(trained.train(member, "--smoke"))
    said = succeed(trained.train(copy.name, "--smoke"))
    assert not members or "weights of the parts" in said
    same = subprocess.run(
        ["diff", "-r", "-x", "__pycache__", source, copy], capture_output=True, text=True, check=False
    )
    assert same.returncode == 0 and not same.stdout, "training changes nothing in the folder"
    run = f"{copy.name}--smoke"
    metrics = json.loads((trained.output / run / "metrics.json").read_text())
    assert (metrics["smoke"] and metrics["before"] is not None) or request.param == "exp001_retrieve"
    succeed(trained.cli("bundle", run))
    (code,) = trained.output.glob(f"bundles/{run}/*-code/exp")
    assert {path.name for path in code.iterdir()} == {copy.name, *members}
    return run


def check_replay(run: str, detail: str) -> None:
    assert "same lists" in detail
    if "blend" in run:  # its members' answers in processes of their own are those on record, to the last bit
        assert detail.endswith("largest |Δ score| 0.0e+00")


def test_a_copy_trains_bundles_and_answers_offline(trained: Workspace, copied: str, tmp_path: Path) -> None:
    checks = answer_offline(trained, copied, tmp_path / "site", replay=0)
    assert {"notebook", "submission", "row independence"} <= checks.keys()
    check_replay(copied, checks["replay"].detail)


@pytest.mark.release
def test_a_copy_is_rehearsed(trained: Workspace, copied: str) -> None:
    succeed(trained.cli("rehearse", copied, "--replay", "0", "--limit", "30m"))
    report = json.loads((trained.output / "rehearsals" / copied / "latest" / "report.json").read_text())
    assert report["ok"] and report["run"] == copied and report["score"] is not None
    checks = {check["name"]: check["detail"] for check in report["checks"]}
    assert {"notebook", "submission", "hostile", "row independence"} <= checks.keys()
    check_replay(copied, checks["replay"])
