"""exp004 on people's votes, by settings alone: better than the base model and than the votes' own shares."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from judgements import ROOT, SOURCE, WORDS, convert
from workspace import Workspace, make_workspace, succeed

MODELS = ROOT / "input" / "models"
LLM, ENCODER = MODELS / "SmolLM2-135M-Instruct", MODELS / "all-MiniLM-L6-v2"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not SOURCE.is_file(), reason="real data is absent: see tests/README.md"),
    pytest.mark.skipif(not LLM.is_dir(), reason="the models are absent: make models"),
]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = make_workspace(tmp_path, LLM, ENCODER)
    convert(SOURCE, made.root / "input" / "judgements", made.output / "hidden" / "demo-judge", count=160)
    return Workspace(made.root, timeout=800)


def test_votes_are_foretold_better_than_by_their_shares(workspace: Workspace) -> None:
    words = (*WORDS, "folds.count=4", "training.tokens=6000", "parity.exact_rows=4", "run=pandalm")
    print(succeed(workspace.train("exp004_judge", *words))[-1500:])
    run = workspace.output / "exp004_judge--pandalm"
    metrics = json.loads((run / "metrics.json").read_text())
    print(f"log loss {metrics['cv']:.4f}, base model {metrics['before']:.4f}, shares {metrics['also']}", flush=True)
    reliability = json.loads((run / "reliability.json").read_text())
    assert metrics["cv"] < metrics["before"] - 0.05
    assert metrics["cv"] < metrics["also"]["shares of training"] < 1.0986, "better than not to know"
    assert reliability["decided"]["error"] < 0.15
