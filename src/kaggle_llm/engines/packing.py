"""Packs several prompts into one row of tokens without padding: sequences one after the other, or prefix trees.

A shared prefix is computed once. A piece attends to its parents in the tree and to itself, not to its siblings, and its
positions continue theirs, so the result is exactly what each prompt would give alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kaggle_llm.engines.attention import takes_segments
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.segments import Layout, Segment

if TYPE_CHECKING:
    import torch


@dataclass
class Pack:
    """One row of L tokens, built piece by piece."""

    ids: list[int] = field(default_factory=list)
    """[L] token ids."""
    positions: list[int] = field(default_factory=list)
    """[L] positions that the tokens have in their own prompts."""
    segments: list[Segment] = field(default_factory=list)
    """Which tokens attend to which."""
    ends: list[int] = field(default_factory=list)
    """Index of every prompt's last token."""

    def add(self, piece: Prompt, position: int = 0, above: Segment | None = None) -> Segment | None:
        """Append a piece as a child of the segment `above`, its first token at `position`; returns its segment.

        An empty piece adds nothing and returns `above`.
        """
        if not piece:
            return above
        begin = len(self.ids)
        before = (*above.before, (above.begin, above.end)) if above else ()
        self.ids += piece
        self.positions += range(position, position + len(piece))
        self.segments.append(Segment(begin, len(self.ids), before))
        return self.segments[-1]


def pack(examples: Sequence[tuple[Prompt, Sequence[Prompt]]]) -> Pack:
    """One row of (shared tokens, candidates) pairs; a plain sequence is shared tokens with one empty candidate."""
    row = Pack()
    for shared, candidates in examples:
        above = row.add(shared)
        for candidate in candidates:
            last = row.add(candidate, len(shared), above)
            assert last is not None, "a prompt has a token"
            row.ends.append(last.end - 1)
    return row


def compute_logits(model: Any, row: Pack, keep: Sequence[int] | np.ndarray, cache: Any = None) -> torch.Tensor:
    """[keep, vocabulary] fp32 logits at the token indices `keep`; no others are multiplied by the vocabulary matrix.

    A model that was loaded with attention.register_segments(), or inside attention.packed(), computes the whole row at
    once; another one every prompt by itself. cache: keys and values of earlier tokens, which the whole row attends to;
    the row's own are added to it.
    """
    import torch

    if not takes_segments(model):
        return compute_alone(model, row, keep)
    device = next(model.parameters()).device  # a wrapper of DDP has no device of its own
    logits: torch.Tensor = model(
        input_ids=torch.tensor([row.ids], device=device),
        position_ids=torch.tensor([row.positions], device=device),
        logits_to_keep=torch.as_tensor(keep, dtype=torch.long, device=device),
        segments=Layout(row.segments),
        past_key_values=cache,
        use_cache=cache is not None,
    ).logits[0]
    return logits.float()


def compute_alone(model: Any, row: Pack, keep: Sequence[int] | np.ndarray) -> torch.Tensor:
    """Like compute_logits, but a forward pass for each prompt: no state along the text runs through padding."""
    import torch

    device = next(model.parameters()).device
    logits: dict[int, torch.Tensor] = {}
    for segment in row.segments:
        kept = sorted({int(index) for index in keep if segment.begin <= index < segment.end})
        if kept:
            ranges = (*segment.before, (segment.begin, segment.end))
            prompt = [token for begin, end in ranges for token in row.ids[begin:end]]
            places = torch.tensor(kept, device=device) + len(prompt) - segment.end
            out = model(input_ids=torch.tensor([prompt], device=device), logits_to_keep=places, use_cache=False)
            logits |= dict(zip(kept, out.logits[0].float(), strict=True))
    return torch.stack([logits[int(index)] for index in keep])
