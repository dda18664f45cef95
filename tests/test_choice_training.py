"""The choice task: losses and gradients of packed examples are those of a literal reference, prompt by prompt."""

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kaggle_llm.engines.prompts import TokenGroup
from kaggle_llm.tasks.choice_training import ChoiceSettings, ChoiceTask
from kaggle_llm.tasks.distillation import DistillationSettings

if TYPE_CHECKING:
    import torch

YES, NO = 266, 265  # " Yes", " No" of the throwaway tokenizer
POINTWISE = ChoiceTask(ChoiceSettings(), [[YES], [NO]])
LABELS = [[301], [302], [303]]


def random_groups(seed: int, count: int, soft: bool = False) -> list[TokenGroup]:
    """Shared parts and candidates of different lengths, some of one token."""
    rng = random.Random(seed)

    def tokens(longest: int) -> list[int]:
        return rng.choices(range(6, 560), k=rng.randint(1, longest))

    def target(size: int) -> tuple[float, ...]:
        right = rng.randrange(size)
        weights = [rng.random() if soft else float(i == right) for i in range(size)]
        return tuple(weight / sum(weights) for weight in weights)

    sizes = [rng.randint(2, 4) for _ in range(count)]
    return [TokenGroup(tokens(30), [tokens(9) for _ in range(size)], target(size)) for size in sizes]


def labelled(groups: Sequence[TokenGroup]) -> list[TokenGroup]:
    """The shared parts as prompts with a target over three labels."""
    rng = random.Random(9)
    return [TokenGroup(g.shared, [()], rng.choice([(1.0, 0.0, 0.0), (0.2, 0.5, 0.3)])) for g in groups]


def literal_pointwise(model: Any, groups: Sequence[TokenGroup]) -> "torch.Tensor":
    """Every prompt alone: Σ over groups of −Σ_i target_i · log softmax(logit yes − logit no)_i."""
    import torch

    losses = []
    for group in groups:
        ends = [model(torch.tensor([[*group.shared, *tokens]])).logits[0, -1] for tokens in group.candidates]
        odds = torch.stack([end[YES] - end[NO] for end in ends])
        losses.append(sum(wanted * (odds.logsumexp(0) - one) for wanted, one in zip(group.target, odds, strict=True)))
    return torch.stack(losses).sum()


def literal_labels(model: Any, examples: Sequence[TokenGroup]) -> "torch.Tensor":
    """The full-vocabulary softmax at the last position, restricted to the labels by hand and renormalised."""
    import torch

    losses = []
    for example in examples:
        p = model(torch.tensor([list(example.shared)])).logits[0, -1].softmax(-1)
        restricted = [p[label[0]] for label in LABELS]
        total = sum(restricted)
        pairs = zip(example.target, restricted, strict=True)
        losses.append(-sum(wanted * (one / total).log() for wanted, one in pairs))
    return torch.stack(losses).sum()


@pytest.fixture
def plain(pico_llm: Path, with_lora: Callable[..., Any]) -> Any:
    return with_lora(pico_llm)


@pytest.fixture
def packed(pico_llm: Path, with_lora: Callable[..., Any]) -> Any:
    return with_lora(pico_llm, **POINTWISE.config())


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_pointwise_loss_is_the_literal_listwise_softmax(plain: Any, packed: Any, count: int, soft: bool) -> None:
    import torch

    groups = random_groups(count, count, soft)
    with torch.no_grad():
        found, literal = POINTWISE.loss(packed, groups), literal_pointwise(plain, groups)
    assert found.item() == pytest.approx(literal.item(), abs=1e-5 * count)
    assert abs(literal.item() / count - math.log(3)) > 1e-3  # not what a model without opinion has


def test_label_loss_is_the_full_softmax_restricted_by_hand(plain: Any, packed: Any) -> None:
    import torch

    examples = labelled(random_groups(4, 6))
    task = ChoiceTask(ChoiceSettings(form="labels"), LABELS)
    with torch.no_grad():
        found, literal = task.loss(packed, examples), literal_labels(plain, examples)
    assert found.item() == pytest.approx(literal.item(), abs=5e-5)


def test_gradients_of_the_adapter_are_those_of_prompts_alone(plain: Any, packed: Any) -> None:
    import torch

    groups = random_groups(3, 4)
    POINTWISE.loss(packed, groups).backward()
    literal_pointwise(plain, groups).backward()
    expected = {name: weight.grad for name, weight in plain.named_parameters() if "lora_" in name}
    assert len(expected) == 2 * 7 * 2  # A and B of seven matrices in two layers
    for name, weight in packed.named_parameters():
        if "lora_" in name:
            assert expected[name].abs().max() > 1e-3
            torch.testing.assert_close(weight.grad, expected[name], atol=1e-3, rtol=1e-4)


def test_a_teacher_changes_the_loss_as_the_formula_says(plain: Any, packed: Any) -> None:
    """(1 − w)·CE + w·T²·KL(teacher ‖ student) + c·(1 − cos), written out."""
    import torch

    (group,) = random_groups(5, 1)
    teacher = tuple(float(n) for n in range(len(group.target)))
    settings = DistillationSettings(weight=0.3, temperature=2.0, cosine=0.7)
    taught = TokenGroup(group.shared, group.candidates, group.target, teacher)
    with torch.no_grad():
        found = ChoiceTask(ChoiceSettings(), [[YES], [NO]], settings).loss(packed, [taught]).item()
        ends = [plain(torch.tensor([[*group.shared, *tokens]])).logits[0, -1] for tokens in group.candidates]
    odds = [(end[YES] - end[NO]).item() for end in ends]

    def softmax(values: Sequence[float], heat: float) -> list[float]:
        total = sum(math.exp(v / heat) for v in values)
        return [math.exp(v / heat) / total for v in values]

    p, q, hot = softmax(teacher, 2.0), softmax(odds, 2.0), softmax(odds, 1.0)
    ce = -sum(t * math.log(h) for t, h in zip(group.target, hot, strict=True))
    kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    cos = sum(a * b for a, b in zip(p, q, strict=True)) / math.dist(p, [0] * len(p)) / math.dist(q, [0] * len(q))
    assert found == pytest.approx(0.7 * ce + 0.3 * 4.0 * kl + 0.7 * (1 - cos), abs=1e-4)


@pytest.mark.parametrize(
    ("labels", "form", "message"),
    [
        ([[1, 2], [3]], "labels", "have \\[2, 1\\] tokens: training needs one token each"),
        ([[1], [1]], "labels", "two of them are the same token"),
        ([[1], [2], [3]], "pointwise", "need exactly two"),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(labels: list[list[int]], form: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChoiceTask(ChoiceSettings(form=form), labels)


def test_a_group_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match="group_size = 1"):
        ChoiceSettings(group_size=1)


def test_examples_of_another_form_are_refused() -> None:
    (group,) = random_groups(5, 1)
    with pytest.raises(ValueError, match=r"choice.form = labels: an example has \d candidates"):
        ChoiceTask(ChoiceSettings(form="labels"), LABELS).weight(group)
    with pytest.raises(ValueError, match=r"choice.form = pointwise: .* a target of 3 values for 1 options"):
        POINTWISE.weight(TokenGroup([1], [()], (1.0, 0.0, 0.0)))
