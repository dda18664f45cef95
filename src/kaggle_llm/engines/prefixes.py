"""Prompts as a tree of their shared token prefixes: instructions → question → candidate. Pure functions."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from kaggle_llm.engines.prompts import Prompt

MIN_TOKENS_SAVED = 16  # by a shared node: its extra calls cost as much as about 4 tokens
MAX_LEVELS = 8  # of sharing; below, prompts are not split further


@dataclass
class PrefixNode:
    """The tokens [begin, end) that the prompts of a subtree share; those before `begin` belong to its parents."""

    begin: int
    end: int
    prompt: int
    """Index of one of the prompts, to read the tokens from."""
    ends: list[int] = field(default_factory=list)
    """Indices of the prompts that end here."""
    children: list[PrefixNode] = field(default_factory=list)

    def __len__(self) -> int:
        """Tokens of the whole subtree, each counted once."""
        return self.end - self.begin + sum(map(len, self.children))


def grow_tree(prompts: Sequence[Prompt]) -> list[PrefixNode]:
    """The roots of the trees. Every prompt ends in exactly one node, equal prompts in the same."""
    keys = [tuple(prompt) for prompt in prompts]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return _split(keys, order, 0, 0, MAX_LEVELS)


def _split(keys: Sequence[Prompt], order: Sequence[int], begin: int, shared: int, levels: int) -> list[PrefixNode]:
    """Nodes that start at `begin`, for sorted prompts that share their first `shared` tokens and are all longer."""
    branches = groupby(order, lambda i: keys[i][shared])
    return [node for _, branch in branches for node in _grow(keys, list(branch), begin, levels)]


def _grow(keys: Sequence[Prompt], order: Sequence[int], begin: int, levels: int) -> list[PrefixNode]:
    """One node for sorted prompts that share more than `begin` tokens, or several where sharing saves too little."""
    first, last = order[0], order[-1]
    shared = common_prefix(keys[first], keys[last])
    ends = [i for i in order if len(keys[i]) == shared]
    rest = order[len(ends) :]
    if not rest or (levels and (shared - begin) * (len(order) - 1) >= MIN_TOKENS_SAVED):
        children = _split(keys, rest, shared, shared, levels - 1) if rest else []
        return [PrefixNode(begin, shared, first, ends, children)]
    if not levels:
        equal = [list(indices) for _, indices in groupby(order, keys.__getitem__)]
        return [PrefixNode(begin, len(keys[indices[0]]), indices[0], indices) for indices in equal]
    alone = [PrefixNode(begin, shared, first, ends)] if ends else []
    return alone + _split(keys, rest, begin, shared, levels - 1)


def common_prefix(first: Prompt, second: Prompt) -> int:
    """Number of leading tokens that both share; both must be of one type (list or tuple)."""
    lengths = range(1, min(len(first), len(second)) + 1)
    return bisect_left(lengths, True, key=lambda length: first[:length] != second[:length])


def group_nodes(nodes: Sequence[PrefixNode], budget: int) -> Iterator[list[PrefixNode]]:
    """Runs of neighbours whose subtrees have at most `budget` tokens together; a single node may have more."""
    group: list[PrefixNode] = []
    size = 0
    for node in nodes:
        if group and size + len(node) > budget:
            yield group
            group, size = [], 0
        group.append(node)
        size += len(node)
    if group:
        yield group
