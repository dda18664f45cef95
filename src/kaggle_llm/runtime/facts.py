"""What is known of vLLM on a T4: for versions that are not installed here, and for what no check of vLLM says.

Read from the sources of the releases 0.10.0, 0.11.2, 0.19.1, 0.20.2, 0.32.0 and 0.33.0 and from reports of others on
T4s, as the number of an issue or pull request of vllm-project/vllm says. Nothing of it was run on a T4 here.
"""

from __future__ import annotations

from packaging.version import Version

FLOAT16_REFUSED = ("gemma2", "gemma3", "gemma3_text", "glm4", "plamo2")  # vllm/config/model.py
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vllm/config/lora.py
LARGEST_HEAD = 256  # 512 asks for 98 304 bytes of shared memory, a T4 has 65 536 (#57712)
LARGEST_FLOAT32_HEAD = 128  # 256 asks for 81 920 bytes in float32 (#36802)
MARLIN_FROM = Version("0.19")  # its floor was 8.0 in 0.11.2, is 7.5 in 0.19.1 (#29901)

# get_min_capability() of 0.32.0; a T4 is 75.
MIN_CAPABILITY = {
    **{"awq": 75, "awq_marlin": 75, "auto_awq": 75, "gptq": 60, "gptq_marlin": 60, "auto_gptq": 60},
    **{"compressed-tensors": 70, "moe_wna16": 70, "fp8": 75, "experts_int8": 80, "mxfp4": 80, "gpt_oss_mxfp4": 80},
    **{"modelopt": 80, "modelopt_fp4": 75, "modelopt_mixed": 75, "fbgemm_fp8": 80, "fp_quant": 100, "torchao": 75},
    **{"inc": 60, "humming": 75, "quark": 70, "online": 75},
}

# vLLM → the torch that its wheel asks for, by wheel metadata; a version between two of them is not judged.
TORCH = {
    **{"0.8.5.post1": "2.6.0", "0.10.0": "2.7.1", "0.10.2": "2.8.0", "0.11.2": "2.9.0", "0.12.0": "2.9.0"},
    **{"0.15.1": "2.9.1", "0.19.1": "2.10.0", "0.20.2": "2.11.0", "0.24.0": "2.11.0", "0.28.0": "2.13.0"},
    **{"0.32.0": "2.13.0", "0.33.0": "2.14.0"},
}

# Vendors' figures of a T4, and the share of them that is taken as reached; an estimate until it is measured on one.
PREFILL_FLOPS = 65e12 * 0.3  # float16 on tensor cores: about 20 of 65 TFLOPS
FLOAT32_FLOPS = 8.1e12 * 0.6
TRITON_FLOPS = 65e12 * 0.25  # attention runs without tensor cores, the matrices with them
BANDWIDTH = 300e9  # bytes/s; the card has 320


def choose_backend(version: Version) -> str:
    """The attention backend that vLLM takes on a T4 where none is named."""
    if version < Version("0.11"):
        return "XFORMERS"
    return "FLASHINFER" if version < Version("0.24") else "TRITON_ATTN"  # floor 7.5, raised to 8.0 by #45375


def refuse_flashinfer(version: Version) -> str | None:
    """Why FlashInfer's attention does not run on a T4; None where it does, built when it starts (nvcc and ninja)."""
    if Version("0.22") <= version < Version("0.24"):
        return "vLLM 0.22 and 0.23 crash with it on a T4 (BatchPrefillWithPagedKVCache: invalid argument, #44379)"
    if version >= Version("0.24"):
        return "since vLLM 0.24 it asks for capability 8.0 (#45375)"
    return None


def memory_utilization(version: Version) -> float:
    """The default of gpu_memory_utilization: 0.9 in 0.19.1 and 0.20.2, 0.92 in 0.32."""
    return 0.92 if version >= Version("0.32") else 0.9
