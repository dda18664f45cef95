"""The contract that every engine keeps, its settings, and the checks that all engines share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from kaggle_llm.base import records
from kaggle_llm.engines.prompts import Prompt

if TYPE_CHECKING:
    import numpy as np


@dataclass
class EngineSettings:
    kind: Literal["auto", "transformers", "vllm"] = "auto"
    """auto: vLLM where a GPU and vLLM are present, else transformers; a run's config holds which it became."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of weights and activations; T4s have no bfloat16."""
    batch_tokens: int = 4096
    """Tokens of a batch, padding included: the memory that scoring takes is proportional to it (transformers)."""
    vllm: dict = field(default_factory=dict)
    """Settings that go to vLLM by their names there, such as {gpu_memory_utilization: 0.85, max_model_len: 2048}."""
    workers: int | None = None
    """Processes with the model in each; 0: it runs in this one. None: as many as the GPUs hold, without a GPU 0."""
    patience: float = 900.0
    """Seconds that a worker may take for a call, vLLM's start included, before it is killed and replaced."""

    def __post_init__(self) -> None:
        if (self.workers or 0) < 0 or not self.patience > 0:
            raise ValueError(f"workers = {self.workers}, patience = {self.patience} s: no workers are 0, patience > 0")


@dataclass(frozen=True)
class Sampling:
    """How to generate. temperature 0 is greedy.

    Raises ValueError for structure asked for in two ways, or for one that cannot be kept.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    seed: int = 0
    """Sample i of a prompt has the seed seed + i, whatever is asked beside it: seeds of two calls lie n apart."""
    stop: tuple[str, ...] = ()
    """A text ends before the first of these that it would hold."""
    options: tuple[str, ...] = ()
    """A text is exactly one of these."""
    regex: str = ""
    """A text matches this wholly; it is "" where max_tokens ended it before it did."""

    def __post_init__(self) -> None:
        if self.options and self.regex:
            raise ValueError(f"options = {self.options} and regex = {self.regex!r}: give one of the two")
        if self.stop and (self.options or self.regex):
            raise ValueError(f"stop = {self.stop} with options or regex: they say themselves where a text ends")
        if not all((*self.stop, *self.options)) or len(set(self.options)) < len(self.options):
            raise ValueError(f"stop = {self.stop}, options = {self.options}: no empty text, no option twice")
        longest = max((len(option.encode()) for option in self.options), default=0)
        if longest > self.max_tokens:  # a token is at least one byte
            raise ValueError(f"max_tokens = {self.max_tokens} may cut an option: set max_tokens={longest}")


@dataclass(frozen=True)
class Completion:
    text: str
    ids: list[int] = field(default_factory=list)


class NonFiniteError(ValueError):
    """Scores that are no numbers: the model overflows in its dtype, or its weights are broken."""

    def __init__(self, folder: Path, bad: int, size: int) -> None:
        super().__init__(folder, bad, size)  # what it was made of, so that it can leave a worker's process
        self.folder, self.bad, self.size = folder, bad, size

    def __str__(self) -> str:
        return (
            f"model {self.folder} gave {self.bad} non-finite of {self.size} scores: it overflows in this dtype or is "
            f"broken; try engine.dtype=float32"
        )


class LengthError(ValueError):
    """A prompt without a token, or with more than the model takes."""

    def __init__(self, index: int, length: int, limit: int, folder: Path) -> None:
        super().__init__(index, length, limit, folder)
        self.index, self.length, self.limit, self.folder = index, length, limit, folder

    def __str__(self) -> str:
        return (
            f"prompt {self.index} has {self.length} tokens, {self.folder} takes 1 to {self.limit}: set prompt.budgets"
        )


class Engine(Protocol):
    """Answers in the order given."""

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        """[n, k] log-probabilities of k labels behind each prompt, over the full vocabulary."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt."""

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """[n, d] vectors of unit length."""

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """A head's logits: [labels] of a sequence head, [tokens, labels] of a token head."""

    def close(self) -> None:
        """Give the memory back."""


def check_lengths(prompts: Sequence[Prompt], limit: int, folder: Path) -> None:
    """Raises LengthError that names the first prompt without a token or with more than `limit`."""
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= limit:
            raise LengthError(index, len(prompt), limit, folder)


def check_finite(scores: np.ndarray, folder: Path) -> None:
    """Raises NonFiniteError where a score is infinite or not a number."""
    import numpy as np

    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise NonFiniteError(folder, bad, scores.size)


def check_base(folder: Path, base: Path | None) -> None:
    """Raises ValueError for an adapter without the model that it is attached to, or a base for no adapter."""
    if (folder / records.ADAPTER).is_file() != (base is not None):
        has, lacks = ("an adapter", "without its base") if base is None else ("no adapter", f"for the base {base}")
        raise ValueError(f"{folder} holds {has} {lacks}: ship an adapter X together with its base X_base")
