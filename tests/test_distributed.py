"""Two processes give the loss curve and the adapter of one: the same rows in each step, one mean over all of them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from test_trainer import weights
from workspace import ROOT, Workspace, copy_workspace, succeed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

BIN = ROOT / ".venv" / "bin"
LAUNCH = ROOT / "src" / "kaggle_llm" / "training" / "launch"
TRAIN = '''
import sys
from pathlib import Path

from test_choice_training import POINTWISE, random_groups
from test_trainer import make_job

from kaggle_llm.training import trainer as trainers
from kaggle_llm.training.trainer import fine_tune

gather = trainers.gather_weights


def say_and_gather(trainer):
    kinds = {type(weight.data).__name__ for weight in trainer.model.parameters()}
    print(f"weights are {kinds}\\n", end="")  # one write: two processes share the pipe
    return gather(trainer)


def shard_on_cpu():
    """accelerate takes FSDP for a matter of GPUs: told that the device is a CPU, it would choose DDP."""
    from accelerate import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
    from transformers import Trainer

    make = Trainer.create_accelerator_and_postprocess

    def sharded(self):
        make(self)
        self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(**(self.args.fsdp_plugin_args or {}))
        self.accelerator.state.distributed_type = DistributedType.FSDP
        PartialState._shared_state["distributed_type"] = DistributedType.FSDP
        self.is_fsdp_enabled = True

    Trainer.create_accelerator_and_postprocess = sharded


if __name__ == "__main__":
    base, folder, kind = sys.argv[1:]
    if kind == "fsdp2":
        shard_on_cpu()
    trainers.gather_weights = say_and_gather
    job = make_job(Path(base), Path(folder), batch=8, batch_tokens=150, learning_rate=1e-3)
    fine_tune(POINTWISE, random_groups(3, 160), job)
'''
COMMANDS = {
    "one": [str(BIN / "python")],
    "ddp": [str(BIN / "torchrun"), "--nproc-per-node", "2", "--standalone"],
    "fsdp2": [
        *(str(BIN / "accelerate"), "launch", "--config_file", str(LAUNCH / "fsdp2.yaml")),
        *("--main_process_port", "0"),
    ],
}


def train(kind: str, base: Path, root: Path) -> tuple[list[float], dict[str, np.ndarray], str]:
    """Loss of every step, adapter tensors, what was said."""
    script = root / "train.py"
    script.write_text(TRAIN, encoding="utf-8")
    folder = root / kind / "adapter"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    command = [*COMMANDS[kind], str(script), str(base), str(folder), kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {path.name for path in folder.parent.iterdir()} == {"adapter"}
    return [row["loss"] for row in rows if "loss" in row], weights(folder), done.stdout


@pytest.fixture(scope="module")
def one(pico_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], dict[str, np.ndarray], str]:
    return train("one", pico_llm, tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize(
    ("kind", "kept_as"), [("ddp", "Tensor"), pytest.param("fsdp2", "DTensor", marks=pytest.mark.release)]
)
def test_two_processes_give_the_curve_of_one(
    pico_llm: Path, tmp_path: Path, one: tuple[list[float], dict[str, np.ndarray], str], kind: str, kept_as: str
) -> None:
    losses, adapter, said = train(kind, pico_llm, tmp_path)
    expected, expected_adapter, _ = one
    assert len(losses) == len(expected) == 20
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) < 1e-4
    assert adapter.keys() == expected_adapter.keys()
    for name, weight in expected_adapter.items():
        np.testing.assert_allclose(adapter[name], weight, atol=1e-4)
    assert f"weights are {{'{kept_as}'}}" in said, "sharded where it should be"
    assert said.count("training on 160 of 160 examples") == 1, "one of them talks"


def test_an_experiment_is_trained_by_two_processes_and_scored_by_one(bare: Workspace, tmp_path: Path) -> None:
    """The first one makes the examples and says whether the training is there already; a single one trains anew."""
    workspace, words = copy_workspace(bare, tmp_path), ("--smoke", "run=two", "training.tokens=2000")
    folder = workspace.output / "exp002_rerank--two-smoke"
    command = (*COMMANDS["ddp"], str(workspace.root / "exp" / "exp002_rerank" / "train.py"), *words)
    said = succeed(workspace.call(*command, OMP_NUM_THREADS="1"))
    for once in ("no leak found", "fold0/adapter …", "training on", "fold0/merged …", "fold0: map@25", "complete in"):
        assert said.count(once) == 1, f"{once}\n{said}"
    two, made = weights(folder / "fold0" / "adapter"), (folder / "fold0" / "adapter").stat().st_ino
    again = succeed(workspace.call(*command, OMP_NUM_THREADS="1"))
    assert "fold0/adapter is complete, reused" in again and "training on" not in again
    assert (folder / "fold0" / "adapter").stat().st_ino == made
    alone = succeed(workspace.train("exp002_rerank", *words))
    assert "fold0/adapter is made again: launcher.world: 2 → 1" in alone
    for name, weight in weights(folder / "fold0" / "adapter").items():
        np.testing.assert_allclose(two[name], weight, atol=1e-4)
