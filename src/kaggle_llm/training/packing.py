"""Groups of candidates as packed sequences: the question once, its candidates behind it, nothing padded.

A group is [shared tokens][candidate 1]…[candidate n]. A candidate sees the shared tokens and itself, not the other
candidates, and its positions go on where the shared tokens end: exactly what each prompt alone would compute.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kaggle_llm.prompts import TokenGroup


@dataclass(frozen=True)
class Pack:
    """Several groups as one sequence of L tokens."""

    ids: np.ndarray
    """[L] token ids."""
    positions: np.ndarray
    """[L] positions as each prompt alone would have them."""
    visible: np.ndarray
    """[L, L] bool: may the row's token see the column's?"""
    last: np.ndarray
    """[candidates] index of every candidate's last token."""
    group: np.ndarray
    """[candidates] number of the group that the candidate belongs to."""
    right: np.ndarray
    """[candidates] bool: is it its group's right one?"""


def within_budget(groups: Iterable[TokenGroup], tokens: int) -> list[TokenGroup]:
    """The first groups whose tokens sum up to at most `tokens`."""
    kept: list[TokenGroup] = []
    total = 0
    for group in groups:
        total += len(group)
        if total > tokens:
            break
        kept.append(group)
    return kept


def pack(groups: Sequence[TokenGroup]) -> Pack:
    """One sequence out of groups; see the module's docstring for who sees whom."""
    pieces = [
        (number, place, list(tokens))
        for number, group in enumerate(groups)
        for place, tokens in enumerate([group.shared, *group.candidates])
    ]
    number, place = np.array([piece[0] for piece in pieces]), np.array([piece[1] for piece in pieces])
    lengths = np.array([len(piece[2]) for piece in pieces])
    ends = lengths.cumsum()
    total = int(ends[-1])
    begins = np.array([0 if at == 0 else len(groups[of].shared) for of, at, _ in pieces])
    owner, part = np.repeat(number, lengths), np.repeat(place, lengths)
    causal = np.tril(np.ones((total, total), dtype=bool))
    same_group = owner[:, None] == owner[None, :]
    same_piece = part[:, None] == part[None, :]
    candidate = place > 0
    return Pack(
        ids=np.array([token for *_, tokens in pieces for token in tokens]),
        positions=np.arange(total) - np.repeat(ends - lengths - begins, lengths),
        visible=causal & same_group & (same_piece | (part[None, :] == 0)),
        last=(ends - 1)[candidate],
        group=number[candidate],
        right=np.array([at - 1 == groups[of].right for of, at, _ in pieces])[candidate],
    )
