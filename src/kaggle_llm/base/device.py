"""The device of this machine: its GPU, or the CPU."""

from __future__ import annotations

import shutil


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def describe_device() -> str:
    """The name of the first GPU, or "cpu"; torch is imported only where there is a driver."""
    if shutil.which("nvidia-smi") is None or not has_gpu():
        return "cpu"
    import torch

    return str(torch.cuda.get_device_name(0))
