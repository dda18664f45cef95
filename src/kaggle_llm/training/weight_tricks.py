"""The tricks of weights among `training.tricks`: their average, a head that is trained first, adversarial weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from kaggle_llm.base import processes
from kaggle_llm.training.callbacks import checkpoint_folder, make_callback
from kaggle_llm.training.optimizer import HEAD_PARAMETER
from kaggle_llm.training.settings import TrainingSettings, TrickSettings
from kaggle_llm.training.tricks import LOSS_TRICKS
from kaggle_llm.training.weight_copies import WeightCopy

OF_SHARDS = ("ema", "awp", "freeze")  # they read and write whole weights


def check_trainer(trainer: Any, training: TrainingSettings, task_is_tricked: bool) -> None:
    """Raises ValueError for a trick that a trainer does not have, or that its launcher makes impossible."""
    chosen, watch = training.tricks.chosen(), training.watch
    if not task_is_tricked:
        unknown = [name for name in chosen if name in (*LOSS_TRICKS, "awp")]
        unknown = [f"tricks.{name}" for name in unknown] + (["watch"] if watch.rows else [])
        if unknown:
            raise ValueError(
                f"training: {', '.join(unknown)}: {type(trainer).__name__} does not support it: leave it out"
            )
    whole = [f"tricks.{name}" for name in OF_SHARDS if name in chosen] + ["watch.keep=best"] * (watch.keep == "best")
    if whole and (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
        raise ValueError(
            f"training: {', '.join(whole)}: each process holds only a part of the weights: launch with launch/ddp.yaml"
        )
    if "freeze" in chosen and processes.world() > 1:
        raise ValueError("training.tricks.freeze: DDP asks for every weight's gradient: leave it out, or take one GPU")


def attach_average(trainer: Any, decay: float, latest: Path | None) -> WeightCopy | None:
    """Keep the exponential moving average s ← d·s + (1 − d)·w after each step t, d = min(decay, (1 + t) / (10 + t)).

    The smaller d of the first steps forgets the untrained weights (as TensorFlow's ExponentialMovingAverage does).
    latest: the checkpoint from which the training goes on. None for decay = 0.
    """
    if not decay:
        return None
    average = WeightCopy("average", trainer.model)

    def begin(args: Any, state: Any, control: Any, **_: Any) -> None:
        average.load(latest) if latest else average.take()

    def move(args: Any, state: Any, control: Any, **_: Any) -> None:
        average.move_towards(1 - min(decay, (1 + state.global_step) / (10 + state.global_step)))

    def save(args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            average.save(checkpoint_folder(args, state))

    trainer.add_callback(make_callback(on_train_begin=begin, on_step_end=move, on_save=save))
    return average


def attach_freezing(trainer: Any, share: float) -> None:
    """Train only the head in the first `share` of the steps; raises ValueError for a model without a new head."""
    if not share:
        return
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    body = [weight for name, weight in trained.items() if "lora_" in name or not HEAD_PARAMETER.search(name)]
    if len(body) == len(trained):
        raise ValueError("training.tricks.freeze trains only the head at first, and this model has none: leave it out")

    def choose(args: Any, state: Any, control: Any, **_: Any) -> None:
        for weight in body:
            weight.requires_grad_(state.global_step >= share * state.max_steps)

    trainer.add_callback(make_callback(on_step_begin=choose))


@contextmanager
def move_against(model: Any, size: float) -> Iterator[None]:
    """Inside, each trained matrix w with gradient g is w + size·‖w‖·g/‖g‖.

    Source: Wu, Xia, Wang, Adversarial Weight Perturbation Helps Robust Generalization, 2020, equations 8 to 10, one
    step. A matrix that is zero, as LoRA's B at first, does not move.
    """
    import torch

    matrices = [weight for weight in model.parameters() if weight.grad is not None and weight.ndim > 1]
    before = [weight.detach().clone() for weight in matrices]
    with torch.no_grad():
        for weight in matrices:
            weight.add_(weight.grad * (size * weight.norm() / weight.grad.norm().clamp_min(1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            for weight, own in zip(matrices, before, strict=True):
                weight.copy_(own)


def choose_adversary(tricks: TrickSettings) -> Callable[[Any], AbstractContextManager[None]] | None:
    """move_against as the settings say; None for none."""
    return partial(move_against, size=tricks.awp) if tricks.awp else None
