"""exp003 on abstracts of papers, by settings alone: training makes the one-sentence summaries better."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from abstracts import ROOT, SOURCE, WORDS, convert
from again import ask_again
from workspace import Workspace, make_workspace, succeed

from kaggle_llm.competition.competition import CompetitionSettings, load_competition
from kaggle_llm.competition.metrics import paired_difference

MODELS = ROOT / "input" / "models"
LLM, ENCODER = MODELS / "SmolLM2-135M-Instruct", MODELS / "all-MiniLM-L6-v2"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not SOURCE.is_dir(), reason="real data is absent: see tests/README.md"),
    pytest.mark.skipif(not LLM.is_dir(), reason="the models are absent: make models"),
]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = make_workspace(tmp_path, LLM, ENCODER)
    convert(SOURCE, made.root / "input" / "abstracts", made.output / "hidden" / "demo-dialogues", train=80, dev=40)
    return Workspace(made.root, timeout=800)


def test_summaries_of_papers_get_better(workspace: Workspace) -> None:
    words = (*WORDS, "folds.count=4", "training.tokens=12000", "run=scitldr")
    print(succeed(workspace.train("exp003_summarize", *words))[-1500:])
    run = workspace.output / "exp003_summarize--scitldr"
    competition = load_competition(CompetitionSettings("demo-dialogues"), workspace.root / "input" / "abstracts")
    truth, metric = competition.truth(competition.table("train")), competition.metric
    after, before = pl.read_parquet(run / "oof.parquet"), ask_again(workspace, run.name, "before")
    gain, low, high = paired_difference(metric, after, before, truth)
    metrics = json.loads((run / "metrics.json").read_text())
    print(f"ROUGE-L {metrics['before']:.4f} → {metrics['cv']:.4f}: {gain:+.4f} [{low:+.4f}, {high:+.4f}]", flush=True)
    assert metric.score(before, truth) == pytest.approx(metrics["before"])
    assert low > 0
