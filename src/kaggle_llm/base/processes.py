"""The processes of one training under torchrun or accelerate launch: rank 0 writes, the others wait.

With a single process (rank 0 of 1) nothing here does anything, and torch is not imported.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

GROUP_TIMEOUT = timedelta(days=2)  # the other processes wait while rank 0 predicts


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    return rank() == 0


def join() -> None:
    """Join the process group, once: NCCL for tensors on GPUs, gloo for those on the CPU."""
    if world() == 1:
        return
    import torch

    if not torch.distributed.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=GROUP_TIMEOUT)


def share(value: Any) -> Any:
    """Rank 0's value in every process; all wait for each other here."""
    if world() == 1:
        return value
    import torch

    join()
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]
