"""Hard negatives: what the retrieval itself puts beside the right document."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from kaggle_llm.prompts import Group

if TYPE_CHECKING:
    import polars as pl


def draw_groups(candidates: pl.DataFrame, truth: pl.DataFrame, size: int, depth: int, seed: int) -> list[Group]:
    """One group a row: a right item and size − 1 wrong ones drawn from the row's first candidates; all shuffled.

    candidates: RANKING of the rows that are trained on; truth: id, items. depth: wrong ones come from the first
    `depth` places, which are what the reranker will see. A right item that the retrieval missed is put in, so that
    no row is lost; a row whose candidates are too few gives a smaller group, never one of one.
    """
    rng = random.Random(seed)
    right = dict(truth.select("id", "items").iter_rows())
    groups = []
    for row, items in candidates.select("id", "items").iter_rows():
        answer = rng.choice(right[row])
        wrong = [item for item in items[:depth] if item not in right[row]]
        chosen = [answer, *rng.sample(wrong, min(size - 1, len(wrong)))]
        if len(chosen) < 2:
            continue
        rng.shuffle(chosen)
        groups.append(Group(row, tuple(chosen), tuple(float(item == answer) for item in chosen)))
    rng.shuffle(groups)
    return groups
