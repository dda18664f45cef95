"""The processes of one training under torchrun or accelerate launch: rank 0 writes, the others wait.

A single process has rank 0 of 1, and everything here does nothing. Standard library only until there are more.
"""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

PATIENCE = timedelta(days=2)  # others wait as long as rank 0 predicts


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def world() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_first() -> bool:
    return rank() == 0


def join() -> None:
    """Become one of the group, once: NCCL for tensors on GPUs, gloo for those on the CPU."""
    if world() == 1:
        return
    import torch

    if not torch.distributed.is_initialized():
        cuda = torch.cuda.is_available()
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=PATIENCE)


def share(value: Any) -> Any:
    """Rank 0's value, for all; also the point where all meet."""
    if world() == 1:
        return value
    import torch

    join()
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]
