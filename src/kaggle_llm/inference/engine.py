"""The contract that every engine keeps, and its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from kaggle_llm.prompts import Prompt

if TYPE_CHECKING:
    import numpy as np


@dataclass
class EngineSettings:
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of weights and activations; T4s have no bfloat16."""
    batch_tokens: int = 4096
    """Tokens of a batch, padding included: the memory that scoring takes is proportional to it."""


@dataclass(frozen=True)
class Sampling:
    """How to generate. temperature 0 is greedy."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Completion:
    text: str
    ids: list[int] = field(default_factory=list)


class Engine(Protocol):
    """Answers in the order given."""

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        """[n, k] log-probabilities of k labels as the next token, over the full vocabulary."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt."""

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """[n, d] vectors of unit length."""

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """A head's logits: [labels] of a sequence head, [tokens, labels] of a token head."""

    def close(self) -> None:
        """Give the memory back."""
