"""Dense retrieval: cosine similarity of sentence vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.engines.prompts import Prompt, encode_texts
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.retrieval.top_k import find_top

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.inference.run import Run


class DenseIndex:
    """Exact search over unit vectors of the documents, made by the run's model `name`."""

    def __init__(self, run: Run, name: str, ids: Sequence[str], texts: Sequence[str], max_tokens: int) -> None:
        self.ids, self._run, self._name = list(ids), run, name
        self._tokenizer = load_tokenizer(run.model(name))
        self.max_tokens = min(max_tokens, self._tokenizer.model_max_length)  # an encoder may take fewer
        self._documents = run.embed_documents(name, self._encode(texts))

    def search(self, ids: Sequence[str], queries: Sequence[str], k: int) -> pl.DataFrame:
        """RANKING of the k most similar documents for each query; scores are cosines.

        Queries are embedded and scored one by one: in a batch, the other queries change a vector's last bits and so the
        order of near ties. A row's candidates are thus the same alone and among others.
        """
        items, scores = [], []
        for query in queries:
            similarity = self._documents @ self._run.engine(self._name).embed(self._encode([query]))[0]
            best = find_top(similarity, k)
            items.append([self.ids[i] for i in best])
            scores.append(similarity[best].tolist())
        return make_ranking(ids, items, scores)

    def _encode(self, texts: Sequence[str]) -> list[Prompt]:
        return encode_texts(self._tokenizer, texts, self.max_tokens)
