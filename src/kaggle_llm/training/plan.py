"""Plans which examples make a step, and which of them a process computes together: batches by tokens, not rows.

A step holds `training.batch` examples, shuffled again each epoch. They are split into parts of at most `batch_tokens`
tokens: equally many parts for every process, as equal in length as possible, so that no process waits.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kaggle_llm.training.settings import TrainingSettings


@dataclass(frozen=True)
class Share:
    """The work of one process in one step."""

    parts: list[list[int]]
    """Indices of examples that are computed together; a part is empty where other processes have more of them."""
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

    lengths: tokens of every example. weights: its loss units. padded: whether a part is padded to its longest example.
    """
    shares = []
    for epoch in range(training.epochs):
        order = list(range(len(lengths)))
        random.Random(f"{seed} {epoch}").shuffle(order)
        for start in range(0, len(order), training.batch):
            step = order[start : start + training.batch]
            parts = split_step(step, lengths, padded, training.part_tokens, world)
            weight = sum(weights[i] for i in step)
            shares += [Share(parts[rank::world], weight) for rank in range(world)]
    return shares


def split_step(step: Sequence[int], lengths: Sequence[int], padded: bool, budget: int, world: int) -> list[list[int]]:
    """Split a step into the smallest multiple of `world` parts within the budget, part i for process i mod world.

    A single example may exceed the budget.
    """
    split = split_padded if padded else split_packed
    longest_first = sorted(step, key=lambda i: (-lengths[i], i))
    for rounds in range(1, len(step) + 1):
        parts = split(longest_first, lengths, rounds * world)
        if all(len(part) < 2 or measure(part, lengths, padded) <= budget for part in parts):
            break
    return parts


def measure(part: Sequence[int], lengths: Sequence[int], padded: bool) -> int:
    """Tokens of a part, padding included."""
    tokens = [lengths[i] for i in part]
    return max(tokens, default=0) * len(tokens) if padded else sum(tokens)


def split_packed(longest_first: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Add each example to the shortest part so far (Graham's longest-processing-time rule, 1969)."""
    parts: list[list[int]] = [[] for _ in range(count)]
    for i in longest_first:
        min(parts, key=lambda part: (measure(part, lengths, False), len(part))).append(i)
    return parts


def split_padded(longest_first: Sequence[int], lengths: Sequence[int], count: int) -> list[list[int]]:
    """Group examples of similar length so that the largest part, padding included, is as small as possible."""
    caps = range(lengths[longest_first[0]], len(longest_first) * lengths[longest_first[0]] + 1)
    smallest = bisect_left(caps, True, key=lambda cap: len(fill_parts(longest_first, lengths, cap)) <= count)
    parts = fill_parts(longest_first, lengths, caps[smallest])
    return parts + [[] for _ in range(count - len(parts))]


def fill_parts(longest_first: Sequence[int], lengths: Sequence[int], cap: int) -> list[list[int]]:
    """Fill one part after the other up to `cap` padded tokens."""
    parts: list[list[int]] = [[]]
    for i in longest_first:
        if parts[-1] and measure([*parts[-1], i], lengths, True) > cap:
            parts.append([])
        parts[-1].append(i)
    return parts


def keep_within(examples: Sequence[Any], lengths: Sequence[int], tokens: int | None, noun: str) -> Sequence[Any]:
    """The first examples within `training.tokens`; raises ValueError where none fits."""
    kept = examples[: within_budget(lengths, tokens)]
    if not kept:
        raise ValueError(f"training.tokens = {tokens}: not even the first of {len(examples)} {noun} fits")
    return kept


def within_budget(lengths: Sequence[int], tokens: int | None) -> int:
    """How many of the first examples have at most `tokens` tokens in total; None: no limit."""
    total = 0
    for count, length in enumerate(lengths):
        total += length
        if tokens is not None and total > tokens:
            return count
    return len(lengths)
