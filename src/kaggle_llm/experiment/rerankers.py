"""The rerankers of exp002, each with its prompts, its training and its scores; one setting chooses among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kaggle_llm.decisions.rerank_blend import Blend, Reranked
from kaggle_llm.decisions.twice_blend import TwiceReranked
from kaggle_llm.engines.prompts import CandidatePrompts, Group, Prompter, TokenGroup
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.retrieval.rerank import rerank
from kaggle_llm.tasks.choice_training import ChoiceSettings, ChoiceTask
from kaggle_llm.tasks.cross_encoder import PairPrompts, is_cross_encoder, rerank_pairs
from kaggle_llm.tasks.cross_encoder_training import label_pairs, train_cross_encoder
from kaggle_llm.tasks.windows import WindowPrompts, rank_windows
from kaggle_llm.tasks.windows_training import TwoFormsTask, mix_examples
from kaggle_llm.training.trainer import Job, describe_conditions

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.experiment.part import Part
    from kaggle_llm.inference.run import Run
    from kaggle_llm.retrieval.retriever import Retriever

Draw = Callable[["Part", int], list[Group]]
"""(part, number of candidates) → so many candidates for each of its rows, the right one among wrong ones."""
Offer = Callable[["pl.DataFrame"], None]


class Reranker(Protocol):
    def score(self, rows: pl.DataFrame, retrieved: pl.DataFrame, run: Run) -> Reranked:
        """The retrieval's ranking, and the reranker's of its first candidates (without rows that the time limit cut);
        both are offered as they come."""
        run.offer(Reranked(retrieved, retrieved.clear()))
        ranked = self.rank(rows, retrieved, run, lambda ranked: run.offer(Reranked(retrieved, ranked)))
        return Reranked(retrieved, ranked)

    def rank(self, rows: pl.DataFrame, candidates: pl.DataFrame, run: Run, offer: Offer) -> pl.DataFrame:
        """The RANKING of the first candidates."""
        ...

    def learn(self, part: Part, draw: Draw) -> None:
        """Train on examples in the form of the prompts."""
        ...


def open_reranker(run: Run, retriever: Retriever) -> Reranker:
    """The reranker that `config.reranker` names."""
    config, documents = run.config, run.competition.table(run.competition.documents)
    if config.reranker == "cross_encoder":
        tokenizer, length = load_tokenizer(run.model("cross_encoder")), config.cross_encoder.max_tokens
        return CrossEncoder(PairPrompts(tokenizer, config.retrieval.query, retriever.texts, length), retriever)
    prompter = Prompter(load_tokenizer(run.model("reranker")), config.prompt)
    kinds: Mapping[str, type[Pointwise]] = {"pointwise": Pointwise, "windows": Windows, "both": Both}
    windows = WindowPrompts(prompter, config.windows, documents)
    return kinds[config.reranker](CandidatePrompts(prompter, documents), windows)


@dataclass
class Pointwise(Reranker):
    """A language model says Yes or No to each candidate."""

    prompts: CandidatePrompts
    windows: WindowPrompts

    def rank(self, rows: pl.DataFrame, candidates: pl.DataFrame, run: Run, offer: Offer) -> pl.DataFrame:
        engine = run.engine("reranker")
        return rerank(rows, candidates, run.config.depth, self.prompts, engine, run.budget, offer)

    def learn(self, part: Part, draw: Draw) -> None:
        part.learn("reranker", self.task(part.config.choice), partial(self.examples, draw))

    def task(self, choice: ChoiceSettings) -> ChoiceTask:
        return ChoiceTask(choice, self.prompts.prompter.labels)

    def examples(self, draw: Draw, part: Part) -> list[TokenGroup]:
        return self.prompts.groups(part.train, draw(part, part.config.choice.group_size))


class Windows(Pointwise):
    """A language model chooses among a few lettered candidates; the window slides over the list."""

    def rank(self, rows: pl.DataFrame, candidates: pl.DataFrame, run: Run, offer: Offer) -> pl.DataFrame:
        engine = run.engine("reranker")
        return rank_windows(rows, candidates, run.config.depth, self.windows, engine, run.budget, offer)

    def task(self, choice: ChoiceSettings) -> ChoiceTask:
        return ChoiceTask(ChoiceSettings("labels"), self.windows.prompter.labels)

    def examples(self, draw: Draw, part: Part) -> list[TokenGroup]:
        return self.windows.examples(part.train, draw(part, part.config.windows.size))


class Both(Pointwise):
    """One model, asked candidate by candidate, then in windows over the order that this gives."""

    def score(self, rows: pl.DataFrame, retrieved: pl.DataFrame, run: Run) -> TwiceReranked:
        empty = retrieved.clear()
        run.offer(TwiceReranked(retrieved, empty, empty))
        ranked = self.rank(rows, retrieved, run, lambda ranked: run.offer(TwiceReranked(retrieved, ranked, empty)))
        run.offer(TwiceReranked(retrieved, ranked, empty))
        ordered = Blend().apply(Reranked(retrieved, ranked))
        windows = Windows(self.prompts, self.windows).rank(
            rows, ordered, run, lambda windows: run.offer(TwiceReranked(retrieved, ranked, windows))
        )
        return TwiceReranked(retrieved, ranked, windows)

    def task(self, choice: ChoiceSettings) -> ChoiceTask:
        return TwoFormsTask(choice, self.prompts.prompter.labels, self.windows.prompter.labels)

    def examples(self, draw: Draw, part: Part) -> list[TokenGroup]:
        windows = Windows(self.prompts, self.windows).examples(draw, part)
        return mix_examples(super().examples(draw, part), windows, seed=part.config.seed)


@dataclass
class CrossEncoder(Reranker):
    """An encoder with a head reads the query with each candidate; an untrained head cannot rank."""

    prompts: PairPrompts
    retriever: Retriever

    def rank(self, rows: pl.DataFrame, candidates: pl.DataFrame, run: Run, offer: Offer) -> pl.DataFrame:
        if not is_cross_encoder(run.model("cross_encoder")):
            return candidates.clear()
        engine, depth = run.engine("cross_encoder"), run.config.depth
        return rerank_pairs(rows, candidates, depth, self.prompts, engine, run.budget, offer)

    def learn(self, part: Part, draw: Draw) -> None:
        config, base = part.config, part.run.model("cross_encoder")
        groups = draw(part, config.choice.group_size)
        pairs = label_pairs(groups, self.retriever.queries(part.train), self.retriever.texts)
        job = Job(base, Path(), config.lora, config.training, config.seed, part.experiment.about)
        make = partial(train_cross_encoder, config.cross_encoder, pairs, job)
        settings = {"cross_encoder": config.cross_encoder, **describe_conditions(job)}
        part.make("cross_encoder", make, {"pairs": pairs, "base": base}, settings, together=True)
