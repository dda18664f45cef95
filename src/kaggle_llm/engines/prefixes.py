"""Prompts as a tree of what they share, in tokens: instructions → question → candidate. Pure functions on token ids."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from kaggle_llm.engines.prompts import Prompt

WORTH = 16  # tokens that sharing must save: a piece of its own costs about a quarter of that in calls
DEEPEST = 8  # levels of sharing; below, prompts are whole


@dataclass
class Node:
    """The tokens [begin, end) that the prompts of a subtree share, and nobody above them."""

    begin: int
    end: int
    prompt: int
    """One of the prompts, to read the tokens from."""
    ends: list[int] = field(default_factory=list)
    """Prompts that end here."""
    children: list[Node] = field(default_factory=list)

    def __len__(self) -> int:
        """Tokens of the whole subtree, each counted once."""
        return self.end - self.begin + sum(map(len, self.children))

    def walk(self) -> Iterator[Node]:
        """This node and those below it, each before its children."""
        yield self
        for child in self.children:
            yield from child.walk()


def grow_tree(prompts: Sequence[Prompt]) -> list[Node]:
    """The roots; every prompt ends in exactly one node, equal prompts in the same."""
    keys = [tuple(prompt) for prompt in prompts]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return _split(keys, order, 0, 0, DEEPEST)


def _split(keys: Sequence[Prompt], order: Sequence[int], begin: int, at: int, levels: int) -> list[Node]:
    """Nodes from `begin` on for sorted prompts that share what is before `at`; each is longer than that."""
    parts = groupby(order, lambda i: keys[i][at])
    return [node for _, part in parts for node in _grow(keys, list(part), begin, levels)]


def _grow(keys: Sequence[Prompt], order: Sequence[int], begin: int, levels: int) -> list[Node]:
    """One node for sorted prompts that share more than `begin`, or several where that would save too little."""
    first, last = order[0], order[-1]
    shared = common_prefix(keys[first], keys[last])
    ends = [i for i in order if len(keys[i]) == shared]
    rest = order[len(ends) :]
    if not rest or (levels and (shared - begin) * (len(order) - 1) >= WORTH):
        children = _split(keys, rest, shared, shared, levels - 1) if rest else []
        return [Node(begin, shared, first, ends, children)]
    if not levels:
        alike = groupby(order, keys.__getitem__)
        return [Node(begin, len(key), same[0], same) for key, same in ((key, list(part)) for key, part in alike)]
    alone = [Node(begin, shared, first, ends)] if ends else []
    return alone + _split(keys, rest, begin, shared, levels - 1)


def common_prefix(first: Prompt, second: Prompt) -> int:
    """Number of leading tokens that both, of one type, share."""
    lengths = range(1, min(len(first), len(second)) + 1)
    return bisect_left(lengths, True, key=lambda length: first[:length] != second[:length])


def gather(nodes: Sequence[Node], budget: int) -> Iterator[list[Node]]:
    """Neighbours whose subtrees together have at most `budget` tokens; one alone may have more."""
    group: list[Node] = []
    size = 0
    for node in nodes:
        if group and size + len(node) > budget:
            yield group
            group, size = [], 0
        group.append(node)
        size += len(node)
    if group:
        yield group
