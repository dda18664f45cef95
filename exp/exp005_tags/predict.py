"""From test rows to spans: tags of all tokens from overlapping windows, outside only above a threshold."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from kaggle_llm.competition import CompetitionSettings
from kaggle_llm.cv.folds import FoldSettings
from kaggle_llm.cv.leaks import LeakSettings
from kaggle_llm.cv.outside import OutsideThreshold
from kaggle_llm.inference.engine import EngineSettings
from kaggle_llm.inference.tagging import Tagger, TagSettings, tag_by_rules, tag_texts
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


def load(run: Run) -> Tagger | None:
    """None before training: then the rules answer."""
    config, (text,) = run.config, run.competition.tables["test"].texts
    if "tagger" not in run.models:
        return None
    return Tagger(load_tokenizer(run.model("tagger")), config.tagger.tags, config.windows, text)


def score(rows: pl.DataFrame, loaded: Tagger, run: Run) -> pl.DataFrame:
    """What is said of every token, before the threshold."""
    return tag_texts(rows, loaded, run.engine("tagger"), run.budget)


def predict(rows: pl.DataFrame, loaded: Tagger | None, run: Run) -> pl.DataFrame:
    """Rows that the time cut keep what the rules find."""
    (text,) = run.competition.tables["test"].texts
    ruled = tag_by_rules(rows, text, run.config.rules)
    run.offer(ruled)
    if loaded is None:
        return ruled

    def offer(found: pl.DataFrame) -> None:
        run.offer(replace_rows(ruled, found))

    threshold = OutsideThreshold.load(run.model("threshold"))
    return replace_rows(ruled, tag_texts(rows, loaded, run.engine("tagger"), run.budget, threshold.apply, offer))
