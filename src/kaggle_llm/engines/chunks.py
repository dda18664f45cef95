"""Split prompts into chunks for several workers: none idles at the end, and prompts with a common prefix stay together.

Pure functions on token ids, and the queue that the workers take chunks from.
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

MAX_CHUNK_TOKENS = 2**17  # some minutes of a large model on a T4
CHUNKS_A_WORKER = 8  # at least, where there are many prompts: the last one is then a small part of the whole
MIN_PROMPTS_A_CHUNK = 16  # on average: an engine computes them side by side
OWN_PER_SHARED = 4  # a chunk recomputes the prefix it shares with the one before: its own tokens are 4 times as many


@dataclass
class Chunk:
    """Indices of the prompts that one worker answers in one call."""

    indices: list[int]
    tokens: int
    """Tokens to compute: shared ones once, plus those that may be generated."""
    attempts: int = 0
    """Workers that were lost on it."""


def cut_by_prefix(prompts: Sequence[Prompt], workers: int) -> list[Chunk]:
    """Chunks of all prompts in lexicographic order, split where neighbours share few tokens.

    A chunk of several prompts has at most `chunk_tokens` tokens, not counting those that its first prompt shares with
    the one before.
    """
    order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
    shared = [0, *(common_prefix(prompts[i], prompts[j]) for i, j in pairwise(order))][: len(order)]
    return _cut(order, [len(prompts[i]) for i in order], shared, workers)


def cut_by_length(prompts: Sequence[Prompt], workers: int, new: int = 0) -> list[Chunk]:
    """Chunks of all prompts, longest first. A chunk of several prompts has at most `chunk_tokens` tokens.

    new: tokens that each prompt may generate.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    return _cut(order, [len(prompts[i]) + new for i in order], [0] * len(order), workers)


def chunk_tokens(lengths: Sequence[int], shared: Sequence[int], workers: int) -> float:
    """Largest size of a chunk. lengths: tokens of every prompt; shared: tokens in common with the prompt before."""
    total, mean = sum(lengths) - sum(shared), sum(shared) / len(shared)
    least = max(MIN_PROMPTS_A_CHUNK * total / len(lengths), OWN_PER_SHARED * mean)
    return max(min(least, total / workers), min(MAX_CHUNK_TOKENS, total / (CHUNKS_A_WORKER * workers)))


def _cut(order: Sequence[int], lengths: Sequence[int], shared: Sequence[int], workers: int) -> list[Chunk]:
    """Chunks in the given order. Without prompts one empty chunk: the engine knows the shape of its empty answer."""
    if not order:
        return [Chunk([], 0)]
    limit = chunk_tokens(lengths, shared, workers)
    own = [length - common for length, common in zip(lengths, shared, strict=True)]
    chunks, begin = [], 0
    while begin < len(order):
        end = _end_of_piece(own, begin, limit)
        if end < len(order):  # split in its second half, where neighbours share least
            end = min(range((begin + end) // 2 + 1, end + 1), key=lambda i: (shared[i], -i))
        chunks.append(Chunk(list(order[begin:end]), shared[begin] + sum(own[begin:end])))
        begin = end
    return chunks


def _end_of_piece(own: Sequence[int], begin: int, limit: float) -> int:
    """End of the longest piece from `begin` with at most `limit` tokens; a single prompt may have more."""
    end, size = begin + 1, own[begin]
    while end < len(own) and size + own[end] <= limit:
        size += own[end]
        end += 1
    return end


class ChunkQueue:
    """Gives every free worker the longest chunk that is left; after `stop` no more. Thread-safe."""

    def __init__(self, chunks: Sequence[Chunk]) -> None:
        self._waiting = deque(sorted(chunks, key=lambda chunk: -chunk.tokens))
        self._lock = Lock()
        self.answers: list[tuple[Chunk, Any]] = []
        self.error: BaseException | None = None
        """The first error that stopped the queue."""

    def take(self) -> Chunk | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting and self.error is None else None

    def put_back(self, chunk: Chunk) -> None:
        """Put it first: it is at least as long as the others."""
        with self._lock:
            self._waiting.appendleft(chunk)

    def finish(self, chunk: Chunk, answer: Any) -> None:
        with self._lock:
            self.answers.append((chunk, answer))

    def stop(self, error: BaseException) -> None:
        with self._lock:
            self.error = self.error or error
