"""From test rows to spans: tags of all tokens from overlapping windows, outside only above a threshold."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl
from transformers import PreTrainedTokenizerBase

from kaggle_llm.competition import CompetitionSettings
from kaggle_llm.cv.folds import FoldSettings
from kaggle_llm.cv.leaks import LeakSettings
from kaggle_llm.cv.outside import OutsideThreshold
from kaggle_llm.inference.engine import EngineSettings
from kaggle_llm.inference.tagging import TagSettings, tag_by_rules, tag_texts
from kaggle_llm.prompts import load_tokenizer
from kaggle_llm.rankings import replace_rows
from kaggle_llm.run import Run
from kaggle_llm.spans import WindowSettings
from kaggle_llm.training.settings import TrainingSettings


@dataclass
class Config:
    competition: CompetitionSettings
    folds: FoldSettings
    tagger: TagSettings
    windows: WindowSettings
    rules: dict[str, str]
    training: TrainingSettings
    engine: EngineSettings = field(default_factory=EngineSettings)
    leaks: LeakSettings = field(default_factory=LeakSettings)
    models: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    seed: int = 0


def load(run: Run) -> PreTrainedTokenizerBase | None:
    """The tokenizer; None before training: then the rules answer."""
    return load_tokenizer(run.model("tagger")) if "tagger" in run.models else None


def score(rows: pl.DataFrame, loaded: PreTrainedTokenizerBase, run: Run) -> pl.DataFrame:
    """What is said of every token, before the threshold."""
    config, (text,) = run.config, run.competition.tables["test"].texts
    tags, engine = config.tagger.tags, run.engine("tagger")
    return tag_texts(rows, text, loaded, engine, tags, config.windows, run.budget)


def predict(rows: pl.DataFrame, loaded: PreTrainedTokenizerBase | None, run: Run) -> pl.DataFrame:
    ruled = tag_by_rules(rows, run.competition.tables["test"].texts[0], run.config.rules)
    run.offer(ruled)
    if loaded is None:
        return ruled
    return replace_rows(ruled, OutsideThreshold.load(run.model("threshold")).apply(score(rows, loaded, run)))
