"""Attention of transformers' models within the segments of a packed row, and with fast kernels on a T4.

A packed row is several sequences, or the nodes of a prefix tree, one after the other. Nothing is padded; how the
segments are kept apart is chosen in attention_forms.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from kaggle_llm.engines.attention_forms import choose_form
from kaggle_llm.engines.segments import Layout, Segment

if TYPE_CHECKING:
    import torch

SEGMENTS = "segments"
SM_75 = (7, 5)  # T4
# Variables that torch and oneDNN read at their first product: the number of shapes whose compiled product they keep.
KEPT_PRODUCTS = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")


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
    segments: Sequence[Segment] | Layout,
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
    layout = segments if isinstance(segments, Layout) else Layout(segments)
    longest = key.shape[2] - query.shape[2] + layout.longest
    if softcap is not None:
        raise ValueError(f"{type(module).__name__} caps its attention scores at {softcap}: it cannot be packed")
    if sliding_window is not None and longest > sliding_window:
        raise ValueError(f"an example of {longest} tokens exceeds the model's attention window of {sliding_window}")
    attend = choose_form(query, value, dropout)
    return attend(query, key, value, layout, scaling, dropout), None


def capability() -> tuple[int, int] | None:
    """The GPU's compute capability; None without a GPU."""
    import torch

    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def prepare_device() -> None:
    """Choose allocator and kernels; call it before the first use of the GPU.

    Packs vary in size, so memory grows by pages, not by blocks that later packs do not fit into. cuDNN's attention is
    off: torch from 2.11 on prefers it on sm_90 and makes a plan of some 30 ms for every new shape, which nearly every
    pack has. TF32 is off, in convolutions too: float32 means float32 wherever stages of a model are compared. On a CPU
    torch and oneDNN would keep a compiled product of each of the last 1,024 shapes, by and by gigabytes of them.
    """
    import torch

    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    for variable in KEPT_PRODUCTS:
        os.environ.setdefault(variable, "64")  # more shapes than a pass has
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
    and transformers gives no warning."""
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
