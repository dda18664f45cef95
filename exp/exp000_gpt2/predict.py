"""From test rows to a ranking: the model writes a guess of the document, and BM25 finds the nearest ones."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from kaggle_llm.engines.prompts import Prompter, PromptSettings
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.inference.run import Run
from kaggle_llm.retrieval.lexical import LexicalIndex
from kaggle_llm.tasks.writing import WritingSettings, write_lines


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


@dataclass(kw_only=True)
class Config(BaseConfig):
    prompt: PromptSettings
    model: ModelSettings
    fit: FitSettings
    writing: WritingSettings = field(default_factory=WritingSettings)
    k: int = 25


@dataclass
class Loaded:
    prompter: Prompter
    index: LexicalIndex


def load(run: Run) -> Loaded:
    return Loaded(Prompter(load_tokenizer(run.model("gpt2")), run.config.prompt), make_index(run))


def make_index(run: Run) -> LexicalIndex:
    documents = run.competition.table(run.competition.documents)
    return LexicalIndex(documents["id"].to_list(), documents["text"].to_list())


def fallback(rows: pl.DataFrame, run: Run) -> pl.DataFrame:
    """For rows without the model's answer: the documents nearest to their own words."""
    words = rows.select(pl.concat_str(*run.competition.tables["test"].texts, separator=" ")).to_series()
    return make_index(run).search(rows["id"].to_list(), words.to_list(), run.config.k)


def score(rows: pl.DataFrame, loaded: Loaded, run: Run) -> pl.DataFrame:
    lines = write_lines(rows, loaded.prompter, run.engine("gpt2"), run.config.writing, run.budget)
    return loaded.index.search(rows["id"].to_list(), lines, run.config.k)
