"""Prompts that begin alike are computed once up to where they differ. Pure functions on token ids."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from kaggle_llm.prompts import Prompt

WORTH = 16  # a shorter common prefix costs more in bookkeeping than it saves


def common_prefix(first: Prompt, second: Prompt) -> int:
    """Number of leading tokens that both share."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def group_by_prefix(prompts: Sequence[Prompt]) -> list[tuple[int, list[int]]]:
    """Neighbours that share a prefix → [(prefix length, indices)], every index once, in the order given.

    Neighbours belong together while they share at least WORTH tokens and half of the group's first prompt, so what
    two rows have in common through the instruction alone does not join them: a row's numbers depend on that row only.
    The prefix leaves at least one token of every prompt, for the logits come from there.
    """
    groups: list[tuple[int, list[int]]] = []
    for index, prompt in enumerate(prompts):
        if groups:
            length, members = groups[-1]
            first = prompts[members[0]]
            shared = min(length, common_prefix(first, prompt), len(prompt) - 1)
            if shared >= WORTH and 2 * shared >= len(first):
                groups[-1] = (shared, [*members, index])
                continue
        groups.append((max(len(prompt) - 1, 0), [index]))
    return [(length if len(members) > 1 else 0, members) for length, members in groups]
