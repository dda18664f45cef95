"""What a quantised model's config says, and what is refused because of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kaggle_llm.engines.quantised import read_quantisation, rounds_activations, weight_bits
from kaggle_llm.training.base_model import check_quantised
from kaggle_llm.training.settings import LoraSettings

W4A16 = {"weights": {"num_bits": 4}, "input_activations": None}
W8A8 = {"weights": {"num_bits": 8}, "input_activations": {"num_bits": 8}}


def quantised(pico_llm: Path, folder: Path, group: dict[str, Any]) -> Path:
    shutil.copytree(pico_llm, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_full_precision_has_no_bits_and_no_refusal(pico_llm: Path) -> None:
    assert (read_quantisation(pico_llm), weight_bits(pico_llm), rounds_activations(pico_llm)) == ({}, set(), False)
    for method in ("lora", "rslora", "dora", "qlora", "full"):
        check_quantised(pico_llm, LoraSettings(method=method))  # type: ignore[arg-type]


def test_an_adapter_is_trained_on_rounded_weights_not_on_rounded_activations(pico_llm: Path, tmp_path: Path) -> None:
    weights = quantised(pico_llm, tmp_path / "w4a16", W4A16)
    assert weight_bits(weights) == {4} and not rounds_activations(weights)
    check_quantised(weights, LoraSettings(method="lora"))
    for method in ("qlora", "full", "dora"):
        with pytest.raises(ValueError, match=f"quantised .*lora.method=lora or rslora, not {method}"):
            check_quantised(weights, LoraSettings(method=method))  # type: ignore[arg-type]
    both = quantised(pico_llm, tmp_path / "w8a8", W8A8)
    assert rounds_activations(both)
    with pytest.raises(ValueError, match="rounds its activations"):
        check_quantised(both, LoraSettings())


def test_vllm_is_not_started_for_four_bits_in_float32(pico_llm: Path, tmp_path: Path) -> None:
    from kaggle_llm.engines.vllm_engine import check_vllm_dtype

    four = quantised(pico_llm, tmp_path / "w4a16", W4A16)
    with pytest.raises(ValueError, match=r"4-bit weights.*engine.dtype=float16 on a GPU, bfloat16 on a CPU"):
        check_vllm_dtype(four, "float32")
    check_vllm_dtype(four, "bfloat16")
    check_vllm_dtype(quantised(pico_llm, tmp_path / "w8a8", W8A8), "float32")
    check_vllm_dtype(pico_llm, "float32")
