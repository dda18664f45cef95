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

CHUNK = 1024  # queries whose scores against all documents are held at once


class DenseIndex:
    """Documents as vectors of unit length, exact search."""

    def __init__(self, engine: Engine, folder: Path, ids: Sequence[str], texts: Sequence[str], max_tokens: int) -> None:
        self.engine, self.ids, self.max_tokens = engine, list(ids), max_tokens
        self._tokenizer = load_tokenizer(folder)
        self._documents = self._embed(texts)

    def search(self, ids: Sequence[str], queries: Sequence[str], k: int) -> pl.DataFrame:
        """RANKING of the k most similar documents for each query; scores are cosines."""
        import numpy as np

        k = min(k, len(self.ids))
        found, scores = [], []
        for start in range(0, len(queries), CHUNK):
            similarity = self._embed(queries[start : start + CHUNK]) @ self._documents.T
            best = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
            found += [[self.ids[i] for i in row] for row in best]
            scores += np.take_along_axis(similarity, best, axis=1).tolist()
        return make_ranking(ids, found, scores)

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        return self.engine.embed(encode_texts(self._tokenizer, texts, self.max_tokens))
