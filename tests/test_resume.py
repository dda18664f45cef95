"""An experiment killed anywhere ends as if nothing had happened, and does not do again what was done."""

from __future__ import annotations

import json
import shutil
import signal

import numpy as np
import polars as pl
import pytest
from workspace import Workspace, copy_workspace, read_answers, succeed

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
# At the end it says how many answers of models were written down.
COUNT = """
import os, runpy, sys
from kaggle_llm.inference.answers import AnswerFile
original, counts = AnswerFile.write, []
def write(self, answers):
    counts.append(len(answers))
    original(self, answers)
AnswerFile.write = write
train = sys.argv[1]
sys.argv, sys.path[0] = sys.argv[1:], os.path.dirname(train)
runpy.run_path(train, run_name="__main__")
print("answers written:", sum(counts))
"""
PLACES = {
    "between two checkpoints": (
        ("kaggle_llm.tasks.choice_training", "ChoiceTask", "loss", "3"),
        "resuming from checkpoint of",
    ),
    "inside a checkpoint": (
        ("transformers", "Trainer", "_save_rng_state", "2"),
        "resuming from checkpoint of step 2 of",
    ),
    "in merging": (("kaggle_llm.weights.merge", "", "write_config", "1"), "fold0/adapter is complete, reused"),
    "before the scores": (
        ("kaggle_llm.experiment.scores", "", "check_answer", "1"),
        "fold0/merged is complete, reused",
    ),
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
    kill(workspace, name, *where)
    assert said in succeed(workspace.train("exp002_rerank", *WORDS, f"run={name}"))
    check_same(workspace, name)


def test_killed_in_prediction_it_asks_only_what_no_model_has_answered(workspace: Workspace) -> None:
    """At the third call of the language model: the trained one's answers are kept, the base model's are not."""
    shutil.rmtree(workspace.output / "cache")
    kill(workspace, "prediction", "kaggle_llm.engines.transformers_engine", "TransformersEngine", "choices", "3")
    kept, train = read_answers(workspace), str(workspace.root / "exp" / "exp002_rerank" / "train.py")
    said = succeed(workspace.python("-c", COUNT, train, *WORDS, "run=prediction"))
    assert all(f"fold0/{step} is complete, reused" in said for step in ("adapter", "merged"))
    new = read_answers(workspace) - kept
    assert kept and new and f"answers written: {len(new)}\n" in said
    check_same(workspace, "prediction")


def kill(workspace: Workspace, name: str, *where: str) -> None:
    """A run that is killed there: it has no scores and no record."""
    train = str(workspace.root / "exp" / "exp002_rerank" / "train.py")
    killed = workspace.python("-c", KILL, *where, train, *WORDS, f"run={name}")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-2000:]
    folder = workspace.output / f"exp002_rerank--{name}-smoke"
    assert not (folder / "metrics.json").exists() and not (folder / "record.json").exists()


def check_same(workspace: Workspace, name: str) -> None:
    """The run left what the one left that was not killed, and nothing else."""
    adapter, oof, metrics = leaves(workspace, name)
    whole_adapter, whole_oof, whole_metrics = leaves(workspace, "whole")
    for tensor, values in whole_adapter.items():
        np.testing.assert_array_equal(values, adapter[tensor])
    assert oof.equals(whole_oof) and metrics == whole_metrics
    folder = workspace.output / f"exp002_rerank--{name}-smoke"
    assert {path.name for path in folder.rglob("*") if "checkpoint" in path.name or "making" in path.name} == set()
