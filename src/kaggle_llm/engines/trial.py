"""Tries a model out, before it is trained or asked: does it give for packed prompts what it gives for single ones?"""

from __future__ import annotations

from typing import Any

import numpy as np

from kaggle_llm.engines.attention import inner_model, packed, register_segments, takes_segments
from kaggle_llm.engines.packing import compute_logits, pack

SHARED, FIRST, SECOND = 24, 16, 8  # random tokens: the beginning of two prompts, and the end of each
TOLERANCE = {"float32": 1e-3, "float16": 0.2, "bfloat16": 0.5}  # mean |Δ log p| that rounding explains


def can_share(model: Any, dtype: str) -> bool:
    """Whether the model gives the same result for packed prompts as for single ones; tried out on random tokens.

    Not so with soft-capped scores, states along the sequence (SSMs), or positions that the model makes itself.
    """
    import torch

    size = model.config.get_text_config().vocab_size
    tokens = np.random.default_rng(0).integers(size // 2, size=SHARED + FIRST + SECOND).tolist()
    shared, first, second = tokens[:SHARED], tokens[SHARED:-SECOND], tokens[-SECOND:]
    device = next(model.parameters()).device
    with packed(model), torch.inference_mode():
        if not takes_segments(model) or not only_attends(model.config.get_text_config()):
            return False
        row = pack([(shared, [first, second])])
        try:
            together = compute_logits(model, row, row.ends)
        except (ValueError, TypeError):  # refused by attention.py; a model without the argument `segments`
            return False
    with torch.inference_mode():
        alone = [model(torch.tensor([[*shared, *end]], device=device)).logits[0, -1] for end in (first, second)]
    difference = together.log_softmax(-1) - torch.stack(alone).float().log_softmax(-1)
    return bool(difference.abs().mean() <= TOLERANCE[dtype])


def only_attends(config: Any) -> bool:
    """Whether no layer has a state along the sequence, by the layer types of its config, if it names them.

    In half precision a leaking state can hide below the tolerance of a trial.
    """
    return set(getattr(config, "layer_types", None) or ()) <= {"full_attention", "sliding_attention"}


def pack_where_possible(model: Any, dtype: str) -> bool:
    """Let the model take packed rows where they give what single prompts give; else compute_logits goes one by one."""
    packs = can_share(model, dtype)
    if packs:
        inner_model(model).set_attn_implementation(register_segments())
    return packs
