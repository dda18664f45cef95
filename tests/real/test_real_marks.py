"""exp008 on sentences of abstracts, by settings alone: its three forms, and beside the linear model of exp009."""

from __future__ import annotations

import json
import shutil
import statistics
from typing import Any, ClassVar

import polars as pl
import pytest
from sentences import NUMBERS, ROOT, SOURCE, WORDS, convert
from workspace import Workspace, make_workspace, succeed

from kaggle_llm.competition.competition import CompetitionSettings, Table, load_competition
from kaggle_llm.competition.forms import NumberColumns
from kaggle_llm.competition.metrics import paired_difference, root_mean_squared_error

MODELS = ROOT / "input" / "models"
LLM, ENCODER = MODELS / "SmolLM2-135M-Instruct", MODELS / "all-MiniLM-L6-v2"
SEEDS = (0, 1, 2)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(not SOURCE.is_dir(), reason="real data is absent: see tests/README.md"),
    pytest.mark.skipif(not ENCODER.is_dir(), reason="the encoder is absent: make models"),
]


class PlaceAndWorth(NumberColumns):
    """Two numbers of a sentence."""

    texts = ("question", "answer")
    tables: ClassVar = {
        "train": Table("id", texts, numbers=NUMBERS, group="question"),
        "test": Table("id", texts),
    }
    metric = root_mean_squared_error()


MODULE = "from test_real_marks import PlaceAndWorth\n\nCOMPETITION = PlaceAndWorth\n"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Both competitions, and a package with a module for the second."""
    made = make_workspace(tmp_path_factory.mktemp("marks"), LLM, ENCODER)
    convert(SOURCE, made.root / "input" / "sentences", made.output / "hidden" / "demo-essays", papers=60)
    numbers = made.root / "input" / "made-sentences", made.output / "hidden" / "made-sentences"
    convert(SOURCE, *numbers, papers=60, targets=NUMBERS)
    source = made.root / "src" / "kaggle_llm"
    shutil.copytree(ROOT / "src" / "kaggle_llm", source, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "competition" / "made_sentences.py").write_text(MODULE)
    return Workspace(made.root, timeout=900)


def train(workspace: Workspace, name: str, run: str, *words: str) -> tuple[dict[str, Any], pl.DataFrame]:
    """metrics.json and the out-of-fold answers."""
    found = f"{workspace.root / 'src'}:{ROOT / 'tests' / 'real'}:{ROOT / 'tests'}"
    succeed(workspace.train(name, *WORDS, *words, f"run={run}", PYTHONPATH=found))
    folder = workspace.output / f"{name}--{run}"
    return json.loads((folder / "metrics.json").read_text()), pl.read_parquet(folder / "oof.parquet")


@pytest.mark.parametrize("pooling", ["model", "mean"])
def test_a_head_and_the_linear_model_are_compared_over_three_seeds(workspace: Workspace, pooling: str) -> None:
    """On the same rows. A head has to read something; its gain over the linear model is reported."""
    competition = load_competition(CompetitionSettings("demo-essays"), workspace.root / "input" / "sentences")
    truth, metric, gains = competition.truth(competition.table("train")), competition.metric, []
    linear, baseline = train(workspace, "exp009_linear", "all")
    for seed in SEEDS:
        head, answers = train(workspace, "exp008_heads", f"{pooling}{seed}", f"seed={seed}", f"head.pooling={pooling}")
        gain, low, high = paired_difference(metric, answers, baseline, truth)
        print(f"{pooling}, seed {seed}, {answers.height} rows: head {head['cv']:.4f}, linear {linear['cv']:.4f}")
        print(f"  {gain:+.4f} [{low:+.4f}, {high:+.4f}]", flush=True)
        assert head["interval"][0] > 0 == head["before"]
        gains.append(gain)
    print(f"head − linear: {statistics.mean(gains):+.4f} ± {statistics.stdev(gains):.4f}", flush=True)


def test_boosted_trees_are_compared_with_ridge(workspace: Workspace) -> None:
    """On the same rows. They have to read something."""
    competition = load_competition(CompetitionSettings("demo-essays"), workspace.root / "input" / "sentences")
    truth = competition.truth(competition.table("train"))
    _, ridge = train(workspace, "exp009_linear", "ridge")
    metrics, trees = train(workspace, "exp009_linear", "trees", "linear.model=lightgbm", "linear.characters=0")
    gain, low, high = paired_difference(competition.metric, trees, ridge, truth)
    print(f"LightGBM {metrics['cv']:.4f}, over ridge {gain:+.4f} [{low:+.4f}, {high:+.4f}]", flush=True)
    assert metrics["interval"][0] > 0


def test_a_blend_and_a_stack_are_compared_with_their_best_member(workspace: Workspace) -> None:
    """Of a head, ridge and LightGBM, on the same rows; what they gain is reported."""
    runs = ["exp008_heads--member", "exp009_linear--words", "exp009_linear--boosted"]
    both = "folds.validate=null"  # a stack is trained on the other fold's answers
    train(workspace, "exp008_heads", "member", both)
    train(workspace, "exp009_linear", "words", both)
    train(workspace, "exp009_linear", "boosted", both, "linear.model=lightgbm", "linear.characters=0")
    members = f"members=[{','.join(runs)}]"
    for name, run, words in [
        ("exp007_blend", "blend", ("competition.name=demo-essays",)),
        ("exp009_linear", "stack", ("linear.words=0", "linear.characters=0")),
        ("exp009_linear", "beside", ()),
    ]:
        metrics, _ = train(workspace, name, run, members, *words)
        gained = f"{metrics['metric']} {metrics['before']:.4f} (best member) → {metrics['cv']:.4f}"
        print(f"{run}: {gained} {metrics['interval']}", flush=True)
        assert metrics["interval"][0] > 0


OVERRIDES = {
    "classes": ("head.task=classification", "training.epochs=5"),
    "numbers": ("head.task=regression", "competition.name=made-sentences", "competition.dir=input/made-sentences"),
}


@pytest.mark.parametrize("form", OVERRIDES)
def test_classes_and_two_numbers_are_other_settings(workspace: Workspace, form: str) -> None:
    metrics, answers = train(workspace, "exp008_heads", form, *OVERRIDES[form])
    print(f"{form}: {metrics['metric']} {metrics['before']:.4f} → {metrics['cv']:.4f} {metrics['interval']}")
    print(metrics["also"], flush=True)
    if form == "classes":  # of so few sentences it learns the most frequent one, so the kappa stays 0
        assert metrics["also"]["accuracy"] > 1 / 6
    else:
        assert metrics["cv"] < metrics["before"]
        assert {len(values) for values in answers["values"].to_list()} == {len(NUMBERS)}
