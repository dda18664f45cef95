"""Several prompts as one row of tokens, nothing padded: sequences one behind the other, or trees of shared beginnings.

What shares a beginning computes it once: a piece sees the pieces above it in its tree and itself, not its neighbours,
and its positions go on where theirs end: exactly what each prompt alone would compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from kaggle_llm.engines.attention import Segment
from kaggle_llm.engines.prompts import Prompt

if TYPE_CHECKING:
    import torch


@dataclass
class Pack:
    """One row of L tokens, made piece by piece."""

    ids: list[int] = field(default_factory=list)
    """[L] token ids."""
    positions: list[int] = field(default_factory=list)
    """[L] positions as each prompt alone would have them."""
    segments: list[Segment] = field(default_factory=list)
    """Which tokens see which."""
    ends: list[int] = field(default_factory=list)
    """Index of every prompt's last token."""

    def add(self, piece: Prompt, position: int = 0, above: Segment | None = None) -> Segment | None:
        """Append a piece whose first token has this position, below the segment `above`; an empty one adds nothing."""
        if not piece:
            return above
        begin = len(self.ids)
        before = (*above.before, (above.begin, above.end)) if above else ()
        self.ids += piece
        self.positions += range(position, position + len(piece))
        self.segments.append(Segment(begin, len(self.ids), before))
        return self.segments[-1]


def pack(examples: Sequence[tuple[Prompt, Sequence[Prompt]]]) -> Pack:
    """One row out of (shared tokens, candidates); a plain sequence is shared tokens with one empty candidate."""
    row = Pack()
    for shared, candidates in examples:
        above = row.add(shared)
        for candidate in candidates:
            last = row.add(candidate, len(shared), above)
            assert last is not None, "a prompt has a token"
            row.ends.append(last.end - 1)
    return row


def compute_logits(model: Any, row: Pack, keep: Sequence[int] | np.ndarray, cache: Any = None) -> torch.Tensor:
    """[keep, vocabulary] logits behind the tokens `keep`, in fp32: no other position meets the vocabulary matrix.

    model: loaded with attention.register_segments(), or inside attention.packed(). cache: keys and values of tokens
    before the row's, which all of it sees; the row's are added to it.
    """
    import torch

    device = next(model.parameters()).device  # a wrapper of DDP has no device of its own
    logits: torch.Tensor = model(
        input_ids=torch.tensor([row.ids], device=device),
        position_ids=torch.tensor([row.positions], device=device),
        logits_to_keep=torch.as_tensor(keep, dtype=torch.long, device=device),
        segments=row.segments,
        past_key_values=cache,
        use_cache=cache is not None,
    ).logits[0]
    return logits.float()
