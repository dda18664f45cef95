"""From test rows to a ranking: every member predicts in its own process; the answers are averaged by weight."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from kaggle_llm.competition.competition import Competition
from kaggle_llm.decisions.member_blend import BlendSettings, MemberBlend, ask_runs, blend_alike
from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.inference.run import Run


@dataclass(kw_only=True)
class Config(BaseConfig):
    members: list[str]
    blend: BlendSettings = field(default_factory=BlendSettings)


def load(run: Run) -> None:
    """Nothing: each member loads its own models."""


def score(rows: pl.DataFrame, loaded: None, run: Run) -> pl.DataFrame:
    return ask_runs(rows, run)


def decision(config: Config, competition: Competition) -> MemberBlend:
    """The members' weights."""
    return blend_alike(config)
