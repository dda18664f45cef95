"""From test rows to a ranking: BM25 and the trained encoder's embeddings, fused by reciprocal rank or by scores."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.inference.run import Run
from kaggle_llm.retrieval.retriever import RetrievalSettings, Retriever
from kaggle_llm.tasks.distillation import DistillationSettings
from kaggle_llm.tasks.embedding import EmbeddingSettings
from kaggle_llm.training.settings import LoraSettings, TrainingSettings


@dataclass(kw_only=True)
class Config(BaseConfig):
    retrieval: RetrievalSettings
    embedding: EmbeddingSettings
    distillation: DistillationSettings = field(default_factory=DistillationSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    training: TrainingSettings


def load(run: Run) -> Retriever:
    return Retriever(run, run.competition.table(run.competition.documents))


def score(rows: pl.DataFrame, loaded: Retriever, run: Run) -> pl.DataFrame:
    return loaded.search(rows)


def search_dense(rows: pl.DataFrame, loaded: Retriever, run: Run) -> pl.DataFrame:
    """The encoder's ranking alone."""
    return loaded.search_each(rows).dense
