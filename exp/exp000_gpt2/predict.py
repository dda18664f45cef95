"""From test rows to a ranking: the model writes what it thinks the document says, and BM25 finds the nearest."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from kaggle_llm.competition import CompetitionSettings
from kaggle_llm.cv.folds import FoldSettings
from kaggle_llm.cv.leaks import LeakSettings
from kaggle_llm.inference.engine import EngineSettings
from kaggle_llm.inference.writing import WritingSettings, write_lines
from kaggle_llm.prompts import Prompter, PromptSettings, load_tokenizer
from kaggle_llm.retrieval.lexical import LexicalIndex
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
    writing: WritingSettings = field(default_factory=WritingSettings)
    k: int = 25
    engine: EngineSettings = field(default_factory=EngineSettings)
    leaks: LeakSettings = field(default_factory=LeakSettings)
    models: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    seed: int = 0


@dataclass
class Loaded:
    prompter: Prompter
    index: LexicalIndex


def load(run: Run) -> Loaded:
    documents = run.competition.table(run.competition.documents)
    index = LexicalIndex(documents["id"].to_list(), documents["text"].to_list())
    return Loaded(Prompter(load_tokenizer(run.model("gpt2")), run.config.prompt), index)


def predict(rows: pl.DataFrame, loaded: Loaded, run: Run) -> pl.DataFrame:
    lines = write_lines(rows, loaded.prompter, run.engine("gpt2"), run.config.writing, run.budget)
    return loaded.index.search(rows["id"].to_list(), lines, run.config.k)
