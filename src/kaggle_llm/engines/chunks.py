"""Split prompts into chunks for several workers: each fills batches of the engine, none idles at the end, and prompts
with a common prefix stay together.

Pure functions on token ids, and the queue that the workers take chunks from.
"""

from __future__ import annotations

import math
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
CHEAP_TOKENS = 16  # that may be computed again to fill a chunk better


@dataclass
class Chunk:
    """Indices of the prompts that one worker answers in one call."""

    indices: list[int]
    tokens: int
    """Tokens to compute: shared ones once, plus those that may be generated."""
    attempts: int = 0
    """Workers that were lost on it."""


def cut_by_prefix(prompts: Sequence[Prompt], workers: int, batch: int) -> list[Chunk]:
    """Chunks of all prompts in lexicographic order, split where neighbours share few tokens.

    batch: tokens that an engine computes at a time. A chunk of several prompts has at most `chunk_tokens` tokens, not
    counting those that its first prompt shares with the one before.
    """
    order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
    if not order:
        return [Chunk([], 0)]
    shared = [0, *(common_prefix(prompts[i], prompts[j]) for i, j in pairwise(order))]
    own = [len(prompts[i]) - common for i, common in zip(order, shared, strict=True)]
    limit = chunk_tokens(sum(own), len(own), sum(shared) / len(shared), workers, batch)
    chunks, begin = [], 0
    while begin < len(order):
        end = _end_of_piece(own, begin, limit)
        if end < len(order):
            end = _last_cheap_split(shared, (begin + end) // 2 + 1, end)
        chunks.append(Chunk(order[begin:end], shared[begin] + sum(own[begin:end])))
        begin = end
    return chunks


def cut_by_length(prompts: Sequence[Prompt], workers: int, batch: int, new: int = 0) -> list[Chunk]:
    """Chunks of all prompts, longest first. A chunk of several prompts, padded, has at most `chunk_tokens` tokens.

    batch: tokens that an engine computes at a time. new: tokens that each prompt may generate.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    if not order:
        return [Chunk([], 0)]
    lengths = [len(prompts[i]) + new for i in order]
    limit = chunk_tokens(sum(lengths), len(lengths), 0, workers, batch)
    chunks, begin = [], 0
    while begin < len(order):
        end = begin + max(1, int(limit // max(lengths[begin], 1)))
        chunks.append(Chunk(order[begin:end], sum(lengths[begin:end])))
        begin = end
    return chunks


def chunk_tokens(own: int, prompts: int, shared: float, workers: int, batch: int) -> float:
    """Largest size of a chunk, without the tokens that it shares with the one before.

    own: tokens of all `prompts`, shared ones once; shared: those that a prompt has in common with the one before, on
    average. Every worker gets equally many chunks of this size: of a batch or a little less, and where there is much to
    do, CHUNKS_A_WORKER or a few more of several batches.
    """
    least = max(batch - shared, MIN_PROMPTS_A_CHUNK * own / prompts, OWN_PER_SHARED * shared)
    share = own / workers
    wanted = max(least, min(MAX_CHUNK_TOKENS, share / CHUNKS_A_WORKER) // batch * batch - shared)
    return share / max(1, math.ceil(share / wanted))


def _end_of_piece(own: Sequence[int], begin: int, limit: float) -> int:
    """End of the longest piece from `begin` with at most `limit` tokens; a single prompt may have more."""
    end, size = begin + 1, own[begin]
    while end < len(own) and size + own[end] <= limit:
        size += own[end]
        end += 1
    return end


def _last_cheap_split(shared: Sequence[int], first: int, last: int) -> int:
    """The last index of first, …, last where neighbours share hardly more than they do at the best one."""
    limit = min(shared[first : last + 1]) + CHEAP_TOKENS
    return max(index for index in range(first, last + 1) if shared[index] <= limit)


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
        """Put the chunk first: it is at least as long as the others."""
        with self._lock:
            self._waiting.appendleft(chunk)

    def finish(self, chunk: Chunk, answer: Any) -> None:
        with self._lock:
            self.answers.append((chunk, answer))

    def stop(self, error: BaseException) -> None:
        with self._lock:
            self.error = self.error or error
