"""Hard negatives: wrong documents that the retrieval ranks near the right one."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.engines.prompts import Group

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


@dataclass
class NegativeSettings:
    first: int = 1
    last: int = 50
    """Negatives are drawn from these ranks, both included; the best rank is 1."""
    per_query: int = 4
    """Negatives of a query and one right document; 0: none."""
    margin: float | None = 0.95
    """Filter for false negatives: nothing above this share of the right document's score is drawn; null: no filter, for
    scores that are no similarities."""

    def __post_init__(self) -> None:
        if not 1 <= self.first <= self.last:
            raise ValueError(f"first = {self.first}, last = {self.last}: 1 ≤ first ≤ last is needed")
        if self.per_query < 0:
            raise ValueError(f"per_query = {self.per_query}: must be 0 or more")
        if self.margin is not None and not 0 < self.margin <= 1:
            raise ValueError(f"margin = {self.margin}: is a share of a score, more than 0 and at most 1, or null")


@dataclass(frozen=True)
class MinedPair:
    """Ids of a query, one of its right items, and wrong ones that were ranked high."""

    id: str
    right: str
    negatives: tuple[str, ...]


def draw_groups(candidates: pl.DataFrame, truth: pl.DataFrame, size: int, depth: int, seed: int) -> list[Group]:
    """One group a row: a right item and size − 1 wrong ones from its first `depth` candidates; all shuffled.

    candidates: RANKING of the training rows; truth: id, items. A right item that the retrieval missed is added, so that
    no row is lost. A row with few candidates gives a smaller group, or none where no wrong candidate is left;
    a row without a right item gives none.
    """
    rng = random.Random(seed)
    right = dict(truth.select("id", "items").iter_rows())
    groups = []
    for row, items in candidates.select("id", "items").iter_rows():
        if not right[row]:
            continue
        answer = rng.choice(right[row])
        wrong = [item for item in items[:depth] if item not in right[row]]
        chosen = [answer, *rng.sample(wrong, min(size - 1, len(wrong)))]
        if len(chosen) < 2:
            continue
        rng.shuffle(chosen)
        groups.append(Group(row, tuple(chosen), tuple(float(item == answer) for item in chosen)))
    rng.shuffle(groups)
    return groups


def mine_negatives(
    ranking: pl.DataFrame, truth: pl.DataFrame, settings: NegativeSettings, seed: int | str
) -> list[MinedPair]:
    """For each row and each of its right items, `per_query` wrong items drawn from the rank band.

    ranking: RANKING of the training rows; truth: id, items. Pairs whose band holds fewer items that pass the filter get
    fewer, or none. Raises ValueError for rows without truth.
    """
    rng = random.Random(seed)
    right = dict(truth.select("id", "items").iter_rows())
    missing = [row for row in ranking["id"] if row not in right]
    if missing:
        raise ValueError(f"{len(missing)} ranked row(s) without truth, first {missing[:3]}")
    pairs = []
    for row, items, scores in ranking.select("id", "items", "scores").iter_rows():
        for answer in right[row]:
            highest = highest_trusted(answer, items, scores, settings.margin)
            band = list(zip(items, scores, strict=True))[settings.first - 1 : settings.last]
            kept = [item for item, score in band if item not in right[row] and score <= highest]
            drawn = rng.sample(kept, min(settings.per_query, len(kept)))
            pairs.append(MinedPair(row, answer, tuple(drawn)))
    return pairs


def highest_trusted(answer: str, items: Sequence[str], scores: Sequence[float], margin: float | None) -> float:
    """The score above which a candidate is probably right too, though it is not labelled.

    NV-Retriever's positive-aware filter (TopK-PercPos; Moreira et al., 2024): margin × the right item's score, and as
    far below a negative one. A right item that is not ranked counts with the last score.
    """
    if margin is None or not items:
        return float("inf")
    score = scores[items.index(answer)] if answer in items else scores[-1]
    return score - (1 - margin) * abs(score)


def rank_with_right(
    queries: Sequence[str],
    query_vectors: np.ndarray,
    documents: Sequence[str],
    document_vectors: np.ndarray,
    right: Mapping[str, Sequence[str]],
    depth: int,
) -> pl.DataFrame:
    """RANKING of the `depth` documents nearest to each query, followed by its right ones that are farther away.

    Vectors are [n, d] of unit length; queries and documents: their ids; right: query id → ids of right documents.
    """
    import numpy as np

    indices = {item: index for index, item in enumerate(documents)}
    items, scores = [], []
    for query, vector in zip(queries, query_vectors, strict=True):
        cosines = document_vectors @ vector
        best = np.argsort(-cosines, kind="stable")[:depth].tolist()
        chosen = list(dict.fromkeys([*best, *(indices[item] for item in right[query])]))
        items.append([documents[index] for index in chosen])
        scores.append(cosines[chosen].tolist())
    return make_ranking(queries, items, scores)
