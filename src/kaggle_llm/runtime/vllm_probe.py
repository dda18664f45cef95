"""Ask the installed vLLM what it would do on a GPU that is not here: a process of its own.

`python -m kaggle_llm.runtime.vllm_probe` reads a question as JSON from its input and writes vLLM's answers as JSON to
its output. vLLM's own checks decide; this process only makes them see a CUDA platform with the capability in the
question, where the build may be for CPUs and no GPU may be present. Nothing is computed on a device.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import os
import sys
import typing
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

# What a vLLM of another version or build may raise instead of an answer.
UNANSWERED = (
    ImportError,
    AttributeError,
    TypeError,
    ValueError,
    NotImplementedError,
    KeyError,
    AssertionError,
    OSError,
)
CUDA_MODULES = ("vllm._C_stable_libtorch", "vllm.vllm_flash_attn._vllm_fa2_C")
# Operations that vLLM calls when it is imported; they need capability 8.9 or 9.0.
CUDA_QUESTIONS = (
    "cutlass_scaled_mm_supports_block_fp8",
    "cutlass_scaled_mm_supports_fp8",
    "cutlass_scaled_mm_supports_fp4",
    "cutlass_group_gemm_supported",
)


def pretend_gpu(capability: tuple[int, int], memory_gb: float) -> Any:
    """Make vLLM's current platform CUDA with this capability; returns the platform's class."""
    import torch

    for name in CUDA_MODULES:
        sys.modules.setdefault(name, ModuleType(name))
    for name in CUDA_QUESTIONS:
        setattr(torch.ops._C, name, lambda _: False)
    from vllm import platforms
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    class Pretended(CudaPlatformBase):
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(*capability)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "a GPU that is not here"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return int(memory_gb * 2**30)

        @classmethod
        def is_fully_connected(cls, device_ids: list[int]) -> bool:
            return False

    vars(platforms)["_current_platform"] = Pretended()
    return Pretended


def answer_question(question: dict[str, Any]) -> dict[str, Any]:
    """Question → answer; {"error": …} as the answer to what this vLLM cannot be asked."""
    import vllm

    platform = pretend_gpu(tuple(question["capability"]), question["memory_gb"])
    asked: dict[str, Callable[[], Any]] = {
        "dtypes": lambda: [str(dtype).removeprefix("torch.") for dtype in platform().supported_dtypes],
        "float16_refused": ask_float16,
        "lora_ranks": ask_lora_ranks,
        "settings": ask_settings,
        "attention": functools.partial(ask_attention, platform, question),
        "quantisation": functools.partial(ask_quantisation, question),
        "kernels": functools.partial(ask_kernels, question),
    }
    with current_config(question["dtype"]):
        return {"version": vllm.__version__} | {name: try_to_ask(ask) for name, ask in asked.items()}


def current_config(dtype: str) -> Any:
    """Context with vLLM's default config, which its layers read; of the model they need the dtype only."""
    import torch
    from vllm.config import VllmConfig, set_current_vllm_config

    config = VllmConfig()
    vars(config)["model_config"] = SimpleNamespace(dtype=getattr(torch, dtype))
    return set_current_vllm_config(config)


def try_to_ask(ask: Callable[[], Any]) -> Any:
    try:
        return ask()
    except UNANSWERED as error:
        return {"error": f"{type(error).__name__}: {error}"}


def ask_float16() -> list[str]:
    from vllm.config import model

    return sorted(model._FLOAT16_NOT_SUPPORTED_MODELS)


def ask_lora_ranks() -> list[int]:
    from vllm.config.lora import MaxLoRARanks

    return list(typing.get_args(MaxLoRARanks))


def ask_settings() -> list[str]:
    from vllm.engine.arg_utils import EngineArgs

    return [field.name for field in dataclasses.fields(EngineArgs)]


def ask_attention(platform: Any, question: dict[str, Any]) -> dict[str, Any]:
    """{"valid": backends in vLLM's order, "refused": backend → reasons}."""
    import torch
    from vllm.v1.attention.selector import AttentionSelectorConfig

    settings = {**question["attention"], "dtype": getattr(torch, question["dtype"]), "block_size": None}
    known = {name: settings[name] for name in AttentionSelectorConfig._fields if name in settings}
    config = AttentionSelectorConfig(**known)
    valid, refused = platform.get_valid_backends(platform.get_device_capability(), config)
    reasons_of = {backend.name: reasons for backend, (_, reasons) in refused.items()}
    return {"valid": [choice.backend.name for choice in valid], "refused": reasons_of}


def ask_quantisation(question: dict[str, Any]) -> dict[str, Any] | None:
    """{"method", "min_capability", "schemes": scheme → its own min_capability}; None for full precision."""
    from vllm.model_executor.layers.quantization import get_quantization_config

    config = question["quantisation"]
    if not config:
        return None
    method = get_quantization_config(config["quant_method"])
    is_compressed = config["quant_method"] == "compressed-tensors"
    schemes = compressed_schemes(method.from_config(config)) if is_compressed else []
    return {
        "method": config["quant_method"],
        "min_capability": method.get_min_capability(),
        "schemes": {type(scheme).__name__: scheme.get_min_capability() for scheme in schemes},
    }


def compressed_schemes(config: Any) -> list[Any]:
    """The schemes that vLLM takes for the groups of a compressed-tensors config on this GPU."""
    known = inspect.signature(config._get_scheme_from_parts).parameters
    schemes = []
    for group in config.target_scheme_map.values():
        parts = {
            "weight_quant": group["weights"],
            "input_quant": group.get("input_activations"),
            "output_quant": group.get("output_activations"),
            "format": group.get("format"),
            "layer_name": "model.layers.0.mlp.down_proj",
        }
        schemes.append(config._get_scheme_from_parts(**{name: part for name, part in parts.items() if name in known}))
    return schemes


def ask_kernels(question: dict[str, Any]) -> dict[str, str]:
    """Layer of integer weights → the kernel that vLLM takes, or "refused: reasons"."""
    import torch
    from vllm.model_executor.kernels.linear import choose_mp_linear_kernel
    from vllm.model_executor.kernels.linear.mixed_precision.MPLinearKernel import MPLinearLayerConfig
    from vllm.scalar_type import scalar_types

    known = {field.name for field in dataclasses.fields(MPLinearLayerConfig)}
    kernels = {}
    for name, layer in question["layers"].items():
        settings = {
            **layer,
            "full_weight_shape": tuple(layer["full_weight_shape"]),
            "partition_weight_shape": tuple(layer["partition_weight_shape"]),
            "weight_type": getattr(scalar_types, layer["weight_type"]),
            "act_type": getattr(torch, question["dtype"]),
            "has_g_idx": False,
        }
        config = MPLinearLayerConfig(**{key: value for key, value in settings.items() if key in known})
        try:
            kernels[name] = choose_mp_linear_kernel(config).__name__
        except ValueError as error:
            kernels[name] = f"refused: {error}"
    return kernels


def main() -> None:
    os.environ |= {"VLLM_LOGGING_LEVEL": "CRITICAL", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    question = json.load(sys.stdin)
    output, sys.stdout = sys.stdout, sys.stderr  # vLLM prints to the output too
    json.dump(answer_question(question), output)


if __name__ == "__main__":
    main()
