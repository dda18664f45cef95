"""Quantised models: facts from their config.json, and how to load them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kaggle_llm.base import records


def read_quantisation(model: Path) -> dict[str, Any]:
    """The quantization_config of a model folder; {} for a model in full precision."""
    config: dict[str, Any] = records.read_json(model / "config.json").get("quantization_config") or {}
    return config


def rounds_activations(model: Path) -> bool:
    """Whether activations are quantised too, as in W8A8: such a model cannot be trained, rounding has no gradient."""
    groups = read_quantisation(model).get("config_groups") or {}
    return any(group.get("input_activations") for group in groups.values())


def weight_bits(model: Path) -> set[int]:
    """Bits of the weights of a compressed-tensors model; empty for others."""
    groups = read_quantisation(model).get("config_groups") or {}
    return {group["weights"]["num_bits"] for group in groups.values() if group.get("weights")}


@contextmanager
def adaptable(model: Path) -> Iterator[dict[str, Any]]:
    """Options of from_pretrained that let PEFT attach an adapter to `model`.

    compressed-tensors unpacks weights at the first forward pass, PEFT needs them before: they are unpacked at loading,
    with the same numbers and the memory of full precision.
    """
    if read_quantisation(model).get("quant_method") != "compressed-tensors":
        yield {}
        return
    from transformers import CompressedTensorsConfig

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You passed `quantization_config`")
        yield {"quantization_config": CompressedTensorsConfig(dequantize=True)}
