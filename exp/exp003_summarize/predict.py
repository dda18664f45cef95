"""From test rows to texts: a language model completes the prompt, and the first line is the answer."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from kaggle_llm.engines.prompts import Prompter, PromptSettings
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.inference.run import Run
from kaggle_llm.tasks.writing import WritingSettings, rank_first_words, write_texts
from kaggle_llm.training.settings import LoraSettings, TrainingSettings


@dataclass(kw_only=True)
class Config(BaseConfig):
    prompt: PromptSettings
    writing: WritingSettings
    lora: LoraSettings
    training: TrainingSettings


def load(run: Run) -> Prompter:
    return Prompter(load_tokenizer(run.model("llm")), run.config.prompt)


def fallback(rows: pl.DataFrame, run: Run) -> pl.DataFrame:
    """For rows that no model answers."""
    return rank_first_words(rows, run.competition.tables["test"].texts[0], run.config.writing)


def score(rows: pl.DataFrame, loaded: Prompter, run: Run) -> pl.DataFrame:
    text, settings = run.competition.tables["test"].texts[0], run.config.writing
    return write_texts(rows, text, loaded, run.engine("llm"), settings, run.budget, run.offer)
