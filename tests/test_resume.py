"""An experiment killed anywhere ends as if nothing had happened, and does not do again what was done."""

from __future__ import annotations

import json
import signal

import numpy as np
import polars as pl
import pytest
from workspace import Workspace, copy_workspace, succeed

pytestmark = pytest.mark.slow

WORDS = ("--smoke", "training.tokens=2000", "training.checkpoint_steps=2", "training.batch=2", "folds.rows=20")
# The process kills itself without a chance to clean up, at the n-th call of a function.
KILL = """
import importlib, os, runpy, signal, sys
module, owner, name, count = sys.argv[1:5]
holder = importlib.import_module(module)
holder = getattr(holder, owner) if owner else holder
original, calls = getattr(holder, name), [0]
def dying(*words, **more):
    calls[0] += 1
    if calls[0] == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*words, **more)
setattr(holder, name, dying)
train = sys.argv[5]
sys.argv, sys.path[0] = sys.argv[5:], os.path.dirname(train)
runpy.run_path(train, run_name="__main__")
"""
PLACES = {
    "between two checkpoints": (
        ("kaggle_llm.training.choice", "ChoiceTask", "loss", "3"),
        "going on from checkpoint of",
    ),
    "inside a checkpoint": (
        ("transformers", "Trainer", "_save_rng_state", "2"),
        "going on from checkpoint of step 2 of",
    ),
    "in prediction": (("kaggle_llm.run", "", "check_ranking", "1"), "fold0/adapter is complete, reused"),
}


@pytest.fixture(scope="module")
def workspace(bare: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    made = copy_workspace(bare, tmp_path_factory.mktemp("resume"))
    succeed(made.train("exp002_rerank", *WORDS, "run=whole"))
    return made


def leaves(workspace: Workspace, name: str) -> tuple[dict[str, np.ndarray], pl.DataFrame, dict]:
    from safetensors.numpy import load_file

    folder = workspace.output / f"exp002_rerank--{name}-smoke"
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics.pop("run")
    adapter = load_file(folder / "fold0" / "adapter" / "adapter_model.safetensors")
    return adapter, pl.read_parquet(folder / "oof.parquet"), metrics


@pytest.mark.parametrize("place", PLACES)
def test_killed_it_goes_on_to_the_same_result(workspace: Workspace, place: str) -> None:
    (where, said), name = PLACES[place], place.replace(" ", "_")
    train = str(workspace.root / "exp" / "exp002_rerank" / "train.py")
    words = (*WORDS, f"run={name}")
    killed = workspace.python("-c", KILL, *where, train, *words)
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    folder = workspace.output / f"exp002_rerank--{name}-smoke"
    assert not (folder / "metrics.json").exists()
    assert said in succeed(workspace.train("exp002_rerank", *words))
    adapter, oof, metrics = leaves(workspace, name)
    whole_adapter, whole_oof, whole_metrics = leaves(workspace, "whole")
    for tensor, values in whole_adapter.items():
        np.testing.assert_array_equal(values, adapter[tensor])
    assert oof.equals(whole_oof) and metrics == whole_metrics
    assert {path.name for path in folder.rglob("*") if "checkpoint" in path.name or "making" in path.name} == set()
