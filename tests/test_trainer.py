"""The trainer of all tasks: it learns, logs, repeats itself bit by bit, goes on where it was killed, and stops."""

import json
import math
import subprocess
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest
from test_choice_training import POINTWISE, literal_pointwise, random_groups

from kaggle_llm.base.device import release_device
from kaggle_llm.engines.prompts import TokenGroup
from kaggle_llm.tasks.choice_training import ChoiceSettings, ChoiceTask
from kaggle_llm.tasks.distillation import DistillationSettings
from kaggle_llm.tasks.heads import HeadSettings
from kaggle_llm.tasks.heads_training import HeadTask
from kaggle_llm.tasks.masked import MaskedTask
from kaggle_llm.tasks.tags_training import TokenSettings, TokenTask
from kaggle_llm.tasks.writing_training import GenerationTask
from kaggle_llm.training import base_model
from kaggle_llm.training import trainer as trainers
from kaggle_llm.training.base_model import load_trainable
from kaggle_llm.training.checkpoints import COMPLETE, Checkpoints
from kaggle_llm.training.optimizer import choose_rate, group_parameters
from kaggle_llm.training.plan import keep_within
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.trainer import Job, describe_training, fine_tune

METHODS = ("lora", "full", *(pytest.param(method, marks=pytest.mark.slow) for method in ("rslora", "dora", "qlora")))


def make_job(base: Path, folder: Path, seed: int = 0, method: Any = "lora", **changes: Any) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    settings = TrainingSettings(**({"learning_rate": 1e-2, "batch": 2, "batch_tokens": 100} | changes))
    return Job(base, folder, LoraSettings(method, r=4, alpha=8), settings, seed)


def train(base: Path, folder: Path, groups: list[TokenGroup], **changes: Any) -> list[dict[str, Any]]:
    """Train into `folder` and return the steps of its log."""
    fine_tune(POINTWISE, groups, make_job(base, folder, **changes))
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if "loss" in row]


def weights(folder: Path, name: str = "adapter_model.safetensors") -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(folder / name)


def assert_same(first: Path, second: Path) -> None:
    one, two = weights(first), weights(second)
    assert one.keys() == two.keys() and len(one) == 28
    for name, weight in one.items():
        np.testing.assert_array_equal(weight, two[name])


def load_trained(base: Path, folder: Path) -> Any:
    """As a user would: the adapter on its base, or the whole model."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if not (folder / "adapter_config.json").is_file():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), folder)


def loss_of(model: Any, groups: list[TokenGroup]) -> float:
    import torch

    with torch.no_grad():
        return float(literal_pointwise(model.eval(), groups)) / len(groups)


def test_gradients_are_exchanged_between_processes_with_the_last_part_of_a_step_only(
    pico_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """no_sync of accelerate holds the exchange back; it does so here too, where there is one process."""
    from accelerate import Accelerator

    waits: list[int] = []
    parts: list[int] = []
    real, loss = Accelerator.no_sync, ChoiceTask.loss
    monkeypatch.setattr(Accelerator, "no_sync", lambda self, model: waits.append(1) or real(self, model))

    monkeypatch.setattr(
        ChoiceTask, "loss", lambda self, model, examples: parts.append(len(examples)) or loss(self, model, examples)
    )
    fine_tune(POINTWISE, random_groups(3, 12), make_job(pico_llm, tmp_path, batch=4, batch_tokens=40))
    steps = len([row for row in map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines()) if "loss" in row])
    assert len(parts) > steps > 1, "steps of several parts"
    assert len(waits) == len(parts) - steps


@pytest.mark.parametrize("method", METHODS)
def test_every_method_lowers_the_loss_and_survives_save_and_load(pico_llm: Path, tmp_path: Path, method: str) -> None:
    groups, rate = random_groups(5, 6), 1e-3 if method == "full" else 1e-2
    steps = train(pico_llm, tmp_path / "run", groups, method=method, epochs=12, warmup=0.0, learning_rate=rate)
    base = trainers.load_trainable(pico_llm, "causal", LoraSettings("full"), TrainingSettings(), 0)
    after = loss_of(load_trained(pico_llm, tmp_path / "run"), groups)
    assert after < 0.5 * loss_of(base, groups)
    assert after < np.mean([row["loss"] for row in steps[:3]]), "what was loaded is what was trained"


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_an_adapter_predicts_alike_before_and_after_saving(pico_llm: Path, tmp_path: Path, method: str) -> None:
    groups = random_groups(5, 4)
    kept: list[Any] = []
    run = trainers.run_trainer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            trainers, "run_trainer", lambda made, *rest, **words: (kept.append(made.model), run(made, *rest, **words))
        )
        train(pico_llm, tmp_path / "run", groups, method=method, epochs=2)
    import torch

    with torch.no_grad():
        trained = POINTWISE.loss(kept[0].eval(), groups).item() / len(groups)
    assert loss_of(load_trained(pico_llm, tmp_path / "run"), groups) == pytest.approx(trained, abs=1e-5)
    config = json.loads((tmp_path / "run" / "adapter_config.json").read_text())
    assert (config["use_dora"], config["use_rslora"]) == (method == "dora", method == "rslora")


def test_a_training_leaves_its_folder_and_nothing_beside_it(pico_llm: Path, tmp_path: Path) -> None:
    steps = train(pico_llm, tmp_path / "run", random_groups(6, 7), checkpoint_steps=2)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "config.json", "log.jsonl", "weights.json"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]  # the last one of one group
    assert all(math.isfinite(row["loss"]) and row["learning_rate"] >= 0 for row in steps)


@pytest.mark.parametrize("batch_tokens", [1, 60, 10_000])
def test_a_step_takes_the_mean_over_its_groups_however_they_are_split(
    pico_llm: Path, tmp_path: Path, batch_tokens: int
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    groups = random_groups(7, 6)
    (row,) = train(pico_llm, tmp_path / "run", groups, batch=6, batch_tokens=batch_tokens)
    base = AutoModelForCausalLM.from_pretrained(pico_llm, dtype=torch.float32)
    assert row["loss"] == pytest.approx(loss_of(base, groups), abs=1e-5)


def test_training_is_the_same_for_a_seed_only(pico_llm: Path, tmp_path: Path) -> None:
    groups = random_groups(8, 6)
    for name, seed in {"first": 1, "again": 1, "other": 2}.items():
        train(pico_llm, tmp_path / name, groups, seed=seed)
    assert_same(tmp_path / "first", tmp_path / "again")
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "first", tmp_path / "other")


def test_only_examples_within_the_budget_are_trained_on(pico_llm: Path, tmp_path: Path) -> None:
    groups = random_groups(9, 6)
    train(pico_llm, tmp_path / "cut", groups, tokens=sum(len(group) for group in groups[:3]))
    train(pico_llm, tmp_path / "three", groups[:3])
    assert_same(tmp_path / "cut", tmp_path / "three")
    with pytest.raises(ValueError, match=r"training.tokens = 4: not even the first of 6 examples"):
        train(pico_llm, tmp_path / "none", groups, tokens=4)


def test_the_key_of_a_training_has_what_its_weights_depend_on(pico_llm: Path, tmp_path: Path) -> None:
    job, task = make_job(pico_llm, tmp_path), ChoiceTask(ChoiceSettings("labels"), [[7], [8]])
    training, lora = job.training, job.lora
    known = describe_training(task, job)
    alike = [
        replace(job, training=replace(training, checkpoint_steps=7, track="tensorboard")),
        replace(job, folder=tmp_path / "elsewhere", about={"run": "other"}),
    ]
    assert [describe_training(task, one) for one in alike] == [known, known]
    others = [
        describe_training(task, replace(job, training=replace(training, learning_rate=0.5))),
        describe_training(task, replace(job, training=replace(training, batch_tokens=50))),
        describe_training(task, replace(job, lora=replace(lora, alpha=9))),
        describe_training(ChoiceTask(ChoiceSettings("labels"), [[7], [9]]), job),
        describe_training(ChoiceTask(ChoiceSettings("pointwise"), [[7], [8]]), job),
        describe_training(ChoiceTask(ChoiceSettings("labels"), [[7], [8]], DistillationSettings(weight=0.4)), job),
        describe_training(GenerationTask(), job),
    ]
    for name, value in {"WORLD_SIZE": "2", "ACCELERATE_USE_FSDP": "true"}.items():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, value)
            others.append(describe_training(task, job))
    keys = {json.dumps(one, sort_keys=True) for one in [known, *others]}
    assert len(keys) == 1 + len(others)
    assert set(known["versions"]) == {"torch", "transformers", "peft"} and known["device"] in ("cpu", "cuda")


@pytest.mark.parametrize(
    "task",
    [
        ChoiceTask(ChoiceSettings(), [[7], [8]]),
        GenerationTask(),
        MaskedTask(),
        HeadTask(HeadSettings("classification", ["a", "b"])),
        TokenTask(TokenSettings(["O", "B-X"])),
    ],
    ids=lambda task: type(task).__name__,
)
def test_every_task_has_a_key(pico_llm: Path, tmp_path: Path, task: Any) -> None:
    assert describe_training(task, make_job(pico_llm, tmp_path))["task"]["name"] == type(task).__name__


def test_examples_behind_the_budget_are_no_part_of_a_training() -> None:
    groups = random_groups(9, 6)
    lengths = [len(group) for group in groups]
    assert keep_within(groups, lengths, sum(lengths[:3]) + 1, "groups") == groups[:3]
    assert keep_within(groups, lengths, None, "groups") == groups


# killed ------------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """kill(step): the training dies when it begins that step's loss; later trainings live."""
    begun = [0]

    def arm(step: int) -> None:
        loss = type(POINTWISE).loss

        def dying(self: Any, model: Any, examples: Any) -> Any:
            begun[0] += 1
            if begun[0] == step:
                monkeypatch.setattr(type(POINTWISE), "loss", loss)
                raise Killed
            return loss(self, model, examples)

        monkeypatch.setattr(type(POINTWISE), "loss", dying)

    yield arm


@pytest.mark.parametrize("step", [5, *(pytest.param(step, marks=pytest.mark.slow) for step in (1, 4, 6))])
def test_killed_between_checkpoints_it_ends_with_the_same_bits(
    pico_llm: Path, tmp_path: Path, kill: Callable[[int], None], capsys: pytest.CaptureFixture[str], step: int
) -> None:
    groups, words = random_groups(3, 12), {"checkpoint_steps": 2, "batch_tokens": 10_000}
    expected = train(pico_llm, tmp_path / "whole", groups, **words)
    kill(step)
    with pytest.raises(Killed):
        train(pico_llm, tmp_path / "killed", groups, **words)
    capsys.readouterr()
    found = train(pico_llm, tmp_path / "killed", groups, **words)
    done = 2 * ((step - 1) // 2)
    assert (f"resuming from checkpoint of step {done} of 6 steps" in capsys.readouterr().out) == (done > 0)
    assert_same(tmp_path / "whole", tmp_path / "killed")
    assert found == expected


def test_dropout_and_adam_go_on_where_they_were(pico_llm: Path, tmp_path: Path, kill: Callable[[int], None]) -> None:
    groups = random_groups(3, 12)

    def job(name: str) -> Job:
        made = make_job(pico_llm, tmp_path / name, checkpoint_steps=2, batch_tokens=10_000, weight_decay=0.1)
        made.lora.dropout = 0.3
        return made

    fine_tune(POINTWISE, groups, job("whole"))
    kill(4)
    with pytest.raises(Killed):
        fine_tune(POINTWISE, groups, job("killed"))
    fine_tune(POINTWISE, groups, job("killed"))
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_a_checkpoint_that_was_being_written_is_not_gone_on_from(
    pico_llm: Path, tmp_path: Path, kill: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    groups, words = random_groups(3, 12), {"checkpoint_steps": 2, "batch_tokens": 10_000}
    train(pico_llm, tmp_path / "whole", groups, **words)
    kill(6)
    with pytest.raises(Killed):
        train(pico_llm, tmp_path / "killed", groups, **words)
    (half,) = tmp_path.glob("killed.checkpoints/*/checkpoint-4")
    (half / COMPLETE).unlink()
    (half / "adapter_model.safetensors").write_bytes(b"half")
    train(pico_llm, tmp_path / "killed", groups, **words)
    assert "resuming from checkpoint of step 2 of 6 steps" in capsys.readouterr().out
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_checkpoints_of_other_settings_are_never_gone_on_from(
    pico_llm: Path, tmp_path: Path, kill: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    groups, words = random_groups(3, 12), {"checkpoint_steps": 2, "batch_tokens": 10_000}
    kill(6)
    with pytest.raises(Killed):
        train(pico_llm, tmp_path / "run", groups, **words)
    train(pico_llm, tmp_path / "run", groups, **words, clip=0.5)
    train(pico_llm, tmp_path / "whole", groups, **words, clip=0.5)
    assert "resuming" not in capsys.readouterr().out
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("other", ["task", "trainer", "task's code"])
def test_checkpoints_of_another_task_or_other_code_are_never_gone_on_from(
    pico_llm: Path,
    tmp_path: Path,
    kill: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    other: str,
) -> None:
    groups, words = random_groups(3, 12), {"checkpoint_steps": 2, "batch_tokens": 10_000}
    kill(6)
    with pytest.raises(Killed):
        train(pico_llm, tmp_path / "run", groups, **words)
    task = ChoiceTask(ChoiceSettings(), [[17], [18]]) if other == "task" else POINTWISE  # other labels
    if other == "trainer":
        monkeypatch.setattr(trainers, "hash_code", lambda *_: "edited")
    if other == "task's code":
        monkeypatch.setattr(trainers, "hash_module_of", lambda *_: "edited")
    for name in ("run", "whole"):
        fine_tune(task, groups, make_job(pico_llm, tmp_path / name, **words))
    assert "resuming" not in capsys.readouterr().out
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_a_process_killed_while_it_writes_leaves_what_can_be_gone_on_from(pico_llm: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of a checkpoint's files: the next start goes on from the one before."""
    code = """
import os, signal, sys
from pathlib import Path
from test_choice_training import POINTWISE, random_groups
from test_trainer import make_job
from transformers import Trainer
from kaggle_llm.training.trainer import fine_tune

save = Trainer._save_optimizer_and_scheduler
def dying(self, folder):
    if self.state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, folder)
if "die" in sys.argv:
    Trainer._save_optimizer_and_scheduler = dying
fine_tune(POINTWISE, random_groups(3, 12), make_job(Path(sys.argv[1]), Path(sys.argv[2]), checkpoint_steps=2))
"""

    def start(*how: str) -> subprocess.CompletedProcess[str]:
        words = [forks.python(), "-c", code, str(pico_llm), str(tmp_path / "killed"), *how]
        here = Path(__file__).parent
        return subprocess.run(words, cwd=here, capture_output=True, text=True, timeout=120, check=False)

    assert start("die").returncode == -9
    half = list(tmp_path.glob("killed.checkpoints/*/checkpoint-4"))
    assert len(half) == 1 and not (half[0] / COMPLETE).exists()
    again = start()
    assert again.returncode == 0, again.stderr
    assert "resuming from checkpoint of step 2 of 6 steps" in again.stdout
    fine_tune(POINTWISE, random_groups(3, 12), make_job(pico_llm, tmp_path / "whole", checkpoint_steps=2))
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_checkpoints_open_the_latest_whole_one(tmp_path: Path) -> None:
    made, other = (Checkpoints(tmp_path / "run", {"seed": seed}) for seed in (0, 1))
    assert made.folder != other.folder and made.open() is None
    for step in (2, 10, 12):
        (made.folder / f"checkpoint-{step}").mkdir()
        if step < 12:
            made.complete(step)
    assert made.open() == made.folder / "checkpoint-10"
    assert not (made.folder / "checkpoint-12").exists()
    assert other.open() is None and not made.folder.exists()


# broken ------------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_at_its_step(broken_llm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"loss = nan at step 1: lower training.learning_rate"):
        train(broken_llm, tmp_path / "run", random_groups(1, 2))
    assert not list((tmp_path / "run").iterdir())


def test_a_broken_step_never_becomes_a_checkpoint(pico_llm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(loss|grad_norm) = (nan|inf) at step [2-6]"):
        train(pico_llm, tmp_path / "run", random_groups(6, 12), learning_rate=1e30, warmup=0.0, checkpoint_steps=1)
    for path in tmp_path.glob("run.checkpoints/*/checkpoint-*"):
        assert all(np.isfinite(weight).all() for weight in weights(path).values())
    assert list(tmp_path.glob("run.checkpoints/*/checkpoint-*")), "the last good one stays"


def test_a_gpu_that_is_too_small_is_reported_with_the_way_out(
    pico_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def too_much(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(POINTWISE), "loss", too_much)
    way_out = r"out of GPU memory: .* Lower training.batch_tokens, .*checkpointing=true, training.dtype=.*qlora"
    with pytest.raises(MemoryError, match=way_out):
        train(pico_llm, tmp_path / "run", random_groups(1, 2))
    assert not list((tmp_path / "run").iterdir())
    monkeypatch.setattr(trainers, "make_step_trainer", too_much)  # where the model is moved to the card
    with pytest.raises(MemoryError, match=way_out):
        train(pico_llm, tmp_path / "run", random_groups(1, 2))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_training_leaves_no_weights_behind(
    pico_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """On a GPU they would keep the card from the workers that come next; what they leave free is given back."""
    loaded: list[Any] = []
    left: list[int] = []

    def load(*args: Any, **kwargs: Any) -> Any:
        model = load_trainable(*args, **kwargs)
        loaded.extend(map(weakref.ref, model.parameters()))
        return model

    def release() -> None:
        release_device()
        left.append(sum(weight() is not None for weight in loaded))

    monkeypatch.setattr(trainers, "load_trainable", load)
    monkeypatch.setattr(trainers, "release_device", release)
    train(pico_llm, tmp_path / "run", random_groups(2, 2), method=method)
    assert loaded and left == [0]


KINDS = [("causal", "pico_llm"), ("sequence", "pico_llm"), ("token", "pico_encoder"), ("masked", "pico_encoder")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize(("kind", "base"), KINDS)
def test_every_trained_weight_is_in_single_precision(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: Any, base: str, dtype: Any
) -> None:
    """Frozen ones have the dtype of the settings."""
    monkeypatch.setattr(base_model, "check_precision", lambda _: None)  # float16 asks for a GPU
    model = load_trainable(request.getfixturevalue(base), kind, LoraSettings(r=4), TrainingSettings(dtype=dtype), 0)
    dtypes = {weight.requires_grad: set() for weight in model.parameters()}
    for weight in model.parameters():
        dtypes[weight.requires_grad].add(str(weight.dtype))
    assert dtypes == {True: {"torch.float32"}, False: {f"torch.{dtype}"}}


def test_a_head_beside_lora_learns_in_half_precision(pico_llm: Path, tmp_path: Path) -> None:
    """In bfloat16 itself a step of 2e-5 is below the last digit of most weights."""
    import torch

    settings = TrainingSettings(dtype="bfloat16")
    model = load_trainable(pico_llm, "sequence", LoraSettings(r=4), settings, 0, num_labels=2)
    head = [weight for name, weight in model.named_parameters() if "modules_to_save" in name]
    before = [weight.detach().clone() for weight in head]
    optimizer = torch.optim.AdamW(group_parameters(model, replace(settings, learning_rate=2e-5)))
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            model(input_ids=torch.tensor([[7, 8, 9]]), labels=torch.tensor([1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = [float((weight != old).float().mean()) for weight, old in zip(head, before, strict=True)]
    assert min(moved) > 0.99


@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
def test_states_of_8_bits_learn_nearly_as_those_of_32(pico_llm: Path, tmp_path: Path, optimizer: Any) -> None:
    groups = random_groups(4, 4)
    losses = {
        name: train(pico_llm, tmp_path / name, groups, method="full", learning_rate=1e-3, epochs=3, optimizer=name)
        for name in ("adamw", optimizer)
    }
    first, last = ([steps[i]["loss"] for steps in losses.values()] for i in (0, -1))
    assert first[0] == first[1] and last[0] < first[0]
    assert last[1] == pytest.approx(last[0], rel=0.05) and last[1] != last[0]


def test_4_bit_weights_under_fsdp_are_refused(pico_llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match=r"qlora under FSDP.*launch/ddp.yaml, or set lora.method=lora"):
        make_job(pico_llm, tmp_path / "run", method="qlora")


def test_precision_that_the_machine_has_not_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from kaggle_llm.training.base_model import check_precision

    with pytest.raises(ValueError, match=r"float16 needs a GPU: set training.dtype=float32"):
        check_precision("float16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    check_precision("float16")
    with pytest.raises(ValueError, match=r"bfloat16, but Tesla T4 has none: set training.dtype=float16"):
        check_precision("bfloat16")


def test_an_example_longer_than_the_context_is_refused_and_counted(pico_llm: Path, tmp_path: Path) -> None:
    long = TokenGroup([7] * 1025, [(8,), (9,)], (1.0, 0.0))
    with pytest.raises(
        ValueError, match=r"1 of 3 examples are longer than the model's context of 1024 tokens, .* 1027"
    ):
        train(pico_llm, tmp_path / "run", [*random_groups(1, 2), long])


# learning rates ----------------------------------------------------------------------------------------------------


def test_each_part_has_the_learning_rate_of_its_setting(pico_llm: Path) -> None:
    settings = TrainingSettings(
        learning_rate=1.0, lora_b_learning_rate=2.0, head_learning_rate=3.0, embedding_learning_rate=4.0
    )
    model = trainers.load_trainable(pico_llm, "sequence", LoraSettings(r=4), settings, 0, num_labels=2)
    rates = {group["lr"]: len(group["params"]) for group in group_parameters(model, settings)}
    assert rates == {1.0: 14, 2.0: 14, 3.0: 1}
    whole = trainers.load_trainable(pico_llm, "causal", LoraSettings("full"), settings, 0)
    by_rate = {group["lr"]: group["params"] for group in group_parameters(whole, settings)}
    assert by_rate[4.0][0] is whole.get_input_embeddings().weight and len(by_rate[4.0]) == 1
    assert choose_rate("base_model.model.score.modules_to_save.default.weight", False, settings) == 3.0
    assert choose_rate("classifier.dense.weight", False, settings) == 3.0
    assert choose_rate("model.layers.0.mlp.up_proj.weight", False, settings) == 1.0


def test_vectors_are_not_decayed(pico_llm: Path) -> None:
    settings = TrainingSettings(weight_decay=0.1)
    model = trainers.load_trainable(pico_llm, "causal", LoraSettings("full"), settings, 0)
    decay = {group["weight_decay"]: {p.ndim for p in group["params"]} for group in group_parameters(model, settings)}
    assert decay == {0.1: {2}, 0.0: {1}}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("linear", [0.0, 0.5, 1.0, 2 / 3, 1 / 3]), ("cosine", [0.0, 0.5, 1.0, 0.75, 0.25])],
)
def test_the_rate_warms_up_and_falls(pico_llm: Path, tmp_path: Path, schedule: str, expected: list[float]) -> None:
    steps = train(pico_llm, tmp_path / "run", random_groups(2, 10), warmup=0.4, learning_rate=1e-3, schedule=schedule)
    assert [row["learning_rate"] * 1e3 for row in steps] == pytest.approx(expected)
