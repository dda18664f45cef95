"""From test rows to a ranking: retrieve, rerank the first candidates by a language model's log-odds, blend both."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import polars as pl

from kaggle_llm.competition.competition import Competition
from kaggle_llm.decisions.rerank_blend import Blend, Reranked
from kaggle_llm.decisions.twice_blend import TwiceBlend, TwiceReranked
from kaggle_llm.engines.prompts import CandidatePrompts, Prompter, PromptSettings
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.inference.run import Run
from kaggle_llm.retrieval.rerank import rerank
from kaggle_llm.retrieval.retriever import RetrievalSettings, Retriever
from kaggle_llm.tasks.choice_training import ChoiceSettings
from kaggle_llm.tasks.cross_encoder import CrossEncoderSettings, PairPrompts, is_cross_encoder, rerank_pairs
from kaggle_llm.tasks.windows import WindowPrompts, WindowSettings, count_prompts, rank_windows
from kaggle_llm.training.settings import LoraSettings, TrainingSettings


@dataclass(kw_only=True)
class Config(BaseConfig):
    retrieval: RetrievalSettings
    depth: int = 8
    """Candidates that the reranker reads."""
    reranker: Literal["pointwise", "windows", "both", "cross_encoder"] = "pointwise"
    """pointwise: Yes or No for each candidate. windows: letters over a few at a time. both: one model, asked in both
    ways. cross_encoder: a head on `models.cross_encoder`, by default the encoder, without a language model."""
    prompt: PromptSettings
    windows: WindowSettings = field(default_factory=WindowSettings)
    cross_encoder: CrossEncoderSettings = field(default_factory=CrossEncoderSettings)
    choice: ChoiceSettings
    lora: LoraSettings
    training: TrainingSettings

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reranker == "cross_encoder":  # the language model does not ship
            self.models.pop("reranker", None)
            self.models.setdefault("cross_encoder", self.models["encoder"])


@dataclass
class Loaded:
    retriever: Retriever
    prompts: CandidatePrompts
    windows: WindowPrompts


@dataclass
class LoadedPairs:
    retriever: Retriever
    prompts: PairPrompts


def load(run: Run) -> Loaded | LoadedPairs:
    config, documents = run.config, run.competition.table(run.competition.documents)
    retriever = Retriever(run, documents)
    if config.reranker == "cross_encoder":
        tokenizer, length = load_tokenizer(run.model("cross_encoder")), config.cross_encoder.max_tokens
        return LoadedPairs(retriever, PairPrompts(tokenizer, config.retrieval.query, retriever.texts, length))
    prompter = Prompter(load_tokenizer(run.model("reranker")), config.prompt)
    return Loaded(retriever, CandidatePrompts(prompter, documents), WindowPrompts(prompter, config.windows, documents))


def score(rows: pl.DataFrame, loaded: Loaded | LoadedPairs, run: Run) -> Reranked:
    """The retrieval's ranking, and the reranker's of its first candidates (without rows that the time limit cut)."""
    retrieved, depth = loaded.retriever.search(rows), run.config.depth
    if run.config.reranker == "both":
        return score_twice(rows, retrieved, loaded, run)
    run.offer(Reranked(retrieved, retrieved.clear()))

    def offer(reranked: pl.DataFrame) -> None:
        run.offer(Reranked(retrieved, reranked))

    if isinstance(loaded, LoadedPairs):
        if not is_cross_encoder(run.model("cross_encoder")):  # before its training
            return Reranked(retrieved, retrieved.clear())
        engine = run.engine("cross_encoder")
        return Reranked(retrieved, rerank_pairs(rows, retrieved, depth, loaded.prompts, engine, run.budget, offer))
    engine = run.engine("reranker")
    if run.config.reranker == "windows":
        return Reranked(retrieved, rank_windows(rows, retrieved, depth, loaded.windows, engine, run.budget, offer))
    return Reranked(retrieved, rerank(rows, retrieved, depth, loaded.prompts, engine, run.budget, offer))


def score_twice(rows: pl.DataFrame, retrieved: pl.DataFrame, loaded: Loaded, run: Run) -> TwiceReranked:
    """Candidate by candidate, then in windows over the order that this gives."""
    empty, depth, engine = retrieved.clear(), run.config.depth, run.engine("reranker")
    run.offer(TwiceReranked(retrieved, empty, empty))

    def offer_first(reranked: pl.DataFrame) -> None:
        run.offer(TwiceReranked(retrieved, reranked, empty))

    reranked = rerank(rows, retrieved, depth, loaded.prompts, engine, run.budget, offer_first)
    offer_first(reranked)

    def offer(windows: pl.DataFrame) -> None:
        run.offer(TwiceReranked(retrieved, reranked, windows))

    ordered = Blend().apply(Reranked(retrieved, reranked))
    return TwiceReranked(
        retrieved, reranked, rank_windows(rows, ordered, depth, loaded.windows, engine, run.budget, offer)
    )


def decision(config: Config, competition: Competition) -> Blend | TwiceBlend:
    """The weight of the reranker's score beside the retrieval's rank."""
    if config.reranker == "both":
        return TwiceBlend()
    return Blend()


def prompts_a_row(config: Config) -> int:
    """Candidates that are read, in a window or alone."""
    pointwise = config.depth * (config.reranker != "windows")
    windows = config.reranker in ("windows", "both")
    return pointwise + windows * config.windows.size * count_prompts(config.depth, config.windows)


def asks_in_turns(config: Config) -> bool:
    """Whether prompts depend on earlier answers: other weights are then asked other prompts."""
    return config.reranker in ("windows", "both")
