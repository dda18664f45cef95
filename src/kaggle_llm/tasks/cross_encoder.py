"""A cross-encoder reorders candidates: it reads a row's query together with each of them, and gives one number.

Trained by cross_encoder_training.py on the same prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kaggle_llm.engines.engine import Engine
from kaggle_llm.engines.linear_head import read_architecture
from kaggle_llm.engines.prompts import Prompt, encode_pairs, fill_template
from kaggle_llm.inference.budget import Budget
from kaggle_llm.retrieval.rerank import score_candidates

if TYPE_CHECKING:
    import polars as pl
    from transformers import PreTrainedTokenizerBase


@dataclass
class CrossEncoderSettings:
    loss: Literal["pointwise", "listwise"] = "pointwise"
    """pointwise: binary cross-entropy of each pair. listwise: cross-entropy over the documents of a query (ListNet),
    with labels as shares of the right answer."""
    max_tokens: int = 512
    """Tokens of a query with its document; the longer of the two is cut first, at its end."""

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens = {self.max_tokens}: must be 1 or more")


def is_cross_encoder(folder: Path) -> bool:
    """Whether a model has the head that the training leaves; a base without it cannot score pairs."""
    return read_architecture(folder).endswith("ForSequenceClassification")


class PairPrompts:
    """A row's query together with each of its items. query: template over the row; documents: item → its text."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, query: str, documents: Mapping[str, str], max_tokens: int
    ) -> None:
        self.tokenizer, self.query, self.documents, self.max_tokens = tokenizer, query, documents, max_tokens

    def prompts(self, row: Mapping[str, Any], items: Sequence[str]) -> list[Prompt]:
        """One prompt for each item."""
        queries = [fill_template(self.query, row)] * len(items)
        return encode_pairs(self.tokenizer, queries, [self.documents[item] for item in items], self.max_tokens)


def rerank_pairs(
    rows: pl.DataFrame,
    candidates: pl.DataFrame,
    depth: int,
    prompts: PairPrompts,
    engine: Engine,
    budget: Budget,
    on_progress: Callable[[pl.DataFrame], None] | None = None,
) -> pl.DataFrame:
    """RANKING of the first `depth` candidates of each row by the cross-encoder's logit; see `retrieval.rerank`."""

    def ask(asked: Sequence[Prompt]) -> list[float]:
        logits = engine.logits(asked)
        if wrong := {row.shape for row in logits} - {(1,)}:
            raise ValueError(
                f"logits of shape {sorted(wrong)}: a cross-encoder has one for each pair; another model's?"
            )
        return [float(row[0]) for row in logits]

    return score_candidates(rows, candidates, depth, prompts.prompts, ask, budget, on_progress)
