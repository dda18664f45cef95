"""Attention of transformers' models within the segments of a packed row, and with fast kernels on a T4.

A packed row is several sequences, or the nodes of a prefix tree, one after the other. Nothing is padded and there is no
mask over the whole row: each segment is one call of torch's fused attention.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SEGMENTS = "segments"
SM_75 = (7, 5)  # T4
TokenRange = tuple[int, int]  # begin, end


@dataclass(frozen=True)
class Segment:
    """Adjacent tokens of a packed row, with causal attention among themselves."""

    begin: int
    end: int
    before: tuple[TokenRange, ...] = ()
    """Earlier ranges of the row that they see completely, in this order: the parent nodes in a prefix tree."""


def register_segments() -> str:
    """Register this attention; returns its name, for attn_implementation=."""
    from transformers import AttentionInterface

    AttentionInterface.register(SEGMENTS, attend_within_segments)
    return SEGMENTS


def attend_within_segments(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    segments: Sequence[Segment],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, tokens, d], key and value [1, groups, past + tokens, d] → [1, tokens, heads, d].

    past: tokens of a cache, which every segment sees. Raises ValueError for soft-capped scores and for an attention
    window shorter than a prompt: the fused kernels do neither.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    past = key.shape[2] - query.shape[2]
    longest = past + max(sum(end - begin for begin, end in _visible_ranges(segment)) for segment in segments)
    if softcap is not None:
        raise ValueError(f"{type(module).__name__} caps its attention scores at {softcap}: it cannot be packed")
    if sliding_window is not None and longest > sliding_window:
        raise ValueError(f"an example of {longest} tokens exceeds the model's attention window of {sliding_window}")
    # Grouped-query heads become rows of a batch that share their keys without a copy: torch's fast kernels for a T4
    # do not support groups.
    groups = key.shape[1]
    query = query.view(groups, -1, *query.shape[2:])
    key, value = (tensor.transpose(0, 1) for tensor in (key, value))
    outputs = []
    for segment in segments:
        ranges = _join_ranges([(-past, 0), *_visible_ranges(segment)])
        keys, values = (
            _take_ranges(tensor, ranges, past).expand(-1, query.shape[1], -1, -1) for tensor in (key, value)
        )
        alone = keys.shape[2] == segment.end - segment.begin
        outputs.append(
            scaled_dot_product_attention(
                query[:, :, segment.begin : segment.end],
                keys,
                values,
                attn_mask=None if alone else _causal_mask(segment.end - segment.begin, keys.shape[2], query.device),
                dropout_p=dropout,
                is_causal=alone,
                scale=scaling,
            )
        )
    output = torch.cat(outputs, dim=2)
    return output.reshape(1, -1, *output.shape[2:]).transpose(1, 2), None


def _visible_ranges(segment: Segment) -> list[TokenRange]:
    return [*segment.before, (segment.begin, segment.end)]


def _join_ranges(ranges: Sequence[TokenRange]) -> list[TokenRange]:
    """The same tokens, adjacent ranges joined and empty ones removed."""
    joined: list[TokenRange] = []
    for begin, end in ranges:
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        elif begin < end:
            joined.append((begin, end))
    return joined


def _take_ranges(tensor: torch.Tensor, ranges: Sequence[TokenRange], past: int) -> torch.Tensor:
    """The tokens of `ranges`, counted from the end of the cache; a view where they are one range."""
    import torch

    pieces = [tensor[:, :, past + begin : past + end] for begin, end in ranges]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def _causal_mask(rows: int, columns: int, device: torch.device) -> torch.Tensor | None:
    """bool [rows, columns], the last columns being the rows themselves; None where one row sees all."""
    import torch

    if rows == 1:
        return None
    return torch.ones(rows, columns, dtype=torch.bool, device=device).tril(columns - rows)


def capability() -> tuple[int, int] | None:
    """The GPU's compute capability; None without a GPU."""
    import torch

    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def prepare_device() -> None:
    """Choose allocator and kernels; call it before the first use of the GPU.

    Packs vary in size, so memory grows by pages, not by blocks that later packs do not fit into. cuDNN's attention is
    off: torch from 2.11 on prefers it on sm_90 and makes a plan of some 30 ms for every new shape, which nearly every
    pack has. TF32 is off, in convolutions too: float32 means float32 wherever stages of a model are compared.
    """
    import torch

    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False


def avoid_slow_kernel() -> None:
    """On a T4, make transformers repeat keys and values of grouped-query attention itself.

    Without a mask it leaves that to torch, whose only sm_75 kernel with group support uses no tensor cores. Measured on
    a T4 by others: 178 → 289 and 202 → 371 tokens/s (huggingface/transformers, issue 48633 and pull request 45776).
    """
    if capability() == SM_75:
        from transformers.integrations import sdpa_attention

        sdpa_attention.use_gqa_in_sdpa = lambda *_, **__: False


def inner_model(model: Any) -> Any:
    """transformers' model inside a wrapper of DDP and a PEFT adapter."""
    model = getattr(model, "module", model)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def keep_caps(model: Any) -> Any:
    """`model`, with the attention that caps its scores where its config says so (Gemma 2): torch's fused one does not,
    and transformers says nothing."""
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None:
        model.set_attn_implementation("eager")
    return model


def takes_segments(model: Any) -> bool:
    return bool(inner_model(model).config._attn_implementation == SEGMENTS)


@contextmanager
def packed(model: Any) -> Iterator[None]:
    """Inside, `model` (transformers, with or without a PEFT adapter) takes `segments`; afterwards it is unchanged."""
    inner = inner_model(model)
    before = inner.config._attn_implementation
    inner.set_attn_implementation(register_segments())
    try:
        yield
    finally:
        inner.set_attn_implementation(before)
