"""From test rows to letters: find passages, show the first ones to a language model, rank the options by log-odds."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from kaggle_llm.competition import CompetitionSettings
from kaggle_llm.cv.folds import FoldSettings
from kaggle_llm.cv.leaks import LeakSettings
from kaggle_llm.inference.engine import EngineSettings
from kaggle_llm.prompts import OptionPrompts, Prompter, PromptSettings, load_tokenizer
from kaggle_llm.retrieval.passages import ContextSettings, PassageSettings, add_context, answer_in_turn, cut_documents
from kaggle_llm.retrieval.retriever import RetrievalSettings, Retriever
from kaggle_llm.run import Run
from kaggle_llm.training.choice import ChoiceSettings
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.weights.average import AverageSettings
from kaggle_llm.weights.merge import MergeSettings
from kaggle_llm.weights.parity import ParitySettings
from kaggle_llm.weights.quantize import QuantizeSettings
from kaggle_llm.weights.ship import Ship


@dataclass
class ReaderSettings:
    base: str


@dataclass
class Config:
    competition: CompetitionSettings
    folds: FoldSettings
    passages: PassageSettings
    retrieval: RetrievalSettings
    context: ContextSettings
    reader: ReaderSettings
    prompt: PromptSettings
    choice: ChoiceSettings
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


@dataclass
class Loaded:
    passages: pl.DataFrame
    retriever: Retriever
    prompts: OptionPrompts


def load(run: Run) -> Loaded:
    passages = cut_documents(run.competition.table("articles"), run.config.passages)
    prompter = Prompter(load_tokenizer(run.model("reader")), run.config.prompt)
    return Loaded(passages, Retriever(run, passages), OptionPrompts(prompter))


def search(rows: pl.DataFrame, loaded: Loaded, run: Run) -> pl.DataFrame:
    """The passages of every row."""
    return loaded.retriever.search(rows)


def answer_closed(rows: pl.DataFrame, loaded: Loaded, run: Run) -> pl.DataFrame:
    """What the same model says without a passage."""
    return choose([rows.with_columns(context=pl.lit(""))], loaded, run)


def predict(rows: pl.DataFrame, loaded: Loaded, run: Run) -> pl.DataFrame:
    found, depths = search(rows, loaded, run), run.config.context.depths
    return choose([add_context(rows, found, loaded.passages, depth) for depth in depths], loaded, run)


def choose(forms: list[pl.DataFrame], loaded: Loaded, run: Run) -> pl.DataFrame:
    """The options by their scores, averaged over several contexts of the same rows."""
    options, engine = run.competition.legal_items(), run.engine("reader")
    return answer_in_turn(forms, options, loaded.prompts, engine, run.budget, run.offer)
