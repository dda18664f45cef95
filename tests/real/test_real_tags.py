"""exp005 on the entities of real messages, by settings alone: better than rules and than nothing on their own test."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import polars as pl
import pytest
from wnut17 import ROOT, SOURCE, WORDS, convert
from workspace import Workspace, make_workspace, succeed

from kaggle_llm.competition.competition import CompetitionSettings, load_competition
from kaggle_llm.competition.csv_table import read_csv
from kaggle_llm.competition.metrics import Metric, paired_difference, span_f_beta
from kaggle_llm.competition.rankings import make_ranking

ENCODER = ROOT / "input" / "models" / "all-MiniLM-L6-v2"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not SOURCE.is_dir(), reason="real data is absent: see tests/README.md"),
    pytest.mark.skipif(not ENCODER.is_dir(), reason="the encoder is absent: make models"),
]
# Answers the hidden test with what ships, and with the rules: as a notebook would, by answer().
ASK = """
import sys
from pathlib import Path
from kaggle_llm.base import paths, records
from kaggle_llm.competition.competition import load_competition
from kaggle_llm.competition.csv_table import read_csv
from kaggle_llm.base.config import load_config
from kaggle_llm.inference.model import read_models
from kaggle_llm.inference.run import Run, answer, import_predict
exp, run, hidden = paths.experiment_folder(sys.argv[1]), paths.run_folder(sys.argv[1]), Path(sys.argv[2])
config = load_config(run / "config.yaml", import_predict(exp).Config)
ship = read_models(records.read_record(run).settings["ship"])
rows, competition = read_csv(hidden / "test.csv"), load_competition(config.competition)
with Run(config, competition, ship) as asked:
    answer(exp, asked, rows).write_parquet("after.parquet")
with Run(config, competition, []) as asked:
    import_predict(exp).fallback(rows, asked).write_parquet("before.parquet")
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    models = ROOT / "input" / "models"
    made = make_workspace(tmp_path, models / "SmolLM2-135M-Instruct", ENCODER)
    hidden = made.output / "hidden" / "demo-tags"
    convert(SOURCE, made.root / "input" / "wnut17", hidden, train=300, dev=100, test=200)
    return Workspace(made.root, timeout=600)


def report(name: str, metric: Metric, after: pl.DataFrame, before: pl.DataFrame, truth: pl.DataFrame) -> float:
    """The lower end of the gain's interval."""
    gain, low, high = paired_difference(metric, after, before, truth)
    print(f"{metric.name}, {name}: {metric.score(before, truth):.4f} before, {metric.score(after, truth):.4f} after")
    print(f"  {gain:+.4f} [{low:+.4f}, {high:+.4f}]", flush=True)
    return low


def test_entities_of_messages_are_found(workspace: Workspace) -> None:
    words = (*WORDS, "folds.count=5", "training.batch=8", "training.epochs=3", "run=wnut17")
    print(succeed(workspace.train("exp005_tags", *words))[-1500:])
    hidden, run = workspace.output / "hidden" / "demo-tags", "exp005_tags--wnut17"
    succeed(workspace.call(sys.executable, "-c", ASK, run, str(hidden)))
    metrics = json.loads((workspace.output / run / "metrics.json").read_text())
    assert metrics["cv"] > metrics["before"]
    competition = load_competition(CompetitionSettings("demo-tags"), workspace.root / "input" / "wnut17")
    truth = competition.truth(read_csv(hidden / "solution.csv"))
    after, before = (pl.read_parquet(workspace.root / f"{name}.parquet") for name in ("after", "before"))
    nothing = make_ranking(truth["id"].to_list(), [[]] * truth.height, [[]] * truth.height)
    for metric in (span_f_beta(5), span_f_beta(1)):
        for name, rule in {"rules": before, "nothing": nothing}.items():
            low = report(name, metric, after, rule, truth)
            assert low > 0 or metric.name == "f1", "the threshold is fitted for F5"
    assert span_f_beta(1).score(after, truth) > 0.2
