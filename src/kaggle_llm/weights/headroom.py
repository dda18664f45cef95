"""How near a model's activations come to what float16 can hold: the overflow that only a T4 shows, seen anywhere."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.transformers_engine import TransformersEngine

LIMIT = 65504.0  # the largest number of float16 (IEEE 754 binary16)
BLOCK = re.compile(r"^(.*?\.\d+)(\.|$)")  # layers.7.mlp.down_proj → layers.7


@dataclass(frozen=True)
class Headroom:
    """The largest absolute activation of every layer, in the order in which they run, measured in float32."""

    layers: dict[str, float]

    @property
    def largest(self) -> float:
        return max(self.layers.values())

    @property
    def over(self) -> list[str]:
        """Layers that overflow in float16."""
        return [name for name, value in self.layers.items() if not value <= LIMIT]


def measure_headroom(model: Path, prompts: Sequence[Prompt], kind: str, base: Path | None = None) -> Headroom:
    """Run the prompts through a model folder (with `base`: an adapter on it) in float32 and watch every module.

    kind: what the engine is asked for, such as choices. What a module takes and what it gives both count: a product
    that enters down_proj is no module's result.
    """
    engine = TransformersEngine(model, EngineSettings(dtype="float32"), base)
    layers: dict[str, float] = {}
    hooks = [part.register_forward_hook(watch(name, layers)) for name, part in engine.module(kind).named_modules()]
    try:
        if kind in ("embed", "logits"):
            getattr(engine, kind)(prompts)
        else:
            engine.choices(prompts, [(0,)])  # any label: the model runs over the prompts
    finally:
        for hook in hooks:
            hook.remove()
        engine.close()
    return Headroom(layers)


def watch(name: str, layers: dict[str, float]) -> Any:
    """A forward hook that notes the largest absolute value under the name of the block that the module lies in."""
    found = BLOCK.match(name)
    layer = found.group(1) if found else name

    def hook(_: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        for value in (*inputs, *outputs):
            note(value, layer, layers)

    return hook


def note(value: Any, layer: str, layers: dict[str, float]) -> None:
    import torch

    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
        largest = float(torch.linalg.vector_norm(value, torch.inf))
        layers[layer] = max(layers.get(layer, 0.0), math.inf if math.isnan(largest) else largest)
