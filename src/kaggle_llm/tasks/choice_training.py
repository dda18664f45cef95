"""Trains a causal LM to choose: it scores each option, and the loss is cross-entropy over the softmax of the scores.

Form labels: the options are answers to one prompt (Yes/No, classes, the letters of a list); an option's score is its
label's logit. Form pointwise: the options are candidates, each after the same shared tokens; an option's score is its
log-odds, first label minus second. The vocabulary's normaliser cancels out in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kaggle_llm.engines.attention import register_segments
from kaggle_llm.engines.packing import compute_logits, pack
from kaggle_llm.engines.prompts import Prompt, TokenGroup
from kaggle_llm.tasks.distillation import DistillationSettings, soft_choice_loss
from kaggle_llm.training.tricks import TargetKind

if TYPE_CHECKING:
    import torch

    from kaggle_llm.engines.model_kinds import ModelKind


@dataclass
class ChoiceSettings:
    form: Literal["pointwise", "labels"] = "pointwise"
    group_size: int = 8
    """Candidates of a row in training: a right one and hard negatives (pointwise, and lists with letters)."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"group_size = {self.group_size}: a group needs a right and a wrong candidate")


class ChoiceTask:
    """Examples are TokenGroups. Form labels: one candidate, a target for each label. pointwise: a target for each
    candidate.

    labels: token ids. Raises ValueError for a label of several tokens, and for pointwise with other than two labels.
    """

    kind: ModelKind = "causal"
    padded = False

    def __init__(
        self, settings: ChoiceSettings, labels: Sequence[Prompt], distillation: DistillationSettings | None = None
    ) -> None:
        self.settings, self.distillation = settings, distillation or DistillationSettings()
        if any(len(label) != 1 for label in labels):
            lengths = [len(label) for label in labels]
            raise ValueError(f"prompt.labels have {lengths} tokens: training needs one token each, choose other words")
        self.labels = [label[0] for label in labels]
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels {self.labels}: two of them are the same token")
        if settings.form == "pointwise" and len(labels) != 2:
            raise ValueError(f"{len(labels)} labels: the log-odds of a pointwise choice need exactly two")

    def config(self) -> dict[str, Any]:
        return {"attn_implementation": register_segments()}

    def length(self, example: TokenGroup) -> int:
        return len(example)

    def weight(self, example: TokenGroup) -> float:
        """1; raises ValueError where the target has not one value for each option."""
        pointwise = self.settings.form == "pointwise"
        options = len(example.candidates) if pointwise else len(self.labels)
        if len(example.target) != options or not (pointwise or len(example.candidates) == 1):
            raise ValueError(
                f"choice.form = {self.settings.form}: an example has {len(example.candidates)} candidates and a target "
                f"of {len(example.target)} values for {options} options"
            )
        return 1.0

    @property
    def targets(self) -> TargetKind:
        return "shares"

    def logits(self, model: Any, examples: Sequence[TokenGroup]) -> Sequence[torch.Tensor]:
        """Scores [options] an example."""
        packed = pack([(example.shared, example.candidates) for example in examples])
        logits = compute_logits(model, packed, packed.ends)[:, self.labels]
        if self.settings.form == "labels":
            return logits.unbind()
        odds = logits[:, 0] - logits[:, 1]
        return odds.split([len(example.candidates) for example in examples])

    def losses(self, logits: Sequence[torch.Tensor], examples: Sequence[TokenGroup]) -> torch.Tensor:
        """[examples]: cross-entropy, with distillation where they have a teacher."""
        import torch

        losses = [
            soft_choice_loss(row, example.target, example.teacher, self.distillation)
            for row, example in zip(logits, examples, strict=True)
        ]
        return torch.stack(losses)

    def loss(self, model: Any, examples: Sequence[TokenGroup]) -> torch.Tensor:
        """Sum over examples."""
        return self.losses(self.logits(model, examples), examples).sum()
