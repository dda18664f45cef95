"""The best k of many scores, without sorting the others; and of many documents' vectors, without holding all scores.

`search_vectors` gives each query the same list whatever else is asked, and whatever the device, the threads and
the sizes of the blocks. Matrix products, whose last bits depend on all of these, only choose candidates, with a margin
as wide as their rounding can be; these are scored again a query at a time, in double precision and a fixed order.

There is no approximate index: below tens of thousands of queries none pays for its build (tests/benchmarks/README.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kaggle_llm.base.device import has_gpu
from kaggle_llm.engines.onednn import multiply_rows

if TYPE_CHECKING:
    import numpy as np

    Candidates = tuple[np.ndarray, np.ndarray, np.ndarray]  # numbers of queries, numbers of documents, scores

BLOCK_BYTES, GPU_BLOCK_BYTES = 2**24, 2**28  # of the documents' vectors, and of the scores, in memory at once
MIN_BLOCK = 1024  # documents
EPSILON = 2.0**-23  # of single precision, in which the products are summed


def find_top(scores: np.ndarray, k: int) -> np.ndarray:
    """[min(k, n)] indices of the highest of [n] scores, best first; equal scores in the order of their indices."""
    import numpy as np

    if k >= len(scores):
        return np.argsort(-scores, kind="stable")
    last = np.partition(scores, len(scores) - k)[len(scores) - k]
    above = np.flatnonzero(scores > last)
    equal = np.flatnonzero(scores == last)[: k - len(above)]  # there may be thousands: BM25's zeros
    return np.concatenate((above[np.argsort(-scores[above], kind="stable")], equal))


def search_vectors(documents: np.ndarray, queries: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each query the indices of its min(k, n) nearest documents, best first, and their cosines.

    documents: [n, d] of unit length, float32 or float16, may be memory-mapped: it is read block by block. queries:
    [m, d] of unit length. Exact; equal cosines are in the order of the documents. On the GPU where there is one.
    """
    import numpy as np

    if not len(queries):
        return
    for query, places in zip(queries, _choose_candidates(documents, queries, min(k, len(documents))), strict=True):
        rows = documents[places].astype(np.float64)
        scores = (rows * query.astype(np.float64)).sum(axis=1)  # a row's sum does not depend on the other rows
        best = find_top(scores, k)
        yield places[best], scores[best]


def _choose_candidates(documents: np.ndarray, queries: np.ndarray, k: int) -> list[np.ndarray]:
    """For each query the ascending indices of all documents that can be among its k ≤ n nearest, and few others."""
    import numpy as np

    scan, block_bytes = (_scan_on_gpu, GPU_BLOCK_BYTES) if has_gpu() else (_scan, BLOCK_BYTES)
    margin = 2 * documents.shape[1] * EPSILON  # twice the largest error of a sum of d products of unit vectors
    size = max(MIN_BLOCK, k, block_bytes // (4 * max(documents.shape[1], len(queries))))
    floor: np.ndarray | None = None
    candidates: list[Candidates] = []
    for start in range(0, len(documents), size):
        block = documents[start : start + size]
        floor, flat, scores = scan(queries, block, floor, k, margin)
        candidates.append((flat // len(block), flat % len(block) + start, scores))
        if sum(len(part[0]) for part in candidates) > 4 * k * len(queries):
            floor, candidates = _raise_floor(candidates, k, margin)
    if not candidates:
        return [np.empty(0, dtype=np.int64)] * len(queries)
    _, ((row, document, _),) = _raise_floor(candidates, k, margin)
    order = np.lexsort((document, row))
    return np.split(document[order], np.searchsorted(row[order], np.arange(1, len(queries))))


def _scan(
    queries: np.ndarray, block: np.ndarray, floor: np.ndarray | None, k: int, margin: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Floor [m, 1] of the candidates' scores, flat indices of the [m, block] scores that reach it, and these scores.

    floor: None for the first block, whose k-th best score less the margin it becomes.
    """
    import numpy as np

    scores = multiply_rows(queries, block.astype(np.float32, copy=False))
    if floor is None:
        floor = np.partition(scores, -k, axis=1)[:, -k, None] - np.float32(margin)
    flat = np.flatnonzero(scores >= floor)
    return floor, flat, scores.reshape(-1)[flat]


def _scan_on_gpu(
    queries: np.ndarray, block: np.ndarray, floor: np.ndarray | None, k: int, margin: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `_scan` gives, computed on the GPU."""
    import torch

    scores = torch.tensor(queries, device="cuda") @ torch.tensor(block, device="cuda").float().T
    lowest = scores.topk(k).values[:, -1:] - margin if floor is None else torch.tensor(floor, device="cuda")
    flat = (scores >= lowest).view(-1).nonzero()[:, 0]
    return lowest.cpu().numpy(), flat.cpu().numpy(), scores.view(-1)[flat].cpu().numpy()


def _raise_floor(candidates: list[Candidates], k: int, margin: float) -> tuple[np.ndarray, list[Candidates]]:
    """The floor by all candidates so far, of which every query has k or more, and those that reach it."""
    import numpy as np

    row, document, score = (np.concatenate(parts) for parts in zip(*candidates, strict=True))
    order = np.lexsort((-score, row))
    counts = np.bincount(row)
    best = score[order][np.cumsum(counts) - counts + k - 1]
    floor = best[:, None] - np.float32(margin)
    keep = score >= floor[row, 0]
    return floor, [(row[keep], document[keep], score[keep])]
