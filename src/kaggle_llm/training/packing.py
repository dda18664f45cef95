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
    ids, positions, owner, part, last, group_of, right = [], [], [], [], [], [], []
    for number, group in enumerate(groups):
        for place, tokens in enumerate([group.shared, *group.candidates]):
            begin = 0 if place == 0 else len(group.shared)
            ids += list(tokens)
            positions += range(begin, begin + len(tokens))
            owner += [number] * len(tokens)
            part += [place] * len(tokens)
            if place:
                last.append(len(ids) - 1)
                group_of.append(number)
                right.append(place - 1 == group.right)
    owner_array, part_array = np.array(owner), np.array(part)
    same_group = owner_array[:, None] == owner_array[None, :]
    same_part = part_array[:, None] == part_array[None, :]
    causal = np.tril(np.ones((len(ids), len(ids)), dtype=bool))
    visible = causal & same_group & (same_part | (part_array[None, :] == 0))
    return Pack(
        np.array(ids), np.array(positions), visible, np.array(last), np.array(group_of), np.array(right, dtype=bool)
    )
