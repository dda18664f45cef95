"""From test rows to labels or numbers: a linear model of words and characters; for levels thresholds between them."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from kaggle_llm.competition.competition import Competition
from kaggle_llm.decisions.thresholds import Thresholds, round_levels
from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.inference.run import Run
from kaggle_llm.tasks.heads import HeadTaskSettings, answer_without_model, describe_head
from kaggle_llm.tasks.linear_model import LinearModel, LinearSettings, load_linear, make_answer
from kaggle_llm.tasks.stacking import ask_columns


@dataclass(kw_only=True)
class Config(BaseConfig):
    head: HeadTaskSettings
    linear: LinearSettings = field(default_factory=LinearSettings)
    members: list[str] = field(default_factory=list)
    """Runs of all folds whose out-of-fold answers are columns beside the terms (stacking)."""


def load(run: Run) -> LinearModel:
    return load_linear(run.model("linear"))


def fallback(rows: pl.DataFrame, run: Run) -> pl.DataFrame:
    """For rows that no model answers: the labels' shares in training, or the mean."""
    return answer_without_model(rows, run.config.head.task, run.competition)


def score(rows: pl.DataFrame, loaded: LinearModel, run: Run) -> pl.DataFrame:
    """The probabilities of the labels, or numbers."""
    task, competition = run.config.head.task, run.competition
    answer = make_answer(rows, loaded, task, competition)
    return answer(ask_columns(rows, run, describe_head(task, competition), answer))


def decision(config: Config, competition: Competition) -> Thresholds | None:
    """The thresholds between the levels of an ordinal label; classes and numbers stay as they are."""
    levels = describe_head(config.head.task, competition).levels
    return round_levels(levels) if levels else None
