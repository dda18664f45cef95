"""From test rows to a ranking: every member answers in a process of its own, and its answer counts by its weight."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from kaggle_llm.competition import CompetitionSettings
from kaggle_llm.cv.blends import BlendSettings, MemberBlend
from kaggle_llm.cv.leaks import LeakSettings
from kaggle_llm.inference.engine import EngineSettings
from kaggle_llm.run import Run, answer_together


@dataclass
class Config:
    competition: CompetitionSettings
    members: list[str]
    blend: BlendSettings
    engine: EngineSettings = field(default_factory=EngineSettings)
    leaks: LeakSettings = field(default_factory=LeakSettings)
    models: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    seed: int = 0


def load(run: Run) -> MemberBlend:
    return MemberBlend.load(run.model("blend"))


def predict(rows: pl.DataFrame, loaded: MemberBlend, run: Run) -> pl.DataFrame:
    return answer_together(run, rows, loaded.list_members(run), loaded.combine)
