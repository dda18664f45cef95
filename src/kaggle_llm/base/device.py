"""What this machine computes on."""

from __future__ import annotations

import shutil


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def describe_device() -> str:
    """ "cpu", or the name of the first GPU; torch is loaded only where there is a driver."""
    if shutil.which("nvidia-smi") is None or not has_gpu():
        return "cpu"
    import torch

    return str(torch.cuda.get_device_name(0))
