"""Models whose weights are stored in fewer bits, as their config.json says: what they ask of those who load them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kaggle_llm.base import records


def read_quantisation(model: Path) -> dict[str, Any]:
    """The quantization_config of a model folder; {} for a model in full precision."""
    found: dict[str, Any] = records.read_json(model / "config.json").get("quantization_config") or {}
    return found


def rounds_activations(model: Path) -> bool:
    """Whether activations are rounded too, as in W8A8: rounding has no gradient."""
    groups = read_quantisation(model).get("config_groups") or {}
    return any(group.get("input_activations") for group in groups.values())


def weight_bits(model: Path) -> set[int]:
    """Bits of the quantised weights of compressed-tensors."""
    groups = read_quantisation(model).get("config_groups") or {}
    return {group["weights"]["num_bits"] for group in groups.values() if group.get("weights")}


@contextmanager
def adaptable(model: Path) -> Iterator[dict[str, Any]]:
    """Options of from_pretrained with which an adapter can be attached to `model`.

    compressed-tensors unpacks weights at the first forward; PEFT wants to see them before, so they are unpacked when
    they are loaded: the numbers are the same, the memory that of full precision.
    """
    if read_quantisation(model).get("quant_method") != "compressed-tensors":
        yield {}
        return
    from transformers import CompressedTensorsConfig

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You passed `quantization_config`")
        yield {"quantization_config": CompressedTensorsConfig(dequantize=True)}
