"""From test rows to a ranking: every member answers in a process of its own, and its answer counts by its weight."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from kaggle_llm.decisions.member_blend import BlendSettings, MemberBlend, ask_runs, blend_alike
from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.inference.run import Run


@dataclass(kw_only=True)
class Config(BaseConfig):
    members: list[str]
    blend: BlendSettings = field(default_factory=BlendSettings)


def load(run: Run) -> None:
    """Each member loads what it needs."""


def score(rows: pl.DataFrame, loaded: None, run: Run) -> pl.DataFrame:
    return ask_runs(rows, run)


def decision(config: Config) -> MemberBlend:
    """How much each member counts."""
    return blend_alike(config)
