"""From test rows to a ranking: all documents, by how likely the model is to write them behind the row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import polars as pl

from kaggle_llm.competition import CompetitionSettings
from kaggle_llm.cv.folds import FoldSettings
from kaggle_llm.cv.leaks import LeakSettings
from kaggle_llm.inference.engine import EngineSettings
from kaggle_llm.inference.likelihood import rank_by_likelihood
from kaggle_llm.prompts import Prompt, Prompter, PromptSettings, load_tokenizer
from kaggle_llm.run import Run


@dataclass
class ModelSettings:
    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int


@dataclass
class FitSettings:
    epochs: int
    batch: int
    learning_rate: float


@dataclass
class Config:
    competition: CompetitionSettings
    folds: FoldSettings
    prompt: PromptSettings
    model: ModelSettings
    fit: FitSettings
    k: int = 25
    engine: EngineSettings = field(default_factory=EngineSettings)
    leaks: LeakSettings = field(default_factory=LeakSettings)
    models: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    seed: int = 0


@dataclass
class Loaded:
    prompter: Prompter
    documents: Mapping[str, Prompt]


def load(run: Run) -> Loaded:
    prompter = Prompter(load_tokenizer(run.model("gpt2")), run.config.prompt)
    documents = run.competition.table(run.competition.documents).select("id", "text").iter_rows()
    return Loaded(prompter, {i: prompter.completion(f" {text}") for i, text in documents})


def predict(rows: pl.DataFrame, loaded: Loaded, run: Run) -> pl.DataFrame:
    engine = run.engine("gpt2")
    return rank_by_likelihood(rows, loaded.prompter, loaded.documents, engine, run.budget, run.config.k)
