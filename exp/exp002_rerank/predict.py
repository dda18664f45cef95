"""From test rows to a ranking: retrieve, rerank the first candidates by a language model's log-odds, blend both."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from kaggle_llm.competition.competition import Competition
from kaggle_llm.decisions.rerank_blend import Blend, Reranked
from kaggle_llm.engines.prompts import CandidatePrompts, Prompter, PromptSettings
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.inference.run import Run
from kaggle_llm.retrieval.rerank import rerank
from kaggle_llm.retrieval.retriever import RetrievalSettings, Retriever
from kaggle_llm.tasks.choice_training import ChoiceSettings
from kaggle_llm.training.settings import LoraSettings, TrainingSettings


@dataclass(kw_only=True)
class Config(BaseConfig):
    retrieval: RetrievalSettings
    depth: int = 8
    """Candidates that the reranker reads."""
    prompt: PromptSettings
    choice: ChoiceSettings
    lora: LoraSettings
    training: TrainingSettings


@dataclass
class Loaded:
    retriever: Retriever
    prompts: CandidatePrompts


def load(run: Run) -> Loaded:
    prompter = Prompter(load_tokenizer(run.model("reranker")), run.config.prompt)
    documents = run.competition.table(run.competition.documents)
    return Loaded(Retriever(run, documents), CandidatePrompts(prompter, documents))


def score(rows: pl.DataFrame, loaded: Loaded, run: Run) -> Reranked:
    """The retrieval's ranking, and the reranker's of its first candidates (without rows that the time limit cut)."""
    retrieved = loaded.retriever.search(rows)
    run.offer(Reranked(retrieved, retrieved.clear()))

    def offer(reranked: pl.DataFrame) -> None:
        run.offer(Reranked(retrieved, reranked))

    engine = run.engine("reranker")
    return Reranked(retrieved, rerank(rows, retrieved, run.config.depth, loaded.prompts, engine, run.budget, offer))


def decision(config: Config, competition: Competition) -> Blend:
    """The weight of the reranker's score beside the retrieval's rank."""
    return Blend()


def prompts_a_row(config: Config) -> int:
    return config.depth
