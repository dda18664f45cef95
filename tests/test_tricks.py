"""Every trick is its formula, is off by default, and is refused where it has no meaning."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_choice_training import POINTWISE, random_groups
from test_heads import CLASSES, LEVELS, VALUE, load_head, make_examples
from test_trainer import make_job, weights

from kaggle_llm.tasks.heads_training import HeadExample, HeadTask
from kaggle_llm.tasks.writing_training import GenerationTask
from kaggle_llm.training import trainer as trainers
from kaggle_llm.training.base_model import load_trainable, trainable_parameters
from kaggle_llm.training.callbacks import make_callback
from kaggle_llm.training.optimizer import group_parameters
from kaggle_llm.training.settings import LoraSettings, TrainingSettings, TrickSettings
from kaggle_llm.training.trainer import Job, fine_tune
from kaggle_llm.training.tricks import apply_tricks, diverge, find_head, sample_head, weigh_classes
from kaggle_llm.training.weight_tricks import check_trainer, move_against

ALL = LoraSettings(method="full")


def tricked(task: Any, examples: Any, **tricks: Any) -> Any:
    return apply_tricks(task, examples, TrickSettings(**tricks))


def softmax(row: np.ndarray) -> np.ndarray:
    return np.exp(row) / np.exp(row).sum()


@pytest.fixture
def heads(pico_encoder: Path) -> dict[str, tuple[HeadTask, Any, list[HeadExample], np.ndarray]]:
    """Head's task → task, model, examples, logits."""
    import torch

    made = {}
    for settings in (CLASSES, LEVELS, VALUE):
        task, examples = HeadTask(settings), make_examples(settings)
        model = load_head(pico_encoder, task)
        with torch.no_grad():
            made[settings.task] = (task, model, examples, torch.stack(list(task.logits(model, examples))).numpy())
    return made


def test_none_is_on_by_default(heads: Any) -> None:
    task, _, examples, _ = heads["classification"]
    assert TrickSettings().chosen() == {}
    assert apply_tricks(task, examples, TrickSettings()) is task


def test_label_smoothing_gives_every_label_its_share(heads: Any) -> None:
    task, model, examples, logits = heads["classification"]
    expected = 0.0
    for row, example in zip(logits, examples, strict=True):
        target = 0.8 * np.array(example.target) + 0.2 / 4
        expected -= (target * np.log(softmax(row))).sum()
    found = tricked(task, examples, label_smoothing=0.2).loss(model, examples)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_label_smoothing_of_answers_moves_them_towards_a_half(heads: Any) -> None:
    task, model, examples, logits = heads["ordinal"]
    p = 1 / (1 + np.exp(-logits))
    target = 0.8 * np.array([example.target for example in examples]) + 0.1
    expected = -(target * np.log(p) + (1 - target) * np.log(1 - p)).sum()
    found = tricked(task, examples, label_smoothing=0.2).loss(model, examples)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_focal_loss_counts_less_what_is_right_already(heads: Any) -> None:
    task, model, examples, logits = heads["classification"]
    targets = np.array([example.target for example in examples])
    p = np.array([softmax(row) for row in logits])
    found = tricked(task, examples, focal=2.0).loss(model, examples)
    assert found.item() == pytest.approx(-(targets * (1 - p) ** 2 * np.log(p)).sum(), rel=1e-5)
    task, model, examples, logits = heads["ordinal"]
    t, p = np.array([example.target for example in examples]), 1 / (1 + np.exp(-logits))
    expected = -(t * (1 - p) ** 2 * np.log(p) + (1 - t) * p**2 * np.log(1 - p)).sum()
    assert tricked(task, examples, focal=2.0).loss(model, examples).item() == pytest.approx(expected, rel=1e-5)


def test_classes_count_by_their_inverse_frequency(heads: Any) -> None:
    assert weigh_classes([(1, 0), (1, 0), (1, 0), (0, 1)], 1.0) == pytest.approx([4 / 6, 2])
    assert weigh_classes([(1, 0), (1, 0), (1, 0), (0, 1)], 0.5) == pytest.approx([math.sqrt(4 / 6), math.sqrt(2)])
    assert weigh_classes([(1, 0), (1, 0)], 1.0) == [0.5, 1.0]
    task, model, examples, logits = heads["classification"]
    targets = np.array([example.target for example in examples])
    by_class = np.array(weigh_classes(targets.tolist(), 1.0))
    by_row = targets @ by_class
    plain = np.array([-(t * np.log(softmax(row))).sum() for row, t in zip(logits, targets, strict=True)])
    weighted = tricked(task, examples, class_weight=1.0)
    assert weighted.loss(model, examples).item() == pytest.approx((by_row * plain).sum(), rel=1e-5)
    assert [weighted.weight(example) for example in examples] == pytest.approx(list(by_row))


@pytest.mark.parametrize("base", ["pico_encoder", "pico_llm"])
def test_the_masks_before_a_head_are_averaged_over_their_losses(base: str, request: pytest.FixtureRequest) -> None:
    """The head of a model is linear in what it reads, so the literal masks are those of the same random numbers."""
    import torch
    from torch.nn.functional import dropout

    task, examples = HeadTask(CLASSES), make_examples(CLASSES)
    model = load_head(request.getfixturevalue(base), task)
    seen: list[Any] = []
    hook = find_head(model).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    sampled = tricked(task, examples, multi_sample_dropout=3)
    torch.manual_seed(7)
    found = sampled.loss(model, examples).item()
    hook.remove()
    torch.manual_seed(7)
    samples = [find_head(model)(dropout(seen[0], rate)) for rate in (0.1, 0.3, 0.5)]
    ends = [len(example.ids) - 1 for example in examples]
    rows = range(len(examples))
    picked = [sample if sample.ndim == 2 else sample[list(rows), ends] for sample in samples]
    literal = [task.losses(sample.unbind(), examples).sum().item() for sample in picked]
    assert found == pytest.approx(sum(literal) / 3, rel=1e-5)
    assert len({round(value, 4) for value in literal}) == 3
    assert task.loss(model, examples).item() != pytest.approx(found, rel=1e-4), "without the trick it is the plain one"


def test_a_sampled_head_answers_mask_after_mask() -> None:
    import torch

    head = torch.nn.Linear(4, 2)
    with sample_head(head, 3):
        assert head(torch.ones(5, 4)).shape == (5, 6)
    assert head(torch.ones(5, 4)).shape == (5, 2)


def test_two_passes_are_pulled_together(heads: Any) -> None:
    import torch

    task, model, examples, _ = heads["classification"]
    both = tricked(task, examples, rdrop=0.7)
    model.train()
    torch.manual_seed(3)
    found = both.loss(model, examples).item()
    torch.manual_seed(3)
    with torch.no_grad():
        passes = [torch.stack(list(task.logits(model, examples))).numpy() for _ in range(2)]
    expected = 0.0
    for first, second, example in zip(*passes, examples, strict=True):
        p, q = softmax(first), softmax(second)
        expected -= (np.array(example.target) * (np.log(p) + np.log(q))).sum() / 2
        expected += 0.7 * ((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum()) / 2
    assert found == pytest.approx(expected, rel=1e-5)


def test_divergences_of_answers_and_numbers_by_hand() -> None:
    import torch

    first, second = torch.tensor([0.3, -1.0]), torch.tensor([1.1, 0.2])
    p, q = (1 / (1 + np.exp(-row.numpy())) for row in (first, second))
    kl = (
        p * np.log(p / q)
        + (1 - p) * np.log((1 - p) / (1 - q))
        + q * np.log(q / p)
        + (1 - q) * np.log((1 - q) / (1 - p))
    )
    assert diverge(first, second, "answers").item() == pytest.approx(kl.sum() / 2, rel=1e-5)
    assert diverge(first, second, "numbers").item() == pytest.approx(0.8**2 + 1.2**2, rel=1e-5)


def test_adversarial_weights_go_up_by_a_share_of_their_norm(heads: Any) -> None:
    task, model, examples, _ = heads["classification"]
    task.loss(model, examples).backward()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    plain = task.loss(model, examples).item()
    with move_against(model, 0.01):
        assert task.loss(model, examples).item() > plain
        for name, weight in model.named_parameters():
            moved = weight - before[name]
            if weight.ndim > 1 and weight.grad is not None:
                expected = 0.01 * before[name].norm() * weight.grad / weight.grad.norm()
                np.testing.assert_allclose(moved.detach(), expected, atol=1e-6)
            else:
                assert not moved.any()
    assert all((weight == before[name]).all() for name, weight in model.named_parameters())


def test_a_step_of_adversarial_weights_has_the_sum_of_both_gradients(
    pico_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """grad_norm of the log is that of the gradient by hand."""
    task, examples = HeadTask(CLASSES), make_examples(CLASSES)
    job = make_job(pico_encoder, tmp_path / "run", method="full", batch=3, tricks=TrickSettings(awp=0.05), clip=1e9)
    without = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = task.config()
    monkeypatch.setattr(HeadTask, "config", lambda self: config | without)
    fine_tune(task, examples, job)
    row = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])
    model = load_trainable(pico_encoder, "sequence", ALL, TrainingSettings(), 0, **task.config())
    (task.loss(model, examples) / 3).backward()
    with move_against(model, 0.05):
        (task.loss(model, examples) / 3).backward()
    grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert row["grad_norm"] == pytest.approx(math.sqrt(sum(float((grad**2).sum()) for grad in grads)), rel=1e-4)


def test_the_average_of_the_weights_is_what_is_saved(pico_llm: Path, tmp_path: Path) -> None:
    groups, words = random_groups(5, 2), {"learning_rate": 1e-3, "warmup": 0.0, "batch": 2, "epochs": 3}
    fine_tune(POINTWISE, groups, make_job(pico_llm, tmp_path / "run", tricks=TrickSettings(ema=0.25), **words))
    steps = record_steps(pico_llm, groups, make_job(pico_llm, tmp_path / "plain", **words))
    average = steps[0]
    for t, step in enumerate(steps[1:], start=1):
        d = min(0.25, (1 + t) / (10 + t))
        average = {name: d * average[name] + (1 - d) * step[name] for name in average}
    saved = weights(tmp_path / "run")
    assert len(saved) == len(average) and len(steps) == 4
    for name, weight in average.items():
        np.testing.assert_allclose(saved[name.replace(".default", "")], weight, atol=1e-6)


def record_steps(base: Path, groups: Any, job: Job) -> list[dict[str, np.ndarray]]:
    """The trained weights before a training and after each of its steps."""
    steps: list[dict[str, np.ndarray]] = []

    def note(*_: Any, model: Any, **__: Any) -> None:
        steps.append({name: weight.detach().numpy().copy() for name, weight in trainable_parameters(model)})

    made, ours = trainers.make_callbacks, make_callback(on_train_begin=note, on_step_end=note)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainers, "make_callbacks", lambda *args: [*made(*args), ours])
        fine_tune(POINTWISE, groups, job)
    return steps


@pytest.mark.parametrize(("share", "body_moves"), [(0.5, True), (0.99, False)])
def test_only_the_head_is_trained_at_first(pico_encoder: Path, tmp_path: Path, share: float, body_moves: bool) -> None:
    """One step of 99 %, or two of which the second is behind the half."""
    task, examples = HeadTask(CLASSES), make_examples(CLASSES)
    steps, words = (2 if body_moves else 1), {"method": "full", "batch": 3, "warmup": 0.0}
    job = make_job(pico_encoder, tmp_path / "run", epochs=steps, tricks=TrickSettings(freeze=share), **words)
    fine_tune(task, examples, job)
    base = load_trainable(pico_encoder, "sequence", ALL, TrainingSettings(), 0, **task.config())
    trained = weights(tmp_path / "run", "model.safetensors")
    moved = {name for name, weight in base.named_parameters() if not np.array_equal(weight.detach(), trained[name])}
    assert any("classifier" in name for name in moved)
    assert any("encoder" in name for name in moved) == body_moves


@pytest.mark.parametrize(("base", "kind"), [("pico_encoder", "sequence"), ("pico_llm", "causal")])
def test_lower_layers_learn_slower(base: str, kind: Any, request: pytest.FixtureRequest) -> None:
    settings = TrainingSettings(learning_rate=1.0, head_learning_rate=3.0, tricks=TrickSettings(layer_decay=0.5))
    config = {"num_labels": 2} if kind == "sequence" else {}
    model = load_trainable(request.getfixturevalue(base), kind, ALL, settings, 0, **config)
    rates = {id(weight): group["lr"] for group in group_parameters(model, settings) for weight in group["params"]}
    for name, weight in model.named_parameters():
        expected = 0.125 if "embed" in name else 0.25 if ".0." in name else 0.5 if ".1." in name else 1.0
        if "classifier" in name or "pooler" in name:
            expected = 3.0
        assert rates[id(weight)] == expected, name


@pytest.mark.parametrize(
    ("task", "tricks", "message"),
    [
        (GenerationTask(), {"focal": 2.0}, r"focal: need the logits of options, and GenerationTask has none"),
        (POINTWISE, {"multi_sample_dropout": 5}, r"multi_sample_dropout: need a head, ChoiceTask has none"),
        (HeadTask(VALUE), {"label_smoothing": 0.1}, r"need labels, and the targets are numbers: leave them out"),
        (HeadTask(LEVELS), {"class_weight": 1.0}, r"class_weight needs one label a row: set head.task=classification"),
    ],
)
def test_a_trick_without_a_meaning_is_refused(task: Any, tricks: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tricked(task, [], **tricks)


def test_a_model_without_dropout_has_nothing_to_compare(pico_llm: Path, tmp_path: Path) -> None:
    job = make_job(pico_llm, tmp_path / "run", tricks=TrickSettings(rdrop=1.0))
    with pytest.raises(ValueError, match=r"this model has none: set lora.dropout=0.1"):
        fine_tune(POINTWISE, random_groups(1, 2), job)
    with pytest.raises(ValueError, match=r"freeze trains only the head at first, and this model has none"):
        fine_tune(
            POINTWISE, random_groups(1, 2), make_job(pico_llm, tmp_path / "run", tricks=TrickSettings(freeze=0.5))
        )


def test_trainers_of_libraries_and_sharded_weights_refuse_what_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = SimpleNamespace(is_fsdp_enabled=True, is_deepspeed_enabled=False)
    with pytest.raises(ValueError, match=r"tricks.focal: SimpleNamespace does not support it: leave it out"):
        check_trainer(trainer, TrainingSettings(tricks=TrickSettings(focal=1.0, ema=0.9)), False)
    with pytest.raises(ValueError, match=r"tricks.ema: each process holds only a part of the weights: launch with"):
        check_trainer(trainer, TrainingSettings(tricks=TrickSettings(ema=0.9)), True)
    monkeypatch.setenv("WORLD_SIZE", "2")
    trainer.is_fsdp_enabled = False
    with pytest.raises(ValueError, match=r"freeze: DDP asks for every weight's gradient"):
        check_trainer(trainer, TrainingSettings(tricks=TrickSettings(freeze=0.5)), True)


@pytest.mark.parametrize("tricks", [{"ema": 1.0}, {"layer_decay": 0.0}, {"awp": -1.0}])
def test_values_outside_their_range_are_refused(tricks: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(tricks))} = "):
        TrickSettings(**tricks)
