"""The tricks of the loss among `training.tricks`: each is a task around another one.

What moves weights (average, freezing, adversarial weights) is in weight_tricks.py; layer-wise learning rates are
parameter groups (optimizer.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from kaggle_llm.engines.attention import inner_model
from kaggle_llm.training.settings import TrickSettings
from kaggle_llm.training.task import Task

if TYPE_CHECKING:
    import torch


LOSS_TRICKS = ("rdrop", "multi_sample_dropout", "label_smoothing", "focal", "class_weight")
TargetKind = Literal["shares", "answers", "numbers"]
"""shares: of the options, they sum to 1. answers: 0 or 1 for each option. numbers: any."""


@runtime_checkable
class LogitTask(Task[Any], Protocol):
    """A Task whose loss is made of the logits and the target of each example."""

    @property
    def targets(self) -> TargetKind: ...

    def logits(self, model: Any, examples: Sequence[Any]) -> Sequence[torch.Tensor]:
        """[options] an example."""

    def losses(self, logits: Sequence[torch.Tensor], examples: Sequence[Any]) -> torch.Tensor:
        """[examples]."""


def apply_tricks(task: Task[Any], examples: Sequence[Any], tricks: TrickSettings) -> Task[Any]:
    """The task with the tricks of the loss around it; raises ValueError where one does not fit."""
    names = [name for name in tricks.chosen() if name in LOSS_TRICKS]
    if not names:
        return task
    tricked = check_task(task, names)
    if tricks.focal:
        tricked = Focal(tricked, tricks.focal)
    if tricks.label_smoothing:
        tricked = Smoothed(tricked, tricks.label_smoothing)
    if tricks.class_weight:
        tricked = ClassWeighted(tricked, weigh_classes([example.target for example in examples], tricks.class_weight))
    if tricks.multi_sample_dropout:
        tricked = MultiSampleDropout(tricked, tricks.multi_sample_dropout)
    return RDrop(tricked, tricks.rdrop) if tricks.rdrop else tricked


def check_task(task: Task[Any], names: Sequence[str]) -> LogitTask:
    """The task; raises ValueError, with the way out, for tricks that have no meaning for it."""
    asked, kind = f"training.tricks: {', '.join(names)}", type(task).__name__
    if not isinstance(task, LogitTask):
        raise ValueError(f"{asked}: need the logits of options, and {kind} has none: leave them out")
    heads = {"multi_sample_dropout", "class_weight"} & set(names)
    if heads and task.kind not in ("sequence", "token"):
        raise ValueError(f"training.tricks: {', '.join(sorted(heads))}: need a head, {kind} has none: leave them out")
    if task.kind == "token" and "multi_sample_dropout" in names:
        raise ValueError(
            f"{asked}: multi_sample_dropout needs one state a text: set head.pooling=model, or leave it out"
        )
    if task.targets == "numbers" and {"label_smoothing", "focal", "class_weight"} & set(names):
        raise ValueError(f"{asked}: need labels, and the targets are numbers: leave them out, or set head.task=ordinal")
    if task.targets != "shares" and "class_weight" in names:
        raise ValueError(f"{asked}: class_weight needs one label a row: set head.task=classification, or leave it out")
    return task


class Tricked:
    """Wraps a task and passes on what the trick does not change."""

    def __init__(self, task: LogitTask) -> None:
        self.task, self.kind, self.padded, self.targets = task, task.kind, task.padded, task.targets

    def config(self) -> dict[str, Any]:
        return self.task.config()

    def length(self, example: Any) -> int:
        return self.task.length(example)

    def weight(self, example: Any) -> float:
        return self.task.weight(example)

    def logits(self, model: Any, examples: Sequence[Any]) -> Sequence[torch.Tensor]:
        return self.task.logits(model, examples)

    def losses(self, logits: Sequence[torch.Tensor], examples: Sequence[Any]) -> torch.Tensor:
        return self.task.losses(logits, examples)

    def loss(self, model: Any, examples: Sequence[Any]) -> torch.Tensor:
        return self.losses(self.logits(model, examples), examples).sum()


class Smoothed(Tricked):
    """Targets (1 − ε)·t + ε/k of k options, for answers of 0 and 1 (1 − ε)·t + ε/2.

    Source: Szegedy et al., Rethinking the Inception Architecture, 2015, section 7.
    """

    def __init__(self, task: LogitTask, share: float) -> None:
        super().__init__(task)
        self.share = share

    def smooth(self, example: Any) -> Any:
        even = 1 / len(example.target) if self.targets == "shares" else 0.5
        return replace(example, target=tuple((1 - self.share) * t + self.share * even for t in example.target))

    def losses(self, logits: Sequence[torch.Tensor], examples: Sequence[Any]) -> torch.Tensor:
        return self.task.losses(logits, [self.smooth(example) for example in examples])


class Focal(Tricked):
    """−Σ t·(1 − p)^γ·log p; of answers 0 and 1 also −(1 − t)·p^γ·log(1 − p).

    Source: Lin et al., Focal Loss for Dense Object Detection, 2017, equation 4.
    """

    def __init__(self, task: LogitTask, exponent: float) -> None:
        super().__init__(task)
        self.exponent = exponent

    def losses(self, logits: Sequence[torch.Tensor], examples: Sequence[Any]) -> torch.Tensor:
        """Raises ValueError for an example with a teacher."""
        import torch

        if any(example.teacher is not None for example in examples):
            raise ValueError("training.tricks.focal has no formula for a teacher's scores: leave out one of them")
        pairs = zip(logits, examples, strict=True)
        return torch.stack([self.of_row(row, row.new_tensor(example.target)) for row, example in pairs])

    def of_row(self, row: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if self.targets == "shares":
            logs = row.log_softmax(-1)
            return -(target * (1 - logs.exp()) ** self.exponent * logs).sum()
        yes, no = (log_sigmoid(sign * row) for sign in (1, -1))
        return -(target * no.exp() ** self.exponent * yes + (1 - target) * yes.exp() ** self.exponent * no).sum()


class ClassWeighted(Tricked):
    """Σᵢ wᵢ·lossᵢ / Σᵢ wᵢ, where wᵢ = Σ t·w of the row's classes."""

    def __init__(self, task: LogitTask, weights: Sequence[float]) -> None:
        super().__init__(task)
        self.weights = weights

    def weight(self, example: Any) -> float:
        return sum(t * w for t, w in zip(example.target, self.weights, strict=True)) * self.task.weight(example)

    def losses(self, logits: Sequence[torch.Tensor], examples: Sequence[Any]) -> torch.Tensor:
        losses = self.task.losses(logits, examples)
        return losses * losses.new_tensor([self.weight(example) for example in examples])


def weigh_classes(targets: Sequence[Sequence[float]], exponent: float) -> list[float]:
    """(n / (k·nⱼ))^exponent for each of k classes with nⱼ of n rows; 1 for a class without rows."""
    counts = [sum(column) for column in zip(*targets, strict=True)]
    return [(len(targets) / (len(counts) * count)) ** exponent if count else 1.0 for count in counts]


class MultiSampleDropout(Tricked):
    """The mean loss of several dropout masks before the head, which drop 10 to 50 % of what it reads.

    Source: Inoue, Multi-Sample Dropout for Accelerated Training and Better Generalization, 2019, section 3.
    """

    def __init__(self, task: LogitTask, samples: int) -> None:
        super().__init__(task)
        self.samples = samples

    def logits(self, model: Any, examples: Sequence[Any]) -> Sequence[torch.Tensor]:
        """[samples, options] an example."""
        with sample_head(find_head(model), self.samples):
            return [row.view(self.samples, -1) for row in self.task.logits(model, examples)]

    def losses(self, logits: Sequence[torch.Tensor], examples: Sequence[Any]) -> torch.Tensor:
        samples = [self.task.losses([row[k] for row in logits], examples) for k in range(self.samples)]
        return sum(samples[1:], samples[0]) / self.samples


def find_head(model: Any) -> Any:
    """The module that makes logits of hidden states."""
    inner = inner_model(model)
    return inner.score if hasattr(inner, "score") else inner.classifier


@contextmanager
def sample_head(head: Any, samples: int) -> Iterator[None]:
    """Inside, the head answers with `samples` times as many logits, of one mask after the other."""

    def answer(module: Any, inputs: tuple[torch.Tensor, ...], _: Any) -> torch.Tensor:
        import torch
        from torch.nn.functional import dropout

        rates = torch.linspace(0.1, 0.5, samples).tolist()
        return torch.cat([module.forward(dropout(inputs[0], rate)) for rate in rates], dim=-1)

    hook = head.register_forward_hook(answer)
    try:
        yield
    finally:
        hook.remove()


class RDrop(Tricked):
    """(loss₁ + loss₂) / 2 + α·(KL(p₁‖p₂) + KL(p₂‖p₁)) / 2 of two passes with different dropout.

    Of answers 0 and 1 the sum of their divergences, of numbers (z₁ − z₂)².
    Source: Liang et al., R-Drop, 2021, equation 4, halved: their α is twice ours.
    """

    def __init__(self, task: LogitTask, weight: float) -> None:
        super().__init__(task)
        self.share = weight

    def loss(self, model: Any, examples: Sequence[Any]) -> torch.Tensor:
        """Raises ValueError for a model without dropout."""
        if not has_dropout(model) and not isinstance(self.task, MultiSampleDropout):
            raise ValueError(
                "training.tricks.rdrop compares two passes with different dropout, and this model has none: set "
                "lora.dropout=0.1, or leave it out"
            )
        first, second = (self.task.logits(model, examples) for _ in range(2))
        losses = [self.task.losses(logits, examples).sum() for logits in (first, second)]
        apart = [diverge(*rows, self.targets) for rows in zip(first, second, strict=True)]
        return (losses[0] + losses[1]) / 2 + self.share * sum(apart[1:], apart[0])


def has_dropout(model: Any) -> bool:
    """Whether a module drops anything in training."""
    return any(type(module).__name__ == "Dropout" and module.p > 0 for module in model.modules())


def diverge(first: torch.Tensor, second: torch.Tensor, targets: TargetKind) -> torch.Tensor:
    """Half the sum of both divergences of two rows of logits, [options] or [samples, options] (then their mean)."""
    import torch

    if targets == "numbers":
        return ((first - second) ** 2).sum(-1).mean()
    if targets == "shares":
        logs = [row.log_softmax(-1) for row in (first, second)]
        return ((logs[0].exp() - logs[1].exp()) * (logs[0] - logs[1])).sum(-1).mean() / 2
    chances = [torch.sigmoid(row) for row in (first, second)]
    return ((chances[0] - chances[1]) * (first - second)).sum(-1).mean() / 2


def log_sigmoid(row: torch.Tensor) -> torch.Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(row)
