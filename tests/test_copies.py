"""Every experiment: a copy of its folder, without an edit, trains, bundles and rehearses, on pico models."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from workspace import ROOT, Workspace, succeed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EXPERIMENTS = sorted(path.parent.name for path in (ROOT / "exp").glob("*/train.py"))


def read_members(experiment: Path) -> list[str]:
    """The runs that a smoke run blends."""
    smoke = yaml.safe_load((experiment / "config.yaml").read_text())["smoke"]
    return [run.partition("--")[0] for run in smoke.get("members", [])]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_copy_trains_bundles_and_rehearses(trained: Workspace, experiment: str) -> None:
    source, copy = (trained.root / "exp" / name for name in (experiment, f"exp9{experiment[4:]}"))
    shutil.copytree(source, copy)
    members = read_members(source)
    for member in members:
        succeed(trained.train(member, "--smoke"))
    succeed(trained.train(copy.name, "--smoke"))
    same = subprocess.run(
        ["diff", "-r", "-x", "__pycache__", source, copy], capture_output=True, text=True, check=False
    )
    assert same.returncode == 0 and not same.stdout, "training changes nothing in the folder"
    run = f"{copy.name}--smoke"
    metrics = json.loads((trained.output / run / "metrics.json").read_text())
    assert (metrics["smoke"] and metrics["before"] is not None) or experiment == "exp001_retrieve"
    succeed(trained.cli("bundle", run))
    succeed(trained.cli("rehearse", run, "--replay", "0", "--limit", "30m"))
    report = json.loads((trained.output / "rehearsals" / run / "latest" / "report.json").read_text())
    assert report["ok"] and report["run"] == run and report["score"] is not None
    checks = {one["name"]: one["detail"] for one in report["checks"]}
    assert {"notebook", "submission", "hostile", "row independence"} <= checks.keys()
    assert "same lists" in checks["replay"]
    if members:  # their answers in processes of their own are those on record, to the last bit
        assert checks["replay"].endswith("largest |Δ score| 0.0e+00")
