"""The sections of config.yaml that every experiment has."""

from __future__ import annotations

from dataclasses import dataclass, field

from kaggle_llm.base.accelerators import check_allowed
from kaggle_llm.competition.competition import CompetitionSettings
from kaggle_llm.competition.folds import FoldSettings
from kaggle_llm.competition.leaks import LeakSettings
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.weights.average import AverageSettings
from kaggle_llm.weights.merge import MergeSettings
from kaggle_llm.weights.parity import ParitySettings
from kaggle_llm.weights.quantize import QuantizeSettings
from kaggle_llm.weights.ship import Ship


@dataclass(kw_only=True)
class BaseConfig:
    """An experiment's own Config adds its sections. The settings of a section are explained in its own dataclass."""

    competition: CompetitionSettings
    models: dict[str, str] = field(default_factory=dict)
    """Name → where the model comes from: a folder, or <run>:<model>. train.py may train it further."""
    folds: FoldSettings = field(default_factory=FoldSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    merge: MergeSettings = field(default_factory=MergeSettings)
    quantize: QuantizeSettings = field(default_factory=QuantizeSettings)
    average: AverageSettings = field(default_factory=AverageSettings)
    parity: ParitySettings = field(default_factory=ParitySettings)
    ship: Ship = "fold0"
    leaks: LeakSettings = field(default_factory=LeakSettings)
    sources: dict[str, str] = field(default_factory=dict)
    """Model folder → the same model on Kaggle, so that it need not be uploaded."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_allowed(self.engine.accelerator, self.competition.accelerators)
