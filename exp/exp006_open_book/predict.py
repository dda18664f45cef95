"""From test rows to letters: retrieve passages into the prompt, rank the options by a language model's log-odds."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from kaggle_llm.engines.prompts import OptionPrompts, Prompter, PromptSettings
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.inference.run import Run
from kaggle_llm.retrieval.passages import (
    ContextSettings,
    PassageSettings,
    add_context,
    answer_in_turn,
    cut_documents,
    rank_alike,
)
from kaggle_llm.retrieval.retriever import RetrievalSettings, Retriever
from kaggle_llm.tasks.choice_training import ChoiceSettings
from kaggle_llm.training.settings import LoraSettings, TrainingSettings

OPTIONS = 5


@dataclass(kw_only=True)
class Config(BaseConfig):
    passages: PassageSettings
    retrieval: RetrievalSettings
    context: ContextSettings
    prompt: PromptSettings
    choice: ChoiceSettings
    lora: LoraSettings
    training: TrainingSettings


@dataclass
class Loaded:
    passages: pl.DataFrame
    retriever: Retriever
    prompts: OptionPrompts


def load(run: Run) -> Loaded:
    passages = cut_documents(run.competition.table("articles"), run.config.passages)
    prompter = Prompter(load_tokenizer(run.model("reader")), run.config.prompt)
    return Loaded(passages, Retriever(run, passages), OptionPrompts(prompter))


def fallback(rows: pl.DataFrame, run: Run) -> pl.DataFrame:
    """For rows that no model answers: the options in their given order."""
    return rank_alike(rows, run.competition.legal_items())


def score(rows: pl.DataFrame, loaded: Loaded, run: Run) -> pl.DataFrame:
    retrieved, depths = search(rows, loaded, run), run.config.context.depths
    return choose([add_context(rows, retrieved, loaded.passages, depth) for depth in depths], loaded, run)


def search(rows: pl.DataFrame, loaded: Loaded, run: Run) -> pl.DataFrame:
    """The passages for every row, best first."""
    return loaded.retriever.search(rows)


def answer_closed(rows: pl.DataFrame, loaded: Loaded, run: Run) -> pl.DataFrame:
    """The same model's answer without a passage in the prompt."""
    return choose([rows.with_columns(context=pl.lit(""))], loaded, run)


def choose(variants: list[pl.DataFrame], loaded: Loaded, run: Run) -> pl.DataFrame:
    """The options ranked by their scores, averaged over variants of the rows with different contexts."""
    options, engine = run.competition.legal_items(), run.engine("reader")
    return answer_in_turn(variants, options, loaded.prompts, engine, run.budget, run.offer)


def prompts_a_row(config: Config) -> int:
    return OPTIONS * len(config.context.depths)
