"""Packed groups give the losses and gradients of prompts alone; the trainer learns, logs and repeats itself."""

import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from kaggle_llm.prompts import TokenGroup
from kaggle_llm.training.packing import pack, within_budget
from kaggle_llm.training.reranker import LoraSettings, TrainingSettings, group_loss, train_reranker

if TYPE_CHECKING:
    import torch

LABELS = [[266], [265]]  # " Yes", " No"
LORA = LoraSettings(r=4, alpha=8)
BY_HAND = [TokenGroup([11, 12], [[21, 22], [31]], 1), TokenGroup([13], [[41], [42, 43]], 0)]
VISIBLE = """
x........
xx.......
xxx......
xxxx.....
xx..x....
.....x...
.....xx..
.....x.x.
.....x.xx
"""


def random_groups(seed: int, count: int, candidates: int = 4) -> list[TokenGroup]:
    """Shared parts and candidates of different lengths, some of one token."""
    rng = random.Random(seed)

    def tokens(longest: int) -> list[int]:
        return rng.choices(range(6, 560), k=rng.randint(1, longest))

    return [
        TokenGroup(tokens(30), [tokens(9) for _ in range(rng.randint(2, candidates))], rng.randint(0, 1))
        for _ in range(count)
    ]


def literal_loss(model: Any, groups: Sequence[TokenGroup]) -> "torch.Tensor":
    """Every prompt alone: mean over groups of −log softmax(logit yes − logit no)[right]."""
    import torch

    losses = []
    for group in groups:
        ends = [model(torch.tensor([[*group.shared, *tokens]])).logits[0, -1] for tokens in group.candidates]
        odds = torch.stack([end[266] - end[265] for end in ends])
        losses.append(odds.logsumexp(0) - odds[group.right])
    return torch.stack(losses).mean()


def train(
    base: Path, folder: Path, groups: Sequence[TokenGroup], seed: int = 0, **changes: Any
) -> list[dict[str, Any]]:
    """Train into `folder` and return its log."""
    settings = TrainingSettings(**({"learning_rate": 1e-2, "groups_per_step": 2} | changes))
    train_reranker(base, groups, LABELS, LORA, settings, seed, folder)
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def adapter(folder: Path) -> dict[str, Any]:
    from safetensors.numpy import load_file

    return load_file(folder / "adapter_model.safetensors")


def test_a_pack_is_as_made_by_hand() -> None:
    made = pack(BY_HAND)
    assert made.ids.tolist() == [11, 12, 21, 22, 31, 13, 41, 42, 43]
    assert made.positions.tolist() == [0, 1, 2, 3, 2, 0, 1, 1, 2]
    assert made.last.tolist() == [3, 4, 6, 8]
    assert made.group.tolist() == [0, 0, 1, 1]
    assert made.right.tolist() == [False, True, True, False]
    assert made.visible.tolist() == [[sign == "x" for sign in line] for line in VISIBLE.split()]


def test_groups_are_kept_up_to_the_first_that_breaks_the_budget() -> None:
    big, small = BY_HAND  # 5 and 4 tokens
    assert [len(big), len(small)] == [5, 4]
    assert within_budget([big, small, big], 14) == [big, small, big]
    assert within_budget([big, small, big], 13) == [big, small]
    assert within_budget([small, big, small], 8) == [small]
    assert within_budget([big, small], 4) == []


@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_packed_loss_is_that_of_prompts_alone(pico_llm: Path, with_lora: Callable[[Path], Any], count: int) -> None:
    import torch

    model, groups = with_lora(pico_llm), random_groups(count, count)
    with torch.no_grad():
        packed, literal = group_loss(model, pack(groups), LABELS), literal_loss(model, groups)
    assert packed.item() == pytest.approx(literal.item(), abs=1e-5)
    assert abs(literal.item() - math.log(3)) > 1e-3  # not what a model without opinion has


def test_gradients_of_the_adapter_are_those_of_prompts_alone(pico_llm: Path, with_lora: Callable[[Path], Any]) -> None:
    import torch

    groups, found = random_groups(3, 4), []
    for loss_of in (lambda model: group_loss(model, pack(groups), LABELS), lambda model: literal_loss(model, groups)):
        model = with_lora(pico_llm)
        loss_of(model).backward()
        found.append({name: weight.grad for name, weight in model.named_parameters() if "lora_" in name})
    packed, literal = found
    assert len(literal) == 2 * 7 * 2  # A and B of seven matrices in two layers
    for name, gradient in literal.items():
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(packed[name], gradient, atol=1e-4, rtol=0)


def test_training_lowers_the_loss_on_its_groups(pico_llm: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    groups = random_groups(5, 6)
    train(pico_llm, tmp_path / "run", groups * 6, warmup=0.0)
    base = AutoModelForCausalLM.from_pretrained(pico_llm, dtype=torch.float32)
    with torch.no_grad():
        before = literal_loss(base, groups).item()
        after = literal_loss(PeftModel.from_pretrained(base, tmp_path / "run"), groups).item()
    assert after < 0.5 * before


def test_training_leaves_an_adapter_and_a_log_of_every_step(pico_llm: Path, tmp_path: Path) -> None:
    rows = train(pico_llm, tmp_path / "run", random_groups(6, 7), groups_per_step=2)
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in (tmp_path / "run").iterdir()}
    steps = [row for row in rows if "loss" in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4]  # the last one of one group
    assert all(math.isfinite(row["loss"]) for row in steps)


@pytest.mark.parametrize("groups_per_pack", [1, 2, 6])
def test_a_step_takes_the_mean_over_its_groups(pico_llm: Path, tmp_path: Path, groups_per_pack: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    groups = random_groups(7, 6)
    changes = {"groups_per_step": 6, "groups_per_pack": groups_per_pack, "warmup": 0.0, "learning_rate": 1e-3}
    (row, *_) = train(pico_llm, tmp_path / "run", groups, **changes)
    with torch.no_grad():
        expected = literal_loss(AutoModelForCausalLM.from_pretrained(pico_llm, dtype=torch.float32), groups)
    assert row["loss"] == pytest.approx(expected.item(), abs=1e-3)


def test_training_is_the_same_for_a_seed_only(pico_llm: Path, tmp_path: Path) -> None:
    groups = random_groups(8, 6)
    for name, seed in {"first": 1, "again": 1, "other": 2}.items():
        train(pico_llm, tmp_path / name, groups, seed)
    first, again, other = (adapter(tmp_path / name) for name in ("first", "again", "other"))
    assert first.keys() == again.keys() == other.keys()
    for name, weight in first.items():
        np.testing.assert_array_equal(weight, again[name])
        assert np.abs(weight).max() > 0
        assert not np.array_equal(weight, other[name])


def test_only_groups_within_the_budget_are_trained_on(pico_llm: Path, tmp_path: Path) -> None:
    groups = random_groups(9, 6)
    budget = sum(len(group) for group in groups[:3])
    train(pico_llm, tmp_path / "cut", groups, tokens=budget)
    train(pico_llm, tmp_path / "three", groups[:3])
    for name, weight in adapter(tmp_path / "cut").items():
        np.testing.assert_array_equal(weight, adapter(tmp_path / "three")[name])


def test_a_budget_below_the_first_group_is_refused(pico_llm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training.tokens = 4: not even the first of 2 groups"):
        train(pico_llm, tmp_path / "run", BY_HAND, tokens=4)


def test_a_loss_that_is_not_finite_stops_at_its_step(broken_llm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="loss = nan at step 0"):
        train(broken_llm, tmp_path / "run", BY_HAND)
    assert not (tmp_path / "run" / "adapter_model.safetensors").exists()


def test_a_huge_learning_rate_is_named_with_the_step_it_broke(pico_llm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"at step [1-4]: lower training.learning_rate"):
        train(pico_llm, tmp_path / "run", random_groups(6, 8), learning_rate=1e30, warmup=0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "group_size = 1"),
        ({"groups_per_step": 8, "groups_per_pack": 3}, "groups_per_step = 8 is no multiple of groups_per_pack = 3"),
    ],
)
def test_settings_that_contradict_themselves_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**changes)
