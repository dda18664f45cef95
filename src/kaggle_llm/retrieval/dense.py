"""Dense retrieval: cosine similarity of sentence vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.engines.texts import TextPrompts
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.retrieval.top_k import search_vectors

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.inference.run import Run


class DenseIndex:
    """Exact search over unit vectors of the documents, made by the run's model `name` and stored in `dtype`."""

    def __init__(
        self, run: Run, name: str, ids: Sequence[str], texts: Sequence[str], max_tokens: int, dtype: str = "float32"
    ) -> None:
        self.ids, self._run, self._name = list(ids), run, name
        self._tokenizer = load_tokenizer(run.model(name))
        self.max_tokens = min(max_tokens, self._tokenizer.model_max_length)  # an encoder may take fewer
        self._documents = run.embed_documents(name, self._prompts(texts), dtype)

    def search(self, ids: Sequence[str], queries: Sequence[str], k: int) -> pl.DataFrame:
        """RANKING of the k most similar documents for each query; scores are cosines.

        A row's candidates are the same alone and among others: a query's vector does not depend on its batch
        (engines/fixed_shapes.py), and its list does not depend on the matrix product that found it (top_k.py).
        """
        vectors = self._run.engine(self._name).embed(self._prompts(queries)[:])
        lists = list(search_vectors(self._documents, vectors, k))
        items = [[self.ids[number] for number in numbers] for numbers, _ in lists]
        return make_ranking(ids, items, [scores.tolist() for _, scores in lists])

    def _prompts(self, texts: Sequence[str]) -> TextPrompts:
        return TextPrompts(self._tokenizer, texts, self.max_tokens)
