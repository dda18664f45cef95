"""From test rows to a ranking: retrieve, rerank the first candidates by a language model's log-odds, blend both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from kaggle_llm.competition.competition import Competition
from kaggle_llm.decisions.rerank_blend import Blend, Reranked
from kaggle_llm.decisions.twice_blend import TwiceBlend
from kaggle_llm.engines.prompts import PromptSettings
from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.experiment.rerankers import Reranker, open_reranker
from kaggle_llm.inference.run import Run
from kaggle_llm.retrieval.retriever import RetrievalSettings, Retriever
from kaggle_llm.tasks.choice_training import ChoiceSettings
from kaggle_llm.tasks.cross_encoder import CrossEncoderSettings
from kaggle_llm.tasks.windows import WindowSettings, count_prompts
from kaggle_llm.training.settings import LoraSettings, TrainingSettings


@dataclass(kw_only=True)
class Config(BaseConfig):
    retrieval: RetrievalSettings
    depth: int = 8
    """Candidates that the reranker reads."""
    reranker: Literal["pointwise", "windows", "both", "cross_encoder"] = "pointwise"
    """pointwise: Yes or No for each candidate. windows: letters over a few at a time. both: one model, asked in both
    ways. cross_encoder: a head on `models.cross_encoder`, by default the encoder, without a language model."""
    prompt: PromptSettings
    windows: WindowSettings = field(default_factory=WindowSettings)
    cross_encoder: CrossEncoderSettings = field(default_factory=CrossEncoderSettings)
    choice: ChoiceSettings
    lora: LoraSettings
    training: TrainingSettings

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reranker == "cross_encoder":  # the language model does not ship
            self.models.pop("reranker", None)
            self.models.setdefault("cross_encoder", self.models["encoder"])


@dataclass
class Loaded:
    retriever: Retriever
    reranker: Reranker


def load(run: Run) -> Loaded:
    retriever = Retriever(run, run.competition.table(run.competition.documents))
    return Loaded(retriever, open_reranker(run, retriever))


def score(rows: pl.DataFrame, loaded: Loaded, run: Run) -> Reranked:
    """The retrieval's ranking, and the reranker's of its first candidates (without rows that the time limit cut)."""
    retrieved = loaded.retriever.search(rows)
    return loaded.reranker.score(rows, retrieved, run)


def decision(config: Config, competition: Competition) -> Blend | TwiceBlend:
    """The weight of the reranker's score beside the retrieval's rank."""
    if config.reranker == "both":
        return TwiceBlend()
    return Blend()


def prompts_a_row(config: Config) -> int:
    """Candidates that are read, in a window or alone."""
    pointwise = config.depth * (config.reranker != "windows")
    windows = config.reranker in ("windows", "both")
    return pointwise + windows * config.windows.size * count_prompts(config.depth, config.windows)


def asks_in_turns(config: Config) -> bool:
    """Whether prompts depend on earlier answers: other weights are then asked other prompts."""
    return config.reranker in ("windows", "both")
