"""From test rows to spans: tag the tokens of overlapping windows, with a threshold for tokens outside of spans."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from kaggle_llm.competition.competition import Competition
from kaggle_llm.competition.spans import WindowSettings
from kaggle_llm.decisions.outside import OutsideThreshold
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.inference.run import Run
from kaggle_llm.tasks.tags import Tagger, TagSettings, tag_by_rules, tag_texts
from kaggle_llm.training.settings import LoraSettings, TrainingSettings


@dataclass(kw_only=True)
class Config(BaseConfig):
    tagger: TagSettings
    windows: WindowSettings
    rules: dict[str, str]
    lora: LoraSettings = field(default_factory=lambda: LoraSettings("full"))
    training: TrainingSettings


def load(run: Run) -> Tagger:
    (text,) = run.competition.tables["test"].texts
    return Tagger(load_tokenizer(run.model("tagger")), run.config.tagger.tags, run.config.windows, text)


def fallback(rows: pl.DataFrame, run: Run) -> pl.DataFrame:
    """For rows that no model answers: the spans that the rules find."""
    return tag_by_rules(rows, run.competition.tables["test"].texts[0], run.config.rules)


def score(rows: pl.DataFrame, loaded: Tagger, run: Run) -> pl.DataFrame:
    """The tag probabilities of every token."""
    return tag_texts(rows, loaded, run.engine("tagger"), run.budget, run.offer)


def decision(config: Config, competition: Competition) -> OutsideThreshold:
    """The probability from which a token is outside of all spans."""
    return OutsideThreshold()
