"""Attention within segments: several sequences in one row of tokens, nothing padded and no mask of all by all.

transformers' models take it by the name SEGMENTS and pass `segments` through to it. Each segment is one call of
torch's fused attention, so its cost is the sum of the squares of the lengths, not the square of the sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SEGMENTS = "segments"


def register_segments() -> str:
    """The name to load a causal model with: attn_implementation=register_segments()."""
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
    segments: Sequence[tuple[int, int, torch.Tensor | None]],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, tokens, d], key and value [1, groups, tokens, d] → [1, tokens, heads, d].

    segments: begin, end and what its tokens see of it: None is causal, else bool [length, length].
    Raises ValueError for what a fused kernel cannot do: soft-capped scores, a window shorter than a segment.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    longest = max(end - begin for begin, end, _ in segments)
    if softcap is not None:
        raise ValueError(f"{type(module).__name__} caps its attention scores at {softcap}: it cannot be packed")
    if sliding_window is not None and longest > sliding_window:
        raise ValueError(f"an example of {longest} tokens exceeds the model's attention window of {sliding_window}")
    repeats = query.shape[1] // key.shape[1]
    key, value = (part.repeat_interleave(repeats, dim=1) if repeats > 1 else part for part in (key, value))
    found = [
        scaled_dot_product_attention(
            query[:, :, begin:end],
            key[:, :, begin:end],
            value[:, :, begin:end],
            attn_mask=visible,
            dropout_p=dropout,
            is_causal=visible is None,
            scale=scaling,
        )
        for begin, end, visible in segments
    ]
    return torch.cat(found, dim=2).transpose(1, 2), None
