"""From test rows to labels or numbers: the head's answers, and for levels thresholds between them."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from kaggle_llm.competition.competition import Competition
from kaggle_llm.decisions.thresholds import Thresholds, round_levels
from kaggle_llm.engines.prompts import PromptSettings
from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.inference.run import Run
from kaggle_llm.tasks.heads import Head, PooledHeadSettings, answer_without_model, ask_head, describe_head, load_head
from kaggle_llm.training.settings import LoraSettings, TrainingSettings


@dataclass(kw_only=True)
class Config(BaseConfig):
    head: PooledHeadSettings
    prompt: PromptSettings
    lora: LoraSettings = field(default_factory=lambda: LoraSettings("full"))
    training: TrainingSettings


def load(run: Run) -> Head:
    config = run.config
    return load_head(run.model("body"), config.head.task, run.competition, config.prompt, config.head.pooling)


def fallback(rows: pl.DataFrame, run: Run) -> pl.DataFrame:
    """For rows that no model answers: the labels' shares in training, or the mean."""
    return answer_without_model(rows, run.config.head.task, run.competition)


def score(rows: pl.DataFrame, loaded: Head, run: Run) -> pl.DataFrame:
    """The probabilities of the labels, or numbers."""
    return ask_head(rows, loaded, run.engine("body"), run.budget, run.offer)


def decision(config: Config, competition: Competition) -> Thresholds | None:
    """The thresholds between the levels of an ordinal label; classes and numbers stay as they are."""
    levels = describe_head(config.head.task, competition).levels
    return round_levels(levels) if levels else None
