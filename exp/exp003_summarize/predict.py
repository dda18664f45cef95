"""From test rows to texts: the prompt, what the language model writes behind it, its first line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from kaggle_llm.competition import CompetitionSettings
from kaggle_llm.cv.folds import FoldSettings
from kaggle_llm.cv.leaks import LeakSettings
from kaggle_llm.inference.engine import EngineSettings
from kaggle_llm.inference.writing import WritingSettings, rank_texts, write_lines
from kaggle_llm.prompts import Prompter, PromptSettings, load_tokenizer
from kaggle_llm.run import Run
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.weights.average import AverageSettings
from kaggle_llm.weights.merge import MergeSettings
from kaggle_llm.weights.parity import ParitySettings
from kaggle_llm.weights.quantize import QuantizeSettings
from kaggle_llm.weights.ship import Ship


@dataclass
class WriterSettings:
    base: str


@dataclass
class Config:
    competition: CompetitionSettings
    folds: FoldSettings
    writer: WriterSettings
    prompt: PromptSettings
    writing: WritingSettings
    lora: LoraSettings
    training: TrainingSettings
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
    return Prompter(load_tokenizer(run.model("writer")), run.config.prompt)


def predict(rows: pl.DataFrame, loaded: Prompter, run: Run) -> pl.DataFrame:
    (text,), settings = run.competition.tables["test"].texts, run.config.writing

    def offer(lines: Sequence[str]) -> None:
        run.offer(rank_texts(rows, lines, text, settings))

    lines = write_lines(rows, loaded, run.engine("writer"), settings, run.budget, offer)
    return rank_texts(rows, lines, text, settings)
