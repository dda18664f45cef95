"""What vLLM does on a T4 and elsewhere: for versions that are not installed here, and for what no check of vLLM says.

Read from the sources of the releases 0.19.1 and 0.32.0 and from reports of others on T4s, named by the number
of the issue or pull request of vllm-project/vllm. Nothing of it was run on a T4 here.
"""

from __future__ import annotations

from packaging.version import Version

FLOAT16_REFUSED = ("gemma2", "gemma3", "gemma3_text", "glm4", "plamo2")  # vllm/config/model.py
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vllm/config/lora.py
LARGEST_HEAD = 256  # 512 asks for 98 304 bytes of shared memory, a T4 has 65 536 (#57712)
LARGEST_FLOAT32_HEAD = 128  # 256 asks for 81 920 bytes in float32 (#36802)
FLASHINFER_DROPPED = Version("0.24")  # FlashInfer's attention asks for capability 8.0 from here on (#45375)

# get_min_capability() of 0.32.0; a T4 is 75, an L4 89, an H100 90, an RTX PRO 6000 120.
MIN_CAPABILITY = {
    **{"awq": 75, "awq_marlin": 75, "auto_awq": 75, "gptq": 60, "gptq_marlin": 60, "auto_gptq": 60},
    **{"compressed-tensors": 70, "moe_wna16": 70, "fp8": 75, "experts_int8": 80, "mxfp4": 80, "gpt_oss_mxfp4": 80},
    **{"modelopt": 80, "modelopt_fp4": 75, "modelopt_mixed": 75, "fbgemm_fp8": 80, "fp_quant": 100, "torchao": 75},
    **{"inc": 60, "humming": 75, "quark": 70, "online": 75},
}

# vLLM → the torch that its wheel asks for, by the wheel's metadata; other versions are not checked.
TORCH = {"0.19.1": "2.10.0", "0.32.0": "2.13.0"}

# The share of a card's figures (base/accelerators.py) that is assumed to be reached; not measured.
HALF_SHARE = 0.3  # on tensor cores: about 20 of a T4's 65 TFLOPS
FLOAT32_SHARE = 0.6
TRITON_SHARE = 0.25  # below capability 8.0 vLLM's attention runs without tensor cores, the matrices with them
BANDWIDTH_SHARE = 0.94


def default_backend(version: Version) -> str:
    """The attention backend that vLLM takes on a T4 where none is named."""
    return "FLASHINFER" if version < FLASHINFER_DROPPED else "TRITON_ATTN"


def memory_utilization(version: Version) -> float:
    """vLLM's default of gpu_memory_utilization: 0.9 in 0.19.1, 0.92 in 0.32."""
    return 0.92 if version >= Version("0.32") else 0.9
