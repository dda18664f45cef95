"""From test rows to a ranking: BM25 and sentence embeddings, fused by reciprocal rank."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.inference.run import Run
from kaggle_llm.retrieval.retriever import RetrievalSettings, Retriever


@dataclass(kw_only=True)
class Config(BaseConfig):
    retrieval: RetrievalSettings


def load(run: Run) -> Retriever:
    return Retriever(run, run.competition.table(run.competition.documents))


def score(rows: pl.DataFrame, loaded: Retriever, run: Run) -> pl.DataFrame:
    return loaded.search(rows)
