"""Which examples make a step, and which of them each process computes together: batches made by tokens, not rows.

A step holds `training.batch` examples, drawn anew each epoch. They are split into parts of at most `batch_tokens`
tokens, the same number of parts on every process and as equal in length as they go, so that no process waits.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from kaggle_llm.training.settings import TrainingSettings


@dataclass(frozen=True)
class Share:
    """What one process computes in one step."""

    parts: list[list[int]]
    """Places of the examples that are computed together. An empty part keeps step with the other processes."""
    weight: float
    """Loss units (tokens, rows, groups) of the whole step, over all processes."""


def plan_training(
    lengths: Sequence[int],
    weights: Sequence[float],
    padded: bool,
    training: TrainingSettings,
    seed: int,
    world: int = 1,
) -> list[Share]:
    """Shares of all steps of all epochs: step by step, in each step process by process.

    lengths: tokens of every example. weights: its loss units. padded: are a part's examples padded to the longest?
    """
    shares = []
    for epoch in range(training.epochs):
        order = list(range(len(lengths)))
        random.Random(f"{seed} {epoch}").shuffle(order)
        for start in range(0, len(order), training.batch):
            step = order[start : start + training.batch]
            parts = split_step(step, lengths, padded, training.batch_tokens, world)
            weight = sum(weights[i] for i in step)
            shares += [Share(parts[rank::world], weight) for rank in range(world)]
    return shares


def split_step(step: Sequence[int], lengths: Sequence[int], padded: bool, budget: int, world: int) -> list[list[int]]:
    """A step's examples in the smallest multiple of `world` parts that keep to the budget, part i for process
    i mod world; one example alone may break the budget.
    """
    split = split_padded if padded else split_packed
    longest_first = sorted(step, key=lambda i: (-lengths[i], i))
    for rounds in range(1, len(step) + 1):
        parts = split(longest_first, lengths, rounds * world)
        if all(len(part) < 2 or measure(part, lengths, padded) <= budget for part in parts):
            break
    return parts


def measure(part: Sequence[int], lengths: Sequence[int], padded: bool) -> int:
    """Tokens that a part takes, padding included."""
    found = [lengths[i] for i in part]
    return max(found, default=0) * len(found) if padded else sum(found)


def split_packed(longest_first: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Each example to the shortest part so far (Graham's longest-processing-time rule, 1969)."""
    parts: list[list[int]] = [[] for _ in range(count)]
    for i in longest_first:
        min(parts, key=lambda part: (measure(part, lengths, False), len(part))).append(i)
    return parts


def split_padded(longest_first: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Neighbours in length together, cut so that the largest part, padding included, is as small as it can be."""
    caps = range(lengths[longest_first[0]], len(longest_first) * lengths[longest_first[0]] + 1)
    smallest = bisect_left(caps, True, key=lambda cap: len(fill_parts(longest_first, lengths, cap)) <= count)
    parts = fill_parts(longest_first, lengths, caps[smallest])
    return parts + [[] for _ in range(count - len(parts))]


def fill_parts(longest_first: Sequence[int], lengths: Sequence[int], cap: int) -> list[list[int]]:
    """One part after the other, each filled up to `cap` padded tokens."""
    parts: list[list[int]] = [[]]
    for i in longest_first:
        if parts[-1] and measure([*parts[-1], i], lengths, True) > cap:
            parts.append([])
        parts[-1].append(i)
    return parts


def within_budget(lengths: Sequence[int], tokens: int | None) -> int:
    """How many of the first examples have at most `tokens` tokens together."""
    total = 0
    for count, length in enumerate(lengths):
        total += length
        if tokens is not None and total > tokens:
            return count
    return len(lengths)
