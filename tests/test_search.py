"""Dense search is exact and gives a query the same list in any company; so do the encoder's vectors."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from kaggle_llm.engines import onednn
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.fixed_shapes import plan_fixed_batches, round_length
from kaggle_llm.engines.transformers_engine import TransformersEngine
from kaggle_llm.retrieval import top_k
from kaggle_llm.retrieval.top_k import find_top, search_vectors

K = [1, 7, 100, 3000, 9000]


def make_units(count: int, seed: int, size: int = 48) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def search_literally(documents: np.ndarray, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    cosines = (documents.astype(np.float64) * query.astype(np.float64)).sum(axis=1)
    best = np.argsort(-cosines, kind="stable")[:k]
    return best, cosines[best]


@pytest.fixture(scope="module")
def documents() -> np.ndarray:
    """With equal ones, and with ones closer than a matrix product in single precision can tell apart."""
    vectors = make_units(5000, 0)
    vectors[1000:1040] = vectors[7]
    vectors[4000:4300] = vectors[8] + 1e-7 * make_units(300, 1)
    return vectors


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("k", K)
def test_a_search_is_the_literal_one_whatever_the_blocks(
    documents: np.ndarray, k: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = documents.astype(dtype)
    queries = np.concatenate((make_units(8, 2), documents[[7, 8]]))
    for size in (1, 2**20):
        monkeypatch.setattr(top_k, "BLOCK_BYTES", size)
        lists = list(search_vectors(stored, queries, k))
        assert len(lists) == len(queries)
        for (places, scores), query in zip(lists, queries, strict=True):
            expected, cosines = search_literally(stored, query, k)
            assert places.tolist() == expected.tolist() and scores.tolist() == cosines.tolist()


def test_a_query_gets_the_same_list_alone_and_among_others(documents: np.ndarray) -> None:
    queries = np.concatenate((documents[[8]], make_units(60, 3), documents[[7]]))
    together = list(search_vectors(documents, queries, 50))
    for number in (0, 5, 61):
        ((places, scores),) = search_vectors(documents, queries[number : number + 1], 50)
        assert places.tolist() == together[number][0].tolist() and scores.tolist() == together[number][1].tolist()


@pytest.mark.parametrize("by_onednn", [False, True])
def test_a_search_reads_a_memory_mapped_file_and_no_query_gives_no_list(
    documents: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by_onednn: bool
) -> None:
    monkeypatch.setattr(onednn, "is_faster", lambda: by_onednn)
    np.save(tmp_path / "vectors.npy", documents)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    with warnings.catch_warnings(action="error"):
        ((places, _),) = search_vectors(mapped, documents[[8]], 5)
    assert places.tolist() == search_literally(documents, documents[8], 5)[0].tolist()
    assert list(search_vectors(documents, documents[:0], 5)) == []


def test_scores_that_are_mostly_equal_are_cut_in_their_order() -> None:
    scores = np.zeros(50_000, dtype=np.float32)
    scores[[9, 40_000, 17]] = [1.0, 2.0, 1.0]
    assert find_top(scores, 6).tolist() == [40_000, 9, 17, 0, 1, 2]


def test_a_prompt_is_padded_by_an_eighth_or_by_three_tokens_at_most() -> None:
    for length in range(1, 513):
        rounded = round_length(length, 512)
        assert length <= rounded <= min(512, max(length + 3, length * 9 / 8))


def test_a_prompt_longer_than_the_model_takes_is_not_cut_here() -> None:
    assert round_length(130, 128) == 130 and round_length(126, 127) == 127


def test_a_batchs_shape_follows_from_the_lengths_of_its_prompts_alone() -> None:
    lengths = [3, 30, 4, 29, 1, 31, 30, 30, 32]
    batches = list(plan_fixed_batches(lengths, 64, 512, fill=True))
    assert [(len(part), length, rows) for part, length, rows in batches] == [(2, 32, 2)] * 3 + [(3, 4, 16)]
    assert sorted(index for part, *_ in batches for index in part) == list(range(9))
    for index, length in enumerate(lengths):
        ((_, *alone),) = plan_fixed_batches([length], 64, 512, fill=True)
        assert [tuple(alone)] == [(width, rows) for part, width, rows in batches if index in part]
    assert [rows for *_, rows in plan_fixed_batches(lengths, 64, 512, fill=False)] == [2, 2, 2, 3]


@pytest.mark.parametrize("fills", [False, True])
def test_a_prompts_vector_has_the_same_bits_alone_and_among_others(pico_encoder: Path, fills: bool) -> None:
    rng = np.random.default_rng(0)
    prompts = [rng.integers(5, 200, length).tolist() for length in rng.integers(1, 60, 40)]
    engine = TransformersEngine(pico_encoder, EngineSettings(batch_tokens=256), device="cpu")
    engine._fills = fills
    together = engine.embed(prompts)
    for number in range(0, 40, 3):
        assert np.array_equal(engine.embed([prompts[number]])[0], together[number])
    assert np.array_equal(engine.embed(prompts[::-1])[::-1], together)
