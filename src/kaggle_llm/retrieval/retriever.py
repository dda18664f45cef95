"""Retrieves candidates for queries with BM25 and dense vectors, fused by ranks or by weighted scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from kaggle_llm.competition.rankings import ranking_schema
from kaggle_llm.engines.prompts import fill_template
from kaggle_llm.retrieval.dense import DenseIndex
from kaggle_llm.retrieval.fusion import Retrieved, fuse_by_rank, fuse_by_score
from kaggle_llm.retrieval.lexical import WordSettings, open_lexical

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.inference.run import Run

ROWS_A_SEARCH = 1024  # searched and fused at a time


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
    fusion: Literal["rank", "score"] = "rank"
    """rank: reciprocal rank fusion. score: the sum of weighted scores, scaled to 0 to 1 in each row."""
    smoothing: float = 60.0
    """Reciprocal rank fusion's constant: the smaller, the more the first ranks count."""
    lexical_weight: float = 1.0
    dense_weight: float = 1.0
    max_tokens: int = 256
    """Tokens of a query or document that the encoder reads."""
    words: WordSettings = field(default_factory=WordSettings)
    """What BM25 makes of the words."""
    index_dtype: Literal["float32", "float16"] = "float32"
    """The dtype of the documents' vectors, on disk and in memory; float16 is half as large and moves a cosine by
    0.0005."""
    ship_index: bool = False
    """Ship the documents' vectors and BM25's index with the models, so that the notebook reads them; false: it makes
    both."""

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.depth:
            raise ValueError(f"k = {self.k}, depth = {self.depth}: 1 ≤ k ≤ depth is needed")


class Retriever:
    """BM25 and dense index over documents (id and texts). Uses the run's model `encoder`."""

    def __init__(self, run: Run, documents: pl.DataFrame) -> None:
        self.settings: RetrievalSettings = run.config.retrieval
        ids = documents["id"].to_list()
        texts = [fill_template(self.settings.document, row) for row in documents.iter_rows(named=True)]
        self.texts = dict(zip(ids, texts, strict=True))
        """The searched text of each document."""
        self.lexical = open_lexical(run, ids, texts, self.settings.words)
        self.dense = DenseIndex(run, "encoder", ids, texts, self.settings.max_tokens, self.settings.index_dtype)

    def search(self, rows: pl.DataFrame) -> pl.DataFrame:
        """RANKING of the first k candidates of each row.

        Searches a few rows at a time, so that memory does not grow with the number of rows: the rankings before fusion
        are several times as long.
        """
        import polars as pl

        parts = [self._fuse(self._search(part)) for part in rows.iter_slices(ROWS_A_SEARCH)]
        return pl.concat([pl.DataFrame(schema=ranking_schema()), *parts])

    def search_each(self, rows: pl.DataFrame) -> Retrieved:
        """The RANKINGs of both retrievals, to the full depth, for a decision that fuses them."""
        return self._search(rows)

    def queries(self, rows: pl.DataFrame) -> dict[str, str]:
        """The query of each row."""
        return {row["id"]: fill_template(self.settings.query, row) for row in rows.iter_rows(named=True)}

    def _search(self, rows: pl.DataFrame) -> Retrieved:
        queries, depth = self.queries(rows), self.settings.depth
        asked = list(queries), list(queries.values()), depth
        return Retrieved(self.lexical.search(*asked), self.dense.search(*asked))

    def _fuse(self, retrieved: Retrieved) -> pl.DataFrame:
        settings, rankings = self.settings, [retrieved.lexical, retrieved.dense]
        weights = settings.lexical_weight, settings.dense_weight
        if settings.fusion == "score":
            return fuse_by_score(rankings, weights, settings.k)
        return fuse_by_rank(rankings, weights, settings.smoothing, settings.k)
