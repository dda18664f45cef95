"""Trains token classification: a label for each token, such as the BIO tags of competition/spans.py.

Each window of a long text is an example: a token in two overlapping windows is trained on in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from kaggle_llm.competition.spans import NO_LABEL
from kaggle_llm.training.padding import pad_right

if TYPE_CHECKING:
    import torch

    from kaggle_llm.engines.model_kinds import ModelKind


@dataclass
class TokenSettings:
    labels: list[str]
    """Tags in the order of the head's logits."""

    def __post_init__(self) -> None:
        if len(self.labels) < 2 or len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels = {self.labels}: two or more different ones are needed")


@dataclass(frozen=True)
class TokenExample:
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    """For each token its index in TokenSettings.labels, or −100 where it has no loss."""


class TokenTask:
    """Cross-entropy of every labelled token."""

    kind: ModelKind = "token"
    padded = True

    def __init__(self, settings: TokenSettings) -> None:
        self.settings = settings

    def config(self) -> dict[str, Any]:
        names = self.settings.labels
        return {
            "num_labels": len(names),
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
        }

    def length(self, example: TokenExample) -> int:
        return len(example.ids)

    def weight(self, example: TokenExample) -> float:
        """Number of labelled tokens; raises ValueError where there is none, or a label is out of range."""
        labels = [label for label in example.labels if label != NO_LABEL]
        if len(example.labels) != len(example.ids) or not labels:
            raise ValueError(
                f"an example of {len(example.ids)} tokens has {len(example.labels)} labels, {len(labels)} of them with "
                f"a loss: give one to each token (−100: none), and leave out examples without any"
            )
        wrong = sorted({label for label in labels if not 0 <= label < len(self.settings.labels)})
        if wrong:
            raise ValueError(f"label(s) {wrong}: there are {len(self.settings.labels)}, counted from 0")
        return float(len(labels))

    def loss(self, model: Any, examples: Sequence[TokenExample]) -> torch.Tensor:
        """Sum over labelled tokens."""
        import torch
        from torch.nn.functional import cross_entropy

        batch = pad_right(model, [example.ids for example in examples])
        logits = model(**batch).logits.float()
        width = logits.shape[1]
        padded = [[*example.labels, *[NO_LABEL] * (width - len(example.labels))] for example in examples]
        labels = torch.tensor(padded, device=logits.device)
        loss: torch.Tensor = cross_entropy(
            logits.flatten(0, 1), labels.flatten(), ignore_index=NO_LABEL, reduction="sum"
        )
        return loss
