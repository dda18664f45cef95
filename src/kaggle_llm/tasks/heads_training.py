"""Trains a head on an encoder or a causal model: classes, levels, numbers or several labels of a row.

The head is new and starts at random: give it its own training.head_learning_rate. tasks/heads.py turns its logits into
predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kaggle_llm.base import records
from kaggle_llm.competition.competition import Competition
from kaggle_llm.tasks.distillation import DistillationSettings, soft_choice_loss
from kaggle_llm.tasks.heads import Head, HeadSettings, list_targets, pool
from kaggle_llm.training.padding import pad_for_head
from kaggle_llm.training.tricks import TargetKind

if TYPE_CHECKING:
    import polars as pl
    import torch

    from kaggle_llm.engines.model_kinds import ModelKind

PROBLEMS = {  # transformers' word for each task
    "classification": "single_label_classification",
    "regression": "regression",
    "ordinal": "multi_label_classification",
    "multilabel": "multi_label_classification",
}


@dataclass(frozen=True)
class HeadExample:
    ids: tuple[int, ...]
    target: tuple[float, ...]
    """Classification: a share for each label, sums to 1. Regression: a number for each target. Ordinal: see
    heads.ordinal_target. Multilabel: 0 or 1 for each label, or a probability."""
    teacher: tuple[float, ...] | None = None
    """A teacher's scores of the labels (log-probabilities up to a constant); for classification only."""


def name_outputs(settings: HeadSettings) -> list[str]:
    """A name for each of the head's logits."""
    if settings.task in ("regression", "multilabel"):
        return list(settings.targets)
    if settings.task == "ordinal":
        return [f"more than {label}" for label in settings.labels[:-1]]
    return list(settings.labels)


def check_targets(settings: HeadSettings, examples: Sequence[HeadExample]) -> None:
    """Raises ValueError where nothing can be learned: no example, or the same target in all of them.

    Call it with the examples of a fold before training on them.
    """
    if not examples:
        raise ValueError(f"no example to train a {settings.task} head on: the fold is empty")
    check_widths(settings, examples)
    targets = {example.target for example in examples}
    if len(targets) == 1:  # also one class as shares: they sum to 1
        raise ValueError(
            f"all {len(examples)} examples have the target {targets.pop()} for {name_outputs(settings)}: there is "
            f"nothing to learn; stratify the folds by the target"
        )


def check_widths(settings: HeadSettings, examples: Sequence[HeadExample]) -> None:
    """Raises ValueError for a target that is not as HeadExample.target describes it."""
    width = len(name_outputs(settings))
    for example in examples:
        target, is_classification = example.target, settings.task == "classification"
        if len(target) != width or not all(map(math.isfinite, target)):
            raise ValueError(f"target {target}: a {settings.task} head here has {width} finite value(s)")
        if is_classification and (min(target) < 0 or abs(sum(target) - 1) > 1e-3):
            raise ValueError(f"target {target}: shares of the labels are 0 or more and sum to 1")
        if settings.task == "multilabel" and not 0 <= min(target) <= max(target) <= 1:
            raise ValueError(f"target {target}: of multilabel each is between 0 and 1")
        if example.teacher is not None and (not is_classification or len(example.teacher) != width):
            raise ValueError(f"teacher {example.teacher}: only classification has one, with a score for each label")


class HeadTask:
    """Loss of a row with logits z and target t:

    classification: −Σ t·log softmax(z), with distillation where the example has a teacher.
    regression: (z − (t − mean) / scale)², its mean over the targets; mean and scale are those of HeadSettings.
    ordinal: −Σⱼ tⱼ·log σ(zⱼ) + (1 − tⱼ)·log(1 − σ(zⱼ)), a binary question "more than level j?" for each level but
    the highest. Source: Niu et al., Ordinal Regression with Multiple Output CNN for Age Estimation, 2016, equation 2
    without weights. (CORAL, Cao, Mirjalili, Raschka, 2020, has the same loss but one weight vector for all questions.)
    multilabel: the same of a question "this label?" for each label, its mean over the labels.

    A head with a pooling of its own is transformers' token head, whose answers are pooled (heads.pool).
    """

    padded = True

    def __init__(self, settings: HeadSettings, distillation: DistillationSettings | None = None) -> None:
        self.settings, self.distillation = settings, distillation or DistillationSettings()
        self.kind: ModelKind = "sequence" if settings.pooling == "model" else "token"

    def config(self) -> dict[str, Any]:
        names = name_outputs(self.settings) + ["attention"] * (self.settings.pooling == "attention")
        scales = self.settings.scales
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
            "problem_type": PROBLEMS[self.settings.task],
            **({records.TARGET_SCALES: scales} if scales else {}),
        }

    def length(self, example: HeadExample) -> int:
        return len(example.ids)

    def weight(self, example: HeadExample) -> float:
        return 1.0

    @property
    def targets(self) -> TargetKind:
        kinds: dict[str, TargetKind] = {"classification": "shares", "regression": "numbers"}
        return kinds.get(self.settings.task, "answers")

    def logits(self, model: Any, examples: Sequence[HeadExample]) -> Sequence[torch.Tensor]:
        """[outputs] an example, in float32."""
        rows: torch.Tensor = model(**pad_for_head(model, [example.ids for example in examples])).logits.float()
        if self.kind == "sequence":
            return rows.unbind()
        pairs = zip(rows, examples, strict=True)
        return [pool(row[: len(example.ids)], self.settings.pooling) for row, example in pairs]

    def losses(self, logits: Sequence[torch.Tensor], examples: Sequence[HeadExample]) -> torch.Tensor:
        """[examples]; raises ValueError for targets of another width than the head's."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

        check_widths(self.settings, examples)
        if self.settings.task == "classification":
            losses = [
                soft_choice_loss(row, example.target, example.teacher, self.distillation)
                for row, example in zip(logits, examples, strict=True)
            ]
            return torch.stack(losses)
        rows = torch.stack(list(logits))
        target = rows.new_tensor([example.target for example in examples])
        if self.targets == "answers":
            losses_of_answers = binary_cross_entropy_with_logits(rows, target, reduction="none")
            return losses_of_answers.sum(1) if self.settings.task == "ordinal" else losses_of_answers.mean(1)
        means, sizes = rows.new_tensor(self.settings.scales or [[0.0, 1.0]] * rows.shape[1]).T
        return mse_loss(rows, (target - means) / sizes, reduction="none").mean(1)

    def loss(self, model: Any, examples: Sequence[HeadExample]) -> torch.Tensor:
        """Sum over examples."""
        return self.losses(self.logits(model, examples), examples).sum()


def make_head_task(head: Head, competition: Competition, rows: pl.DataFrame) -> HeadTask:
    """The task of training a head on labelled rows; a regression's targets are scaled to mean 0 and deviation 1."""
    if head.settings.task != "regression":
        return HeadTask(head.settings)
    targets = np.array(list_targets(head.settings, competition.truth(rows)))
    scales = [[float(column.mean()), float(column.std()) or 1.0] for column in targets.T]
    return HeadTask(replace(head.settings, scales=scales))


def list_head_examples(head: Head, competition: Competition, rows: pl.DataFrame) -> list[HeadExample]:
    """An example of every labelled row; raises ValueError where there is nothing to learn."""
    targets = list_targets(head.settings, competition.truth(rows))
    prompts = head.prompts(competition.unlabelled(rows))
    examples = [HeadExample(tuple(ids), target) for ids, target in zip(prompts, targets, strict=True)]
    check_targets(head.settings, examples)
    return examples
