"""What the trainer asks of a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from kaggle_llm.engines.model_kinds import ModelKind

if TYPE_CHECKING:
    import torch

Example = TypeVar("Example", contravariant=True)


class Task(Protocol[Example]):
    """The part of a training that differs between tasks: what its examples weigh and their loss."""

    kind: ModelKind
    padded: bool
    """Whether examples that are computed together are padded to the longest."""

    def config(self) -> dict[str, Any]:
        """Changes to the model's config, such as num_labels or attn_implementation."""

    def length(self, example: Example) -> int:
        """Number of tokens."""

    def weight(self, example: Example) -> float:
        """Loss units, over which the loss is a mean: 1 a row or group, or the number of tokens with a loss."""

    def loss(self, model: Any, examples: Sequence[Example]) -> torch.Tensor:
        """Scalar: sum over the examples' loss units."""
