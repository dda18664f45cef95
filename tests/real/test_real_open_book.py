"""exp006 on questions about papers, by settings alone: the book gives what the question does not."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
from again import ask_again
from paper_exam import ROOT, SOURCE, WORDS, convert
from workspace import Workspace, make_workspace, succeed

from kaggle_llm.competition.competition import CompetitionSettings, load_competition
from kaggle_llm.competition.demo_open_book import LETTERS
from kaggle_llm.competition.metrics import bootstrap_interval, paired_difference

MODELS = ROOT / "input" / "models"
LLM, ENCODER = MODELS / "SmolLM2-135M-Instruct", MODELS / "all-MiniLM-L6-v2"
CHANCE = (1 + 1 / 2 + 1 / 3) / 5  # MAP@3 of one right letter among five in any order
RUN = "exp006_open_book--papers"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not SOURCE.is_dir(), reason="real data is absent: see tests/README.md"),
    pytest.mark.skipif(not (LLM.is_dir() and ENCODER.is_dir()), reason="the models are absent: make models"),
]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    made = make_workspace(tmp_path, LLM, ENCODER)
    exam, hidden = made.root / "input" / "paper-exam", made.output / "hidden" / "demo-open-book"
    convert(SOURCE, exam, hidden, train=120, test=len(LETTERS))
    return Workspace(made.root, timeout=800)


def test_papers_are_found_and_their_summaries_told_apart_better_with_the_book_open(workspace: Workspace) -> None:
    words = (*WORDS, "folds.count=4", "training.tokens=12000", "parity.exact_rows=4", "run=papers")
    print(succeed(workspace.train("exp006_open_book", *words))[-1500:])
    run = workspace.output / RUN
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["also"]["document in the first 1"] > 0.8 and metrics["also"]["document in the first 3"] > 0.9
    competition = load_competition(CompetitionSettings("demo-open-book"), workspace.root / "input" / "paper-exam")
    truth, metric = competition.truth(competition.table("train")), competition.metric
    opened = pl.read_parquet(run / "oof.parquet")
    assert bootstrap_interval(metric, opened, truth)[0] > CHANCE
    closed, before = ask_again(workspace, RUN, "after", "answer_closed"), ask_again(workspace, RUN, "before")
    assert metric.score(closed, truth) == pytest.approx(metrics["also"]["without context"])
    assert metric.score(before, truth) == pytest.approx(metrics["before"])
    for name, other in {"closed book": closed, "base model": before}.items():
        gain, low, high = paired_difference(metric, opened, other, truth)
        print(f"{metric.name} {metrics['cv']:.4f}, {name} {gain:+.4f} [{low:+.4f}, {high:+.4f}]", flush=True)
        assert low > 0
