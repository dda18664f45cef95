"""The device of this machine: its GPU, or the CPU."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import subprocess
import sys
from functools import cache
from typing import Any

QUERY_TIMEOUT = 60  # seconds that nvidia-smi may take
BFLOAT16_FROM = (8, 0)  # compute capability
CONTEXT_GB = 0.7  # GiB of a card that CUDA and its libraries take in each process: assumed
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
MEMORY_ERRORS = (  # torch's allocator and the driver say the first, cuBLAS the second where no room is left for itself
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "DefaultCPUAllocator: can't allocate memory",
)


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def ask_driver(fields: str, gpus: str) -> list[str]:
    """nvidia-smi's answer, a line for each of the `gpus` ("0,1" or their UUIDs; "": all); [] without a GPU.

    The driver is asked, not torch, whose answer takes some hundred MB of the card; torch is imported only where there
    is a driver. Raises CalledProcessError where nvidia-smi fails.
    """
    if shutil.which("nvidia-smi") is None or not has_gpu():
        return []
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits"]
    command += [f"--id={gpus}"] if gpus else []
    answer = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_TIMEOUT, check=True)
    return answer.stdout.strip().splitlines()


def name_first_gpu() -> str:
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


@cache
def describe_device() -> str:
    """The name of the first visible GPU, or "cpu"."""
    return next(iter(ask_driver("name", name_first_gpu())), "cpu").strip()


@cache
def read_capability() -> tuple[int, int] | None:
    """The compute capability of the first visible GPU; None without one."""
    for line in ask_driver("compute_cap", name_first_gpu()):
        major, minor = line.strip().split(".")
        return int(major), int(minor)
    return None


def read_memory(gpus: str) -> list[tuple[float, float]]:
    """(free, total) GiB of each of the `gpus`, as in `ask_driver`."""
    lines = [line.split(",") for line in ask_driver("memory.free,memory.total", gpus)]
    return [(float(free) / 1024, float(total) / 1024) for free, total in lines]


def measure_free_share() -> float | None:
    """The smallest share of a visible GPU's memory that a new process can have beside its context; None without one."""
    visible = read_memory(os.environ.get("CUDA_VISIBLE_DEVICES", ""))
    return min(((free - CONTEXT_GB) / total for free, total in visible), default=None)


def measure_free_memory(gpu: str = "") -> float | None:
    """GiB of a GPU, by default the first visible one, that no process holds; None without one."""
    return next((free for free, _ in read_memory(gpu or name_first_gpu())), None)


def choose_placement() -> dict[str, Any]:
    """Options of from_pretrained that bring weights from their file to this process's card, past the host's memory.

    Nothing on a CPU, and where FSDP or DeepSpeed divides the model among the cards.
    """
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true" or os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    return {"device_map": {"": int(os.environ.get("LOCAL_RANK", "0"))}} if has_gpu() and not sharded else {}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device's memory was too small: only torch's own allocator has a class for it."""
    return isinstance(error, RuntimeError) and any(words in str(error) for words in MEMORY_ERRORS)


def release_device() -> None:
    """Give GPU memory that nothing refers to back, so that other processes can take it."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def keep_heap() -> None:
    """Let glibc keep up to 128 MB that were freed, for the next layer.

    By itself it gives a layer's activations back to the system and gets them again, page by page: a seventh of the time
    of an inference on a CPU. Pieces of more than 32 MB are given back as before.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)):
        mallopt(MMAP_THRESHOLD, 32 * 2**20)
        mallopt(TRIM_THRESHOLD, 128 * 2**20)


def trim_heap(device: str) -> None:
    """On a CPU, return freed memory to the system: glibc keeps pieces that are too small for the next part."""
    if device == "cpu" and sys.platform == "linux":
        malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if malloc_trim:
            malloc_trim(0)
