"""From test rows to a ranking: retrieve, rerank the first candidates by a language model's log-odds, blend."""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from kaggle_llm.competition import CompetitionSettings
from kaggle_llm.cv.decisions import Blend
from kaggle_llm.cv.folds import FoldSettings
from kaggle_llm.cv.leaks import LeakSettings
from kaggle_llm.inference.engine import EngineSettings
from kaggle_llm.prompts import CandidatePrompts, Prompter, PromptSettings, load_tokenizer
from kaggle_llm.retrieval.rerank import rerank
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
class RerankerSettings:
    base: str
    depth: int = 8
    blend_rows: int = 48


@dataclass
class Config:
    competition: CompetitionSettings
    folds: FoldSettings
    retrieval: RetrievalSettings
    reranker: RerankerSettings
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
    retriever: Retriever
    prompts: CandidatePrompts


def load(run: Run) -> Loaded:
    prompter = Prompter(load_tokenizer(run.model("reranker")), run.config.prompt)
    documents = run.competition.table(run.competition.documents)
    return Loaded(Retriever(run, documents), CandidatePrompts(prompter, documents))


def score(
    rows: pl.DataFrame, loaded: Loaded, run: Run, blend: Blend | None = None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The retrieval's ranking, and the reranker's of its first candidates (no row where the time ran out)."""
    retrieved = loaded.retriever.search(rows)
    run.offer(retrieved)

    def offer(reranked: pl.DataFrame) -> None:
        if blend:
            run.offer(blend.apply(retrieved, reranked))

    depth = run.config.reranker.depth
    return retrieved, rerank(rows, retrieved, depth, loaded.prompts, run.engine("reranker"), run.budget, offer)


def predict(rows: pl.DataFrame, loaded: Loaded, run: Run) -> pl.DataFrame:
    blend = Blend.load(run.model("blend"))
    return blend.apply(*score(rows, loaded, run, blend))
