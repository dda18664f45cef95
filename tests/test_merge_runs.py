"""`kaggle-llm merge`: a run whose weights are other runs' merged, scored on rows that none of them was trained on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from workspace import Workspace, copy_workspace, succeed

from kaggle_llm.weights.soup import SoupSettings, merge_checkpoints

SEED1 = "python exp/exp002_rerank/train.py seed=1 run=seed1 --smoke"
FIRST, SECOND = "exp002_rerank--smoke", "exp002_rerank--seed1-smoke"


@pytest.fixture(scope="module")
def two_seeds(trained: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = copy_workspace(trained, tmp_path_factory.mktemp("seeds"))
    succeed(workspace.train("exp002_rerank", "--smoke", "seed=1", "run=seed1"))
    return workspace


def test_two_runs_are_merged_fold_by_fold_scored_and_bundled(two_seeds: Workspace, tmp_path: Path) -> None:
    options = ["--method", "ties", "--weights", "0.7,0.3", "--density", "0.4", "--name", "both"]
    said = succeed(two_seeds.cli("merge", FIRST, SECOND, *options))
    run = two_seeds.output / "exp002_rerank--both-smoke"
    assert "exp002_rerank--both-smoke: complete" in said
    weights = [two_seeds.output / name / "fold0" / "merged" for name in (FIRST, SECOND)]
    base = two_seeds.root / "input" / "models" / "SmolLM2-135M-Instruct"
    merge_checkpoints(weights, tmp_path / "expected", SoupSettings("ties", [0.7, 0.3], density=0.4), base)
    merged = (run / "fold0" / "merged" / "model.safetensors").read_bytes()
    assert merged == (tmp_path / "expected" / "model.safetensors").read_bytes()
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["cv"] <= 1 and metrics["before"] is not None and metrics["smoke"] is True
    assert succeed(two_seeds.cli("merge", FIRST, SECOND, *options)).count("fold0/merged is complete, reused") == 1
    succeed(two_seeds.cli("bundle", run.name))
    shipped = (two_seeds.output / "bundles" / run.name).glob("*-weights-*/*/model.safetensors")
    assert any(path.samefile(run / "fold0" / "merged" / "model.safetensors") for path in shipped)
    again = succeed(two_seeds.cli("trace", run.name, "--again")).splitlines()
    assert {"python exp/exp002_rerank/train.py --smoke", SEED1} <= set(again[:-1]), "the runs come first"
    assert again[-1] == f"kaggle-llm merge {FIRST} {SECOND} {' '.join(options)}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([FIRST], "name two checkpoints or more"),
        ([FIRST, "exp002_rerank--none"], "exp002_rerank--none is no complete run"),
        pytest.param([FIRST, SECOND, "--method", "mean"], "method", marks=pytest.mark.slow),
        pytest.param(["exp001_retrieve--smoke", FIRST], "trained no model", marks=pytest.mark.slow),
        pytest.param([FIRST, SECOND, "--method", "slerp", "--t", "2"], "t = 2.0", marks=pytest.mark.slow),
        ([FIRST, SECOND, "--name", "seed1"], "is a trained run: choose another --name"),
        pytest.param([FIRST, SECOND, "--name", "a/b"], "run = 'a/b'", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_merged_is_one_clear_error(two_seeds: Workspace, words: list[str], said: str) -> None:
    done = two_seeds.cli("merge", *words)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_run_that_was_trained_on_the_validated_rows_is_refused(two_seeds: Workspace) -> None:
    succeed(two_seeds.train("exp002_rerank", "--smoke", "folds.validate=[1]", "run=other"))
    done = two_seeds.cli("merge", FIRST, "exp002_rerank--other-smoke")
    assert done.returncode == 1 and "leak" in done.stderr
