"""Retrieves candidates for queries with BM25 and dense vectors, fused by reciprocal rank."""

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

ROWS_A_SEARCH = 256  # searched and fused at a time


@dataclass
class RetrievalSettings:
    query: str
    """Template of the query: {column} is a column of the row."""
    document: str = "{text}"
    """Template of the searched text: {column} is a column of the document."""
    k: int = 25
    """Candidates of a row."""
    depth: int = 100
    """Ranks of each retrieval that are fused."""
    smoothing: float = 60.0
    """Reciprocal rank fusion's constant: the smaller, the more the first ranks count."""
    lexical_weight: float = 1.0
    dense_weight: float = 1.0
    max_tokens: int = 256
    """Tokens of a query or document that the encoder reads."""

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.depth:
            raise ValueError(f"k = {self.k}, depth = {self.depth}: 1 ≤ k ≤ depth is needed")


class Retriever:
    """BM25 and dense index over documents (id and texts). Uses the run's model `encoder`."""

    def __init__(self, run: Run, documents: pl.DataFrame) -> None:
        self.settings: RetrievalSettings = run.config.retrieval
        ids = documents["id"].to_list()
        texts = [fill_template(self.settings.document, row) for row in documents.iter_rows(named=True)]
        self.lexical = LexicalIndex(ids, texts)
        self.dense = DenseIndex(run, "encoder", ids, texts, self.settings.max_tokens)

    def search(self, rows: pl.DataFrame) -> pl.DataFrame:
        """RANKING of the first k candidates of each row.

        Searches a few rows at a time, for the rankings before fusion are several times as long: so memory does not grow
        with the number of rows.
        """
        import polars as pl

        parts = [self._search(part) for part in rows.iter_slices(ROWS_A_SEARCH)]
        return pl.concat([pl.DataFrame(schema=ranking_schema()), *parts])

    def _search(self, rows: pl.DataFrame) -> pl.DataFrame:
        ids = rows["id"].to_list()
        queries = [fill_template(self.settings.query, row) for row in rows.iter_rows(named=True)]
        rankings = [index.search(ids, queries, self.settings.depth) for index in (self.lexical, self.dense)]
        weights = (self.settings.lexical_weight, self.settings.dense_weight)
        return fuse_by_rank(rankings, weights, self.settings.smoothing, self.settings.k)
