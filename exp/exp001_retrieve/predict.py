"""From test rows to a ranking: BM25 and sentence vectors, fused by reciprocal rank."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from kaggle_llm.competition import CompetitionSettings
from kaggle_llm.cv.folds import FoldSettings
from kaggle_llm.cv.leaks import LeakSettings
from kaggle_llm.inference.engine import EngineSettings
from kaggle_llm.retrieval.retriever import RetrievalSettings, Retriever
from kaggle_llm.run import Run


@dataclass
class Config:
    competition: CompetitionSettings
    folds: FoldSettings
    retrieval: RetrievalSettings
    engine: EngineSettings = field(default_factory=EngineSettings)
    leaks: LeakSettings = field(default_factory=LeakSettings)
    models: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    seed: int = 0


def load(run: Run) -> Retriever:
    return Retriever(run, run.competition.table(run.competition.documents))


def predict(rows: pl.DataFrame, loaded: Retriever, run: Run) -> pl.DataFrame:
    return loaded.search(rows)
