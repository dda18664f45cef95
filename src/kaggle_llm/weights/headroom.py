"""How near a model's activations come to float16's limit: finds on any machine the overflow that only a T4 shows."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kaggle_llm.engines.engine import Dtype, EngineSettings
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.transformers_engine import TransformersEngine

LIMIT = 65504.0  # the largest number of float16 (IEEE 754 binary16)
LAYER_NAME = re.compile(r"^(.*?\.\d+)(\.|$)")  # layers.7.mlp.down_proj → layers.7


@dataclass(frozen=True)
class Headroom:
    """The largest absolute activation of every layer, in the order in which they run."""

    layers: dict[str, float]

    @property
    def largest(self) -> float:
        return max(self.layers.values())

    @property
    def over(self) -> list[str]:
        """Layers that overflow in float16."""
        return [name for name, value in self.layers.items() if not value <= LIMIT]


def measure_headroom(
    model: Path,
    prompts: Sequence[Prompt],
    method: str,
    base: Path | None = None,
    dtype: Dtype = "float32",
    device: str = "",
) -> Headroom:
    """Run the prompts through a model folder (with `base`: an adapter on it) and watch every module.

    method: the engine's, such as choices. dtype: bfloat16 has float32's range; in float16 a layer that overflows gives
    infinity. device: as in TransformersEngine. Inputs of modules count as well as outputs: the product that enters
    down_proj is no module's output.
    """
    engine = TransformersEngine(model, EngineSettings(dtype=dtype), base, device)
    layers: dict[str, float] = {}
    hooks = [part.register_forward_hook(watch(name, layers)) for name, part in engine.module(method).named_modules()]
    try:
        if method in ("embed", "logits"):
            getattr(engine, method)(prompts)
        else:
            engine.choices(prompts, [(0,)])  # the label does not matter: the model runs over the prompts
    finally:
        for hook in hooks:
            hook.remove()
        engine.close()
    return Headroom(layers)


def watch(name: str, layers: dict[str, float]) -> Any:
    """A forward hook that records the largest absolute value of the layer that module `name` belongs to."""
    match = LAYER_NAME.match(name)
    layer = match.group(1) if match else name

    def hook(_: Any, inputs: tuple[Any, ...], output: Any) -> None:
        outputs = output if isinstance(output, tuple) else (output,)
        for value in (*inputs, *outputs):
            record_largest(value, layer, layers)

    return hook


def record_largest(value: Any, layer: str, layers: dict[str, float]) -> None:
    import torch

    if isinstance(value, torch.Tensor) and value.is_floating_point() and value.numel():
        largest = float(torch.linalg.vector_norm(value, torch.inf))
        layers[layer] = max(layers.get(layer, 0.0), math.inf if math.isnan(largest) else largest)
