"""Three forms of attention within the segments of a packed row, equal in their result, and the choice among them.

All take query [1, heads, tokens, d], key and value [1, groups, past + tokens, d], and give [1, tokens, heads, d]. past:
tokens of a cache, which every segment sees. What a form makes of the segments is made once a row, for all layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from kaggle_llm.base.device import BFLOAT16_FROM
from kaggle_llm.engines.segments import Layout, Segment, TokenRange, join_ranges

if TYPE_CHECKING:
    import torch

Form = Callable[..., "torch.Tensor"]
BLOCK = 4096  # tokens that one mask covers: products with all of them are computed, so not a whole row of any length
ALIGNMENT = 8  # elements: a mask whose rows begin elsewhere is copied at every call
LARGEST_FLASH_HEAD = 256


def choose_form(query: torch.Tensor, value: torch.Tensor, dropout: float) -> Form:
    """The fastest form: on a CPU a call for each segment, which computes no masked product and starts no kernels.

    On a GPU of capability 8.0 and newer FlashAttention with lengths, in half precision; else a mask for the whole row.
    """
    import torch

    if value.device.type != "cuda":
        return attend_segment_by_segment
    size = value.shape[-1]
    is_flash = (
        value.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] == size <= LARGEST_FLASH_HEAD
        and size % ALIGNMENT == 0
        and dropout == 0
    )
    return attend_by_lengths if is_flash and has_lengths(value.device.index) else attend_masked


@cache
def has_lengths(card: int) -> bool:
    """Whether torch's attention with lengths runs on this card."""
    from importlib.util import find_spec

    import torch

    return (
        find_spec("torch.nn.attention.varlen") is not None and torch.cuda.get_device_capability(card) >= BFLOAT16_FROM
    )


# a call for each segment ------------------------------------------------------------------------------------


def attend_segment_by_segment(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scaling: float | None, dropout: float
) -> torch.Tensor:
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    past = key.shape[2] - query.shape[2]
    query, key, value = group_heads(query, key, value)
    outputs = []
    for segment in layout.segments:
        ranges = join_ranges([(-past, 0), *segment.visible])
        keys, values = (take_ranges(tensor, ranges, past) for tensor in (key, value))
        is_alone = keys.shape[2] == len(segment)
        mask = None if is_alone else _causal_mask(layout, len(segment), keys.shape[2], query.device)
        output = scaled_dot_product_attention(
            query[:, :, segment.begin : segment.end],
            keys.expand(-1, query.shape[1], -1, -1),
            values.expand(-1, query.shape[1], -1, -1),
            attn_mask=mask,
            dropout_p=dropout,
            is_causal=is_alone,
            scale=scaling,
        )
        outputs.append(output)
    return ungroup_heads(torch.cat(outputs, dim=2))


def group_heads(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """query → [groups, heads of a group, tokens, d], key and value → [groups, 1, tokens, d].

    Grouped-query heads become rows of a batch that share their keys without a copy: torch's fast kernels for a T4 do
    not support groups.
    """
    query, key, value = tensors
    return query.view(key.shape[1], -1, *query.shape[2:]), key.transpose(0, 1), value.transpose(0, 1)


def ungroup_heads(output: torch.Tensor) -> torch.Tensor:
    """[groups, heads of a group, tokens, d] → [1, tokens, heads, d]."""
    return output.reshape(1, -1, *output.shape[2:]).transpose(1, 2)


def take_ranges(tensor: torch.Tensor, ranges: Sequence[TokenRange], past: int) -> torch.Tensor:
    """The tokens of `ranges`, counted from the end of the cache; a view where they are one range."""
    import torch

    pieces = [tensor[:, :, past + begin : past + end] for begin, end in ranges]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def _causal_mask(layout: Layout, rows: int, columns: int, device: torch.device) -> torch.Tensor | None:
    """bool [rows, columns], the last columns being the rows themselves; None where one row sees all."""
    import torch

    if rows == 1:
        return None
    ones = (rows, columns, device)
    return layout.once(ones, lambda: torch.ones(rows, columns, dtype=torch.bool, device=device).tril(columns - rows))


# one mask for a whole row -----------------------------------------------------------------------------------


def attend_masked(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scaling: float | None, dropout: float
) -> torch.Tensor:
    """One call for every BLOCK tokens of whole trees."""
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    past = key.shape[2] - query.shape[2]
    query, key, value = group_heads(query.to(value.dtype), key.to(value.dtype), value)
    blocks = layout.once("blocks", lambda: list(layout.blocks(BLOCK)))
    outputs = []
    for block, asked in zip(blocks, split_tokens(query, blocks, 0), strict=True):
        ranges = join_ranges([(-past, 0), (block[0].begin, block[-1].end)])
        keys, values = (take_ranges(tensor, ranges, past) for tensor in (key, value))
        is_alone = len(block) == 1 and not past
        output = scaled_dot_product_attention(
            asked,
            keys.expand(-1, query.shape[1], -1, -1),
            values.expand(-1, query.shape[1], -1, -1),
            attn_mask=None if is_alone else _block_mask(layout, block, past, value),
            dropout_p=dropout,
            is_causal=is_alone,
            scale=scaling,
        )
        outputs.append(output)
    return ungroup_heads(outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2))


def split_tokens(tensor: torch.Tensor, blocks: Sequence[Sequence[Segment]], past: int) -> Sequence[torch.Tensor]:
    """The tokens of each block; the gradients of a split are joined at once, those of slices added in full length."""
    if len(blocks) == 1:
        return [tensor]
    return tensor.split([block[-1].end - block[0].begin for block in blocks], dim=2)


def _block_mask(layout: Layout, block: Sequence[Segment], past: int, like: torch.Tensor) -> torch.Tensor:
    key = ("mask", block[0].begin, past, like.dtype, like.device)
    return layout.once(key, lambda: make_mask(block, past, like.dtype, like.device))


def make_mask(block: Sequence[Segment], past: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """[tokens, past + tokens] 0 where a token sees another, else -inf: what is added to the scores."""
    import torch

    number = {(segment.begin, segment.end): index for index, segment in enumerate(block)}
    sees = torch.eye(len(block), dtype=torch.bool)
    for index, segment in enumerate(block):
        sees[index, [number[above] for above in segment.before]] = True
    lengths = torch.tensor([len(segment) for segment in block])
    owner = torch.arange(len(block)).repeat_interleave(lengths).to(device)
    # A segment comes after those that it sees: no token sees a later one of the row.
    visible = sees.to(device)[owner][:, owner].tril()
    tokens = len(owner)
    width = -(-(past + tokens) // ALIGNMENT) * ALIGNMENT
    mask = torch.zeros(tokens, width, dtype=dtype, device=device)
    mask[:, past : past + tokens].masked_fill_(~visible, float("-inf"))
    return mask[:, : past + tokens]


# FlashAttention with lengths --------------------------------------------------------------------------------


def attend_by_lengths(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, layout: Layout, scaling: float | None, dropout: float
) -> torch.Tensor:
    """One call: each segment is a sequence of its own, whose keys are gathered where it sees other segments."""
    from torch.nn.attention.varlen import varlen_attn

    past = key.shape[2] - query.shape[2]
    lengths = layout.once(("lengths", past, value.device), lambda: make_lengths(layout.segments, past, value.device))
    keys, values = (tensor.to(value.dtype)[0].transpose(0, 1) for tensor in (key, value))
    if lengths["index"] is not None:
        keys, values = (tensor.index_select(0, lengths["index"]) for tensor in (keys, values))
    output = varlen_attn(
        query.to(value.dtype)[0].transpose(0, 1),
        keys,
        values,
        lengths["queries"],
        lengths["keys"],
        lengths["longest_query"],
        lengths["longest_key"],
        scale=scaling,
        window_size=(-1, 0),  # causal, the last query at the last key
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert not isinstance(output, tuple), "only the output is asked for"
    return output.unsqueeze(0)


def make_lengths(segments: Sequence[Segment], past: int, device: torch.device) -> dict[str, Any]:
    """queries, keys: int32 [segments + 1], where each segment's begin; index: the keys' tokens, None: all in order."""
    import numpy as np
    import torch

    parts = [join_ranges([(-past, 0), *segment.visible]) for segment in segments]
    seen = [np.concatenate([np.arange(past + begin, past + end) for begin, end in ranges]) for ranges in parts]
    index = np.concatenate(seen)
    counts = {"queries": [len(segment) for segment in segments], "keys": [len(tokens) for tokens in seen]}
    starts = {
        name: torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int32, device=device) for name, sizes in counts.items()
    }
    is_all = np.array_equal(index, np.arange(past + segments[-1].end))
    return {
        **starts,
        "index": None if is_all else torch.from_numpy(index).to(device),
        "longest_query": max(counts["queries"]),
        "longest_key": max(counts["keys"]),
    }
