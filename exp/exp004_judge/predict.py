"""From test rows to probabilities: both answers in both orders, the letter that the model says, a temperature."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from kaggle_llm.competition import CompetitionSettings
from kaggle_llm.cv.folds import FoldSettings
from kaggle_llm.cv.leaks import LeakSettings
from kaggle_llm.cv.temperature import Temperature
from kaggle_llm.inference.choice import OrderSettings, rank_options
from kaggle_llm.inference.engine import EngineSettings
from kaggle_llm.inference.pairs import fill_even, make_pairs
from kaggle_llm.prompts import Prompter, PromptSettings, load_tokenizer
from kaggle_llm.run import Run
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.weights.average import AverageSettings
from kaggle_llm.weights.merge import MergeSettings
from kaggle_llm.weights.parity import ParitySettings
from kaggle_llm.weights.quantize import QuantizeSettings
from kaggle_llm.weights.ship import Ship


@dataclass
class JudgeSettings:
    base: str


@dataclass
class Config:
    competition: CompetitionSettings
    folds: FoldSettings
    judge: JudgeSettings
    prompt: PromptSettings
    lora: LoraSettings
    training: TrainingSettings
    orders: OrderSettings = field(default_factory=OrderSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    merge: MergeSettings = field(default_factory=MergeSettings)
    quantize: QuantizeSettings = field(default_factory=QuantizeSettings)
    average: AverageSettings = field(default_factory=AverageSettings)
    parity: ParitySettings = field(default_factory=ParitySettings)
    ship: Ship = "fold0"
    leaks: LeakSettings = field(default_factory=LeakSettings)
    models: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    seed: int = 0


def load(run: Run) -> Prompter:
    return Prompter(load_tokenizer(run.model("judge")), run.config.prompt)


def score(rows: pl.DataFrame, loaded: Prompter, run: Run, temperature: Temperature | None = None) -> pl.DataFrame:
    """Before the temperature, which what is offered meanwhile has; rows that the time cut have all labels alike."""
    labels, engine = run.competition.legal_items(), run.engine("judge")

    def offer(said: pl.DataFrame) -> None:
        if temperature:
            run.offer(temperature.apply(said))

    said = rank_options(make_pairs(rows, labels), loaded, engine, run.config.orders, run.budget, offer)
    return fill_even(rows, said, labels)


def predict(rows: pl.DataFrame, loaded: Prompter, run: Run) -> pl.DataFrame:
    temperature = Temperature.load(run.model("temperature"))
    return temperature.apply(score(rows, loaded, run, temperature))
