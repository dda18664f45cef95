"""From test rows to a ranking: BM25 and sentence embeddings, fused by reciprocal rank or by fitted weights."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from kaggle_llm.competition.competition import Competition
from kaggle_llm.decisions.fusion_weights import FusionWeights
from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.inference.run import Run
from kaggle_llm.retrieval.fusion import Retrieved
from kaggle_llm.retrieval.retriever import RetrievalSettings, Retriever


@dataclass(kw_only=True)
class Config(BaseConfig):
    retrieval: RetrievalSettings
    fit_weights: bool = False
    """Fuse by weighted scores with weights fitted out of fold, in place of retrieval.fusion."""


def load(run: Run) -> Retriever:
    return Retriever(run, run.competition.table(run.competition.documents))


def score(rows: pl.DataFrame, loaded: Retriever, run: Run) -> pl.DataFrame | Retrieved:
    """The fused ranking, or the two rankings that the decision fuses."""
    return loaded.search_each(rows) if run.config.fit_weights else loaded.search(rows)


def decision(config: Config, competition: Competition) -> FusionWeights | None:
    """The weights of BM25 and of the embeddings."""
    return FusionWeights(k=config.retrieval.k) if config.fit_weights else None
