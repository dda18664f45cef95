"""Lexical retrieval: BM25 by bm25s."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kaggle_llm.base.words import split_words
from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.retrieval.top_k import find_top

if TYPE_CHECKING:
    import polars as pl


class LexicalIndex:
    """BM25 (Lucene's variant, k1 1.5, b 0.75) of `split_words` without English stop words; no stemming."""

    def __init__(self, ids: Sequence[str], texts: Sequence[str]) -> None:
        import bm25s

        self.ids = list(ids)
        tokens = self._tokens(texts)
        if not any(tokens):
            raise ValueError(f"none of {len(self.ids)} documents holds a word that can be searched for")
        self._index = bm25s.BM25(method="lucene")
        self._index.index(tokens, show_progress=False)

    def search(self, ids: Sequence[str], queries: Sequence[str], k: int) -> pl.DataFrame:
        """RANKING of the k best documents for each query; ties, and queries without a known word, keep the documents'
        order."""
        import numpy as np

        k = min(k, len(self.ids))
        items, scores = [], []
        for words in self._tokens(queries):
            row = self._index.get_scores(words) if words else np.zeros(len(self.ids))
            best = find_top(row, k)
            items.append([self.ids[i] for i in best])
            scores.append(row[best].tolist())
        return make_ranking(ids, items, scores)

    @staticmethod
    def _tokens(texts: Sequence[str]) -> list[list[str]]:
        from bm25s.stopwords import STOPWORDS_EN

        return [[word for word in split_words(text) if word not in STOPWORDS_EN] for text in texts]
