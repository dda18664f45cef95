"""From test rows to probabilities: the model's letter for the two answers in both orders, and a temperature."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from kaggle_llm.competition.competition import Competition
from kaggle_llm.decisions.temperature import Temperature
from kaggle_llm.engines.prompts import Prompter, PromptSettings
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.inference.run import Run
from kaggle_llm.tasks.pairs import PairSettings, rank_even, rank_pairs
from kaggle_llm.training.settings import LoraSettings, TrainingSettings


@dataclass(kw_only=True)
class Config(BaseConfig):
    prompt: PromptSettings
    orders: PairSettings
    lora: LoraSettings
    training: TrainingSettings


def load(run: Run) -> Prompter:
    return Prompter(load_tokenizer(run.model("llm")), run.config.prompt)


def fallback(rows: pl.DataFrame, run: Run) -> pl.DataFrame:
    """For rows that no model answers."""
    return rank_even(rows, run.competition.legal_items())


def score(rows: pl.DataFrame, loaded: Prompter, run: Run) -> pl.DataFrame:
    labels, settings = run.competition.legal_items(), run.config.orders
    return rank_pairs(rows, labels, loaded, run.engine("llm"), settings, run.budget, run.offer)


def decision(config: Config, competition: Competition) -> Temperature:
    """The temperature that calibrates the probabilities."""
    return Temperature()
