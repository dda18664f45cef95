"""Prompts cut into chunks for several workers: none idles at the end, and what shares a prefix stays together.

Pure functions on token ids, and the queue that the workers take from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from threading import Lock
from typing import Any

from kaggle_llm.engines.prefixes import common_prefix
from kaggle_llm.engines.prompts import Prompt

TOKENS = 2**17  # of a chunk at most: some minutes of a large model on a T4
CHUNKS = 8  # for each worker at least, when there are many prompts: the last one is a small part of the whole
PROMPTS = 16  # of a chunk, on average, at least: an engine computes them side by side
REPAID = 4  # a chunk computes again what it shares with the one before: its own tokens are so many times that


@dataclass
class Chunk:
    """Prompts, by their indices, that one worker answers in one call."""

    indices: list[int]
    tokens: int
    """What the engine computes: shared tokens once, and those that may be generated."""
    attempts: int = 0
    """Workers that it took down."""


def cut_by_prefix(prompts: Sequence[Prompt], workers: int) -> list[Chunk]:
    """Every prompt once, neighbours in lexicographic order together; cut where neighbours share little.

    A chunk of several prompts has at most `chunk_tokens` tokens besides those that its first prompt shares with the
    one before.
    """
    order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
    shared = [0, *(common_prefix(prompts[one], prompts[other]) for one, other in pairwise(order))][: len(order)]
    return _cut(order, [len(prompts[i]) for i in order], shared, workers)


def cut_by_length(prompts: Sequence[Prompt], workers: int, new: int = 0) -> list[Chunk]:
    """Every prompt once, those of like length together, the longest first.

    new: tokens that each prompt may generate. A chunk of several prompts has at most `chunk_tokens` tokens.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    return _cut(order, [len(prompts[i]) + new for i in order], [0] * len(order), workers)


def chunk_tokens(lengths: Sequence[int], shared: Sequence[int], workers: int) -> float:
    """Tokens of a chunk. lengths: of every prompt; shared: what each shares with the one before it."""
    total, mean = sum(lengths) - sum(shared), sum(shared) / len(shared)
    least = max(PROMPTS * total / len(lengths), REPAID * mean)
    return max(min(least, total / workers), min(TOKENS, total / (CHUNKS * workers)))


def _cut(order: Sequence[int], lengths: Sequence[int], shared: Sequence[int], workers: int) -> list[Chunk]:
    """`order` in pieces. No prompts are one empty chunk: the engine says what its answer to nothing looks like."""
    if not order:
        return [Chunk([], 0)]
    limit = chunk_tokens(lengths, shared, workers)
    own = [length - part for length, part in zip(lengths, shared, strict=True)]
    chunks, begin = [], 0
    while begin < len(order):
        end = _reach(own, begin, limit)
        if end < len(order):  # in the second half, where neighbours share least
            end = min(range((begin + end) // 2 + 1, end + 1), key=lambda at: (shared[at], -at))
        chunks.append(Chunk(list(order[begin:end]), shared[begin] + sum(own[begin:end])))
        begin = end
    return chunks


def _reach(own: Sequence[int], begin: int, limit: float) -> int:
    """The end of the longest piece from `begin` on with at most `limit` tokens; one prompt may have more."""
    end, size = begin + 1, own[begin]
    while end < len(own) and size + own[end] <= limit:
        size += own[end]
        end += 1
    return end


class ChunkQueue:
    """Where every worker takes its next chunk when it is free: the longest that is left.

    Used from one thread for each worker. After `stop` nothing is taken any more.
    """

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._waiting = deque(sorted(chunks, key=lambda chunk: -chunk.tokens))
        self._lock = Lock()
        self.answers: list[tuple[Chunk, Any]] = []
        self.error: BaseException | None = None
        """The first that stopped it."""

    def take(self) -> Chunk | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting and self.error is None else None

    def put_back(self, chunk: Chunk) -> None:
        """To the front: it is at least as long as the others."""
        with self._lock:
            self._waiting.appendleft(chunk)

    def finish(self, chunk: Chunk, answer: Any) -> None:
        with self._lock:
            self.answers.append((chunk, answer))

    def stop(self, error: BaseException) -> None:
        with self._lock:
            self.error = self.error or error
