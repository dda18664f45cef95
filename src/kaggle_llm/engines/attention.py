"""How transformers' models attend here: within the segments of a packed row, and with fast kernels on a T4.

A packed row holds several sequences or the nodes of a prefix tree, one behind the other. Nothing is padded and there is
no mask of all by all: each segment is one call of torch's fused attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SEGMENTS = "segments"
SM_75 = (7, 5)  # T4
Span = tuple[int, int]


@dataclass(frozen=True)
class Segment:
    """Tokens that stand next to each other in a packed row and see themselves causally."""

    begin: int
    end: int
    before: tuple[Span, ...] = ()
    """What else of the row they see, whole and in this order: the nodes above theirs."""


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
    segments: Sequence[Segment],
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, heads, tokens, d], key and value [1, groups, past + tokens, d] → [1, tokens, heads, d].

    past: tokens of a cache, which every segment sees.
    Raises ValueError for what a fused kernel cannot do: soft-capped scores, a window shorter than a prompt.
    """
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    past = key.shape[2] - query.shape[2]
    longest = past + max(sum(end - begin for begin, end in _seen(segment)) for segment in segments)
    if softcap is not None:
        raise ValueError(f"{type(module).__name__} caps its attention scores at {softcap}: it cannot be packed")
    if sliding_window is not None and longest > sliding_window:
        raise ValueError(f"an example of {longest} tokens exceeds the model's attention window of {sliding_window}")
    # Grouped heads are rows of a batch that see the same keys, without a copy of them: of torch's kernels for a T4
    # those that know groups are not the fast ones.
    groups = key.shape[1]
    query = query.view(groups, -1, *query.shape[2:])
    key, value = (part.transpose(0, 1) for part in (key, value))
    found = []
    for segment in segments:
        spans = _join([(-past, 0), *_seen(segment)])
        keys, values = (_gather(part, spans, past).expand(-1, query.shape[1], -1, -1) for part in (key, value))
        alone = keys.shape[2] == segment.end - segment.begin
        found.append(
            scaled_dot_product_attention(
                query[:, :, segment.begin : segment.end],
                keys,
                values,
                attn_mask=None if alone else _causal(segment.end - segment.begin, keys.shape[2], query.device),
                dropout_p=dropout,
                is_causal=alone,
                scale=scaling,
            )
        )
    together = torch.cat(found, dim=2)
    return together.reshape(1, -1, *together.shape[2:]).transpose(1, 2), None


def _seen(segment: Segment) -> list[Span]:
    return [*segment.before, (segment.begin, segment.end)]


def _join(spans: Sequence[Span]) -> list[Span]:
    """The same places; spans that touch are one, empty ones are gone."""
    joined: list[Span] = []
    for begin, end in spans:
        if joined and joined[-1][1] == begin:
            joined[-1] = (joined[-1][0], end)
        elif begin < end:
            joined.append((begin, end))
    return joined


def _gather(part: torch.Tensor, spans: Sequence[Span], past: int) -> torch.Tensor:
    """The places of `spans`, counted from the end of the cache: a view where they are one span."""
    import torch

    pieces = [part[:, :, past + begin : past + end] for begin, end in spans]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=2)


def _causal(rows: int, columns: int, device: torch.device) -> torch.Tensor | None:
    """bool [rows, columns]: the last of the columns are the rows themselves; None where a row sees all."""
    import torch

    if rows == 1:
        return None
    return torch.ones(rows, columns, dtype=torch.bool, device=device).tril(columns - rows)


def capability() -> tuple[int, int] | None:
    """The GPU's compute capability; None without a GPU."""
    import torch

    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def avoid_slow_kernel() -> None:
    """On a T4, let transformers repeat keys and values of grouped-query attention itself.

    It leaves that to torch where there is no mask, and of torch's kernels for sm_75 only the plain one, without tensor
    cores, knows groups. Measured on a T4 by others: 178 → 289 and 202 → 371 tokens/s
    (huggingface/transformers, issue 48633 and pull request 45776).
    """
    if capability() == SM_75:
        from transformers.integrations import sdpa_attention

        sdpa_attention.use_gqa_in_sdpa = lambda *_, **__: False


@contextmanager
def packed(model: Any) -> Iterator[None]:
    """`model` (of transformers, or an adapter of PEFT on it) takes `segments` inside, and is as before behind it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    before = inner.config._attn_implementation
    inner.set_attn_implementation(register_segments())
    try:
        yield
    finally:
        inner.set_attn_implementation(before)
