"""Cosine similarity of sentence vectors over the documents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.inference.engine import Engine
from kaggle_llm.prompts import encode_texts, load_tokenizer
from kaggle_llm.rankings import make_ranking

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


class DenseIndex:
    """Documents as vectors of unit length, exact search."""

    def __init__(self, engine: Engine, folder: Path, ids: Sequence[str], texts: Sequence[str], max_tokens: int) -> None:
        self.engine, self.ids = engine, list(ids)
        self._tokenizer = load_tokenizer(folder)
        self.max_tokens = min(max_tokens, self._tokenizer.model_max_length)  # an encoder may take fewer
        self._documents = self._embed(texts)

    def search(self, ids: Sequence[str], queries: Sequence[str], k: int) -> pl.DataFrame:
        """RANKING of the k most similar documents for each query; scores are cosines.

        Queries are embedded and scored one by one: in a batch, what stands beside a query moves its last bits, and
        with them the order of near ties. So a row's candidates are the same alone and among others.
        """
        import numpy as np

        found, scores = [], []
        for query in queries:
            similarity = self._documents @ self._embed([query])[0]
            best = np.argsort(-similarity, kind="stable")[:k]
            found.append([self.ids[i] for i in best])
            scores.append(similarity[best].tolist())
        return make_ranking(ids, found, scores)

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, d] vectors of unit length."""
        return self.engine.embed(encode_texts(self._tokenizer, texts, self.max_tokens))
