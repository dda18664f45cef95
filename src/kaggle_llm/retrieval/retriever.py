"""Queries → candidates: BM25 and dense retrieval, fused by reciprocal rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kaggle_llm.competition.rankings import ranking_schema
from kaggle_llm.engines.prompts import fill_template
from kaggle_llm.retrieval.dense import DenseIndex
from kaggle_llm.retrieval.fusion import fuse_by_rank
from kaggle_llm.retrieval.lexical import LexicalIndex

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.inference.run import Run

ROWS = 256  # that are searched for and fused at a time


@dataclass
class RetrievalSettings:
    query: str
    """What is searched for; {column} stands for a text of the row."""
    document: str = "{text}"
    """What is searched; {column} stands for a text of the document."""
    k: int = 25
    """Candidates of a row."""
    depth: int = 100
    """Places of each ranking that take part in the fusion."""
    smoothing: float = 60.0
    """Reciprocal rank fusion's constant: the smaller, the more the first places count."""
    lexical_weight: float = 1.0
    dense_weight: float = 1.0
    max_tokens: int = 256
    """Tokens of a query or document that the encoder reads."""

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.depth:
            raise ValueError(f"k = {self.k}, depth = {self.depth}: 1 ≤ k ≤ depth is needed")


class Retriever:
    """Both indices over documents: a frame of an id and texts. Uses the run's model `encoder`."""

    def __init__(self, run: Run, documents: pl.DataFrame) -> None:
        self.settings: RetrievalSettings = run.config.retrieval
        ids = documents["id"].to_list()
        texts = [fill_template(self.settings.document, row) for row in documents.iter_rows(named=True)]
        self.lexical = LexicalIndex(ids, texts)
        self.dense = DenseIndex(run, "encoder", ids, texts, self.settings.max_tokens)

    def search(self, rows: pl.DataFrame) -> pl.DataFrame:
        """RANKING of the first k candidates of each row.

        Some rows at a time: the rankings that are fused have four times as many places, and their memory is that of a
        part of the rows, however many there are.
        """
        import polars as pl

        found = [self._search(part) for part in rows.iter_slices(ROWS)]
        return pl.concat([pl.DataFrame(schema=ranking_schema()), *found])

    def _search(self, rows: pl.DataFrame) -> pl.DataFrame:
        ids = rows["id"].to_list()
        queries = [fill_template(self.settings.query, row) for row in rows.iter_rows(named=True)]
        found = [index.search(ids, queries, self.settings.depth) for index in (self.lexical, self.dense)]
        weights = (self.settings.lexical_weight, self.settings.dense_weight)
        return fuse_by_rank(found, weights, self.settings.smoothing, self.settings.k)
