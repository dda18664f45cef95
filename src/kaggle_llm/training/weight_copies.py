"""A copy of the trained weights (an average, or the best step's), in memory and in every checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import records

if TYPE_CHECKING:
    import torch


class WeightCopy:
    """A copy of what is trainable in `model` now. name: of its file in a checkpoint. device: where it is kept."""

    def __init__(self, name: str, model: Any, device: str | None = None) -> None:
        self.file, self.device = f"{name}.safetensors", device
        self.trained = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
        self.weights: dict[str, torch.Tensor] = {}

    def take(self) -> None:
        """Copy the model's weights."""
        self.weights = {
            key: weight.detach().to(self.device or weight.device, copy=True) for key, weight in self.trained.items()
        }

    def move_towards(self, share: float) -> None:
        """copy ← copy + share · (model − copy)."""
        for key, weight in self.trained.items():
            self.weights[key].lerp_(weight.detach(), share)

    def put(self) -> None:
        """Give the model these weights."""
        assign(self.trained, self.weights)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the model has these weights."""
        own = {key: weight.detach().clone() for key, weight in self.trained.items()}
        self.put()
        try:
            yield
        finally:
            assign(self.trained, own)

    def save(self, folder: Path) -> None:
        from safetensors.torch import save_file

        records.write_file(folder / self.file, lambda path: save_file(self.weights, path))

    def load(self, folder: Path) -> None:
        """What `save` left in a checkpoint, to the device where it is kept."""
        from safetensors.torch import load_file

        saved = load_file(folder / self.file)
        self.weights = {key: saved[key].to(self.device or weight.device) for key, weight in self.trained.items()}


def assign(trained: Mapping[str, torch.nn.Parameter], weights: Mapping[str, torch.Tensor]) -> None:
    """Overwrite the values of parameters."""
    import torch

    with torch.no_grad():
        for key, weight in weights.items():
            trained[key].copy_(weight)
