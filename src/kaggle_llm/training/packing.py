"""Examples as one row of tokens, nothing padded: sequences one behind the other, or groups with a shared beginning.

A group is [shared tokens][candidate 1]…[candidate n]. A candidate sees the shared tokens and itself, not the other
candidates, and its positions go on where the shared tokens end: exactly what each prompt alone would compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kaggle_llm.prompts import Prompt

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pack:
    """Several examples as one sequence of L tokens."""

    ids: np.ndarray
    """[L] token ids."""
    positions: np.ndarray
    """[L] positions as each prompt alone would have them."""
    segments: list[tuple[int, int, np.ndarray | None]]
    """Begin and end of every example, and which of its tokens see which: None is causal, else bool [l, l]."""
    ends: np.ndarray
    """[prompts] index of every prompt's last token: one of a sequence, one of each candidate of a group."""


def pack(examples: Sequence[tuple[Prompt, Sequence[Prompt]]]) -> Pack:
    """One row out of (shared tokens, candidates); a plain sequence is shared tokens with one empty candidate."""
    ids: list[int] = []
    positions: list[int] = []
    segments: list[tuple[int, int, np.ndarray | None]] = []
    ends: list[int] = []
    for shared, candidates in examples:
        begin = len(ids)
        pieces = [shared, *candidates]
        for place, piece in enumerate(pieces):
            first = len(shared) if place else 0
            ids += piece
            positions += range(first, first + len(piece))
            if place:
                ends.append(len(ids) - 1)
        visible = None if len(candidates) == 1 else see_shared_and_own([len(piece) for piece in pieces])
        segments.append((begin, len(ids), visible))
    return Pack(np.array(ids), np.array(positions), segments, np.array(ends))


def see_shared_and_own(lengths: Sequence[int]) -> np.ndarray:
    """bool [l, l]: a token sees, up to itself, the first piece and its own."""
    piece = np.repeat(np.arange(len(lengths)), lengths)
    causal = np.tril(np.ones((piece.size, piece.size), dtype=bool))
    return causal & ((piece[:, None] == piece[None, :]) | (piece[None, :] == 0))


def compute_logits(model: Any, packed: Pack, keep: np.ndarray) -> torch.Tensor:
    """[keep, vocabulary] logits behind the tokens `keep`: no other position meets the vocabulary matrix.

    The model was loaded with attention.register_segments().
    """
    import torch

    device = next(model.parameters()).device  # a wrapper of DDP has no device of its own
    segments = [
        (begin, end, None if visible is None else torch.from_numpy(visible).to(device))
        for begin, end, visible in packed.segments
    ]
    logits: torch.Tensor = model(
        input_ids=torch.from_numpy(packed.ids)[None].to(device),
        position_ids=torch.from_numpy(packed.positions)[None].to(device),
        logits_to_keep=torch.from_numpy(keep).to(device),
        segments=segments,
        use_cache=False,
    ).logits[0]
    return logits.float()
