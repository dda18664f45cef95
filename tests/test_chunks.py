"""Chunks hold every prompt once, in pieces that keep all workers at work."""

import heapq
import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from kaggle_llm.engines.chunks import (
    MAX_CHUNK_TOKENS,
    MIN_PROMPTS_A_CHUNK,
    Chunk,
    ChunkQueue,
    chunk_tokens,
    cut_by_length,
    cut_by_prefix,
)

CUTS = {"prefix": cut_by_prefix, "length": cut_by_length}
BATCH = 4096
Rows = list[tuple[int, ...]]


def unlike(seed: int, count: int, longest: int) -> Rows:
    """Prompts of a vocabulary so small that some share tokens by chance."""
    draw = random.Random(seed)
    return [tuple(draw.choices(range(3), k=draw.randint(1, longest))) for _ in range(count)]


def tree(queries: int, candidates: int, shared: int, own: int) -> Rows:
    """Instructions of 30 tokens, queries of `shared` tokens, candidates of `own`; shuffled."""
    draw = random.Random(0)
    rows = []
    for _ in range(queries):
        query = tuple(draw.choices(range(500), k=shared))
        rows += [(*range(30), *query, *draw.choices(range(500), k=own)) for _ in range(candidates)]
    draw.shuffle(rows)
    return rows


def own_tokens(rows: Rows, order: Sequence[int]) -> list[int]:
    """What each prompt in this order does not share with the one before: a literal loop."""
    found, before = [], ()
    for index in order:
        shared = 0
        while shared < min(len(before), len(rows[index])) and before[shared] == rows[index][shared]:
            shared += 1
        found.append(len(rows[index]) - shared)
        before = rows[index]
    return found


def run(chunks: Sequence[Chunk], workers: int) -> list[int]:
    """When each worker ends, if every token takes one second and each takes the next chunk when it is free."""
    queue = ChunkQueue(chunks)
    free = [(0, worker) for worker in range(workers)]
    heapq.heapify(free)
    while (chunk := queue.take()) is not None:
        now, worker = heapq.heappop(free)
        heapq.heappush(free, (now + chunk.tokens, worker))
    return sorted(end for end, _ in free)


@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("batch", [1, 100, BATCH])
def test_every_prompt_is_in_one_chunk(kind: str, workers: int, batch: int) -> None:
    for seed in range(20):
        rows = unlike(seed, 1 + 7 * seed, 40)
        chunks = CUTS[kind](rows, workers, batch)
        assert sorted(index for chunk in chunks for index in chunk.indices) == list(range(len(rows)))
        assert all(chunk.indices for chunk in chunks)


@pytest.mark.parametrize("kind", CUTS)
def test_no_prompts_are_one_empty_chunk(kind: str) -> None:
    assert CUTS[kind]([], 2, BATCH) == [Chunk([], 0)]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("batch", [1, 100, BATCH])
def test_a_chunk_of_several_prompts_keeps_to_its_tokens(workers: int, batch: int) -> None:
    for seed in range(20):
        rows = unlike(seed, 300, 60)
        limit = chunk_tokens(sum(len(row) + 5 for row in rows), len(rows), 0, workers, batch)
        for chunk in cut_by_length(rows, workers, batch, new=5):
            lengths = [len(rows[index]) + 5 for index in chunk.indices]
            assert chunk.tokens == sum(lengths)
            assert max(lengths) * len(lengths) <= limit or len(lengths) == 1
        sorted_rows = sorted(rows)
        own = own_tokens(sorted_rows, range(len(rows)))
        shared = (sum(map(len, rows)) - sum(own)) / len(rows)
        limit = chunk_tokens(sum(own), len(rows), shared, workers, batch)
        for chunk in cut_by_prefix(rows, workers, batch):
            assert chunk.tokens == sum(own_tokens(rows, chunk.indices))  # alone, the first shares nothing
            assert sum(own_tokens(rows, chunk.indices)[1:]) <= limit


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_chunks_of_much_work_nearly_fill_a_batch(workers: int) -> None:
    """28,000 tokens a worker, and 137,500 where nothing is shared."""
    rows = tree(queries=50 * workers, candidates=25, shared=60, own=20)
    *chunks, _ = cut_by_prefix(rows, workers, BATCH)
    assert len(chunks) >= 7 * workers - 1 and all(0.8 * BATCH <= chunk.tokens <= BATCH for chunk in chunks)
    *chunks, _ = cut_by_length(rows, workers, 4 * BATCH)
    assert all(0.8 * 4 * BATCH <= chunk.tokens <= 4 * BATCH for chunk in chunks)


def test_work_of_one_and_a_half_batches_a_worker_is_halved_for_each() -> None:
    rows = [tuple(range(100 * i, 100 * i + 64)) for i in range(192)]  # 12,288 tokens
    for cut in CUTS.values():
        assert [chunk.tokens for chunk in cut(rows, 2, BATCH)] == [3072] * 4


def test_chunks_of_very_much_work_are_of_several_batches_equal_for_all_workers() -> None:
    """8 chunks a worker would be of 7.8 batches, so they are 9 of 6.9."""
    chunks = cut_by_length([(1,) * 512] * 1000, 2, BATCH)
    assert [len(chunk.indices) for chunk in chunks] == [55] * 18 + [10]


def test_what_shares_a_prefix_is_in_one_chunk_or_in_neighbours() -> None:
    rows = unlike(3, 400, 30)
    order = [index for chunk in cut_by_prefix(rows, 2, 1) for index in chunk.indices]
    assert [rows[index] for index in order] == sorted(rows)


def test_candidates_of_one_query_stay_together() -> None:
    rows = tree(queries=200, candidates=25, shared=60, own=20)
    chunks = cut_by_prefix(rows, 2, 1)
    queries = [{rows[index][:90] for index in chunk.indices} for chunk in chunks]
    assert len(chunks) >= 16
    assert sum(map(len, queries)) == 200
    # All that is computed twice is the instructions.
    assert sum(chunk.tokens for chunk in chunks) <= sum(own_tokens(rows, order_of(chunks))) + 30 * len(chunks)


def order_of(chunks: Sequence[Chunk]) -> list[int]:
    return [index for chunk in chunks for index in chunk.indices]


def test_a_long_prefix_is_not_computed_again_and_again() -> None:
    rows = [(*range(900), 1000 + i // 30, i) for i in range(600)]
    least = sum(own_tokens(rows, range(600)))
    assert sum(chunk.tokens for chunk in cut_by_prefix(rows, 2, 1)) < 2 * least


def test_prompts_of_like_length_share_a_chunk() -> None:
    rows = unlike(1, 500, 90)
    lengths = [[len(rows[index]) for index in chunk.indices] for chunk in cut_by_length(rows, 2, 1)]
    assert all(min(longer) >= max(shorter) for longer, shorter in pairwise(lengths))


@pytest.mark.parametrize("kind", CUTS)
@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("batch", [1, 1000])
def test_nobody_idles_at_the_end(kind: str, workers: int, batch: int) -> None:
    rows = tree(queries=300, candidates=10, shared=50, own=20)
    ends = run(CUTS[kind](rows, workers, batch), workers)
    assert ends[-1] - ends[0] <= 0.1 * ends[-1]


def test_few_prompts_keep_all_workers_at_work() -> None:
    rows = [tuple(range(100 * i, 100 * i + 50)) for i in range(6)]
    for cut in CUTS.values():
        assert run(cut(rows, 2, BATCH), 2) == [150, 150]


def test_chunks_hold_enough_prompts_and_not_too_many() -> None:
    small = cut_by_length([(1,) * 50] * 128, 2, 1)
    assert [len(chunk.indices) for chunk in small] == [MIN_PROMPTS_A_CHUNK] * 8
    large = cut_by_length([(1,) * 500] * 100_000, 2, 1)
    assert {len(chunk.indices) for chunk in large[:-1]} == {MAX_CHUNK_TOKENS // 500 - 1}  # 191 for each


def test_the_longest_chunk_is_taken_first_and_one_put_back_before_all() -> None:
    queue = ChunkQueue([Chunk([0], 5), Chunk([1], 9), Chunk([2], 7)])
    first = queue.take()
    assert first == Chunk([1], 9)
    assert queue.take() == Chunk([2], 7)
    queue.put_back(first)
    assert [queue.take(), queue.take(), queue.take()] == [first, Chunk([0], 5), None]


def test_after_an_error_nothing_is_taken_and_the_first_error_stays() -> None:
    queue = ChunkQueue([Chunk([0], 5)])
    first = ValueError("first")
    queue.stop(first)
    queue.stop(KeyError("second"))
    assert queue.take() is None
    assert queue.error is first
