"""exp001 on real classroom errors, by `competition.dir=… run=mae` alone, with the real encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from misconceptions import ROOT, SOURCE, convert
from workspace import Workspace, make_workspace, succeed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SOURCE.is_dir(), reason="real data is absent: see tests/README.md"),
]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    models = ROOT / "input" / "models"
    made = make_workspace(tmp_path, models / "SmolLM2-135M-Instruct", models / "all-MiniLM-L6-v2")
    convert(SOURCE, made.root / "input" / "mae")
    return made


def test_exp001_runs_on_real_data_without_an_edit(workspace: Workspace) -> None:
    train = (workspace.root / "input" / "mae" / "train.csv").read_text()
    assert len(train.splitlines()) > 220 and "Explanation" not in train
    succeed(workspace.train("exp001_retrieve", "competition.dir=input/mae", "run=mae"))
    metrics = json.loads((workspace.output / "exp001_retrieve--mae" / "metrics.json").read_text())
    assert sum(fold["rows"] for fold in metrics["folds"]) == 220
    # On all rows BM25 alone gives 0.192 and MiniLM alone 0.409; the fusion as it was measured here:
    assert metrics["cv"] == pytest.approx(0.3535, abs=0.005)
