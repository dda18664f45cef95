"""The interface of every engine, its settings, a base class for wrappers, and the checks that engines share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from kaggle_llm.base import records
from kaggle_llm.base.accelerators import DEFAULT_ACCELERATOR, find_accelerator
from kaggle_llm.base.device import describe_device
from kaggle_llm.engines.prompts import Prompt

if TYPE_CHECKING:
    import numpy as np

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
CPU_BATCH_TOKENS = 4096  # of auto without a GPU: on two cores 1,024 to 16,384 are equally fast


@dataclass
class EngineSettings:
    kind: Literal["auto", "transformers", "vllm"] = "auto"
    """auto: vLLM where a GPU and vLLM are present, else transformers; the run's recorded config names the choice."""
    dtype: Dtype = "auto"
    """The dtype of weights and activations. auto: what `accelerator` computes (float16 on a T4, bfloat16 on newer
    cards), in CV too, but float32 on a machine without a GPU, where half precision is slow; the recorded config names
    the choice."""
    batch_tokens: int | Literal["auto"] = "auto"
    """Tokens of a batch, padding included; transformers only. Memory use is proportional to it. auto: as many as the
    free memory of the card takes, on which the engine is made (the log names them); 4096 without a GPU."""
    accelerator: str = DEFAULT_ACCELERATOR
    """The machine on Kaggle that it ships to: NvidiaTeslaT4 (two cards), NvidiaL4 (four), NvidiaH100, NvidiaRtxPro6000,
    or none, a CPU."""
    embedder: Literal["transformers", "vllm"] = "transformers"
    """What runs sentence encoders, whatever `kind` is. vllm: its pooling runner; a vector's last digits then depend on
    the rest of the batch, so candidates that are nearly equal may change places."""
    vllm: dict = field(default_factory=dict)
    """vLLM's own settings by their names there, such as {gpu_memory_utilization: 0.85, max_model_len: 2048}."""
    workers: int | None = None
    """Worker processes, each with the whole model; 0: in this process. None: as many as the GPUs hold, 0 without."""
    patience: float = 900.0
    """Seconds that a worker may take for a call, vLLM's start included, before it is killed and replaced."""

    def __post_init__(self) -> None:
        find_accelerator(self.accelerator)
        if (self.workers or 0) < 0 or not self.patience > 0:
            raise ValueError(f"workers = {self.workers}, patience = {self.patience} s: must be 0 or more, and above 0")
        if self.tokens < 1:
            raise ValueError(f"batch_tokens = {self.batch_tokens}: must be 1 or more, or auto")

    @property
    def tokens(self) -> int:
        """batch_tokens as a number; for auto, which make_engine decides on a GPU, what a CPU gets."""
        return CPU_BATCH_TOKENS if self.batch_tokens == "auto" else self.batch_tokens


def choose_shipped_dtype(dtype: Dtype, accelerator: str) -> Dtype:
    """The dtype on Kaggle: auto is half precision, in float32 on a CPU."""
    if dtype != "auto":
        return dtype
    shipped = find_accelerator(accelerator)
    return shipped.half if shipped.count else "float32"


def resolve_dtype(settings: EngineSettings) -> EngineSettings:
    """The settings with dtype auto decided: what ships, or float32 where there is no GPU."""
    if settings.dtype != "auto":
        return settings
    has_card = describe_device() != "cpu"
    return replace(settings, dtype=choose_shipped_dtype("auto", settings.accelerator) if has_card else "float32")


@dataclass(frozen=True)
class Sampling:
    """How to generate. Temperature 0 is greedy. Raises ValueError for settings that contradict each other.

    Nothing else comes in: a model's generation_config.json adds its end-of-text tokens, but no penalty, top_k or min_p.
    """

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    seed: int = 0
    """Sample i of a prompt has the seed `seed + i`, whatever else is in the batch: seeds of two calls lie n apart."""
    stop: tuple[str, ...] = ()
    """A text ends before the first of these strings."""
    options: tuple[str, ...] = ()
    """A text is exactly one of these."""
    regex: str = ""
    """A text matches this from start to end; it is "" where max_tokens cut it before it matched."""

    def __post_init__(self) -> None:
        if self.options and self.regex:
            raise ValueError(f"options = {self.options} and regex = {self.regex!r}: give one of the two")
        if self.stop and (self.options or self.regex):
            raise ValueError(f"stop = {self.stop} with options or regex: those end a text themselves")
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
    """Infinite or NaN scores: the model overflows in its dtype, or its weights are broken."""

    def __init__(self, folder: Path, bad: int, size: int) -> None:
        super().__init__(folder, bad, size)  # its arguments, so that it can be pickled
        self.folder, self.bad, self.size = folder, bad, size

    def __str__(self) -> str:
        return (
            f"model {self.folder} gave {self.bad} non-finite of {self.size} scores: it overflows in this dtype or is "
            f"broken; try engine.dtype=float32"
        )


class LengthError(ValueError):
    """A prompt without tokens, or with more than the model takes."""

    def __init__(self, index: int, length: int, limit: int, folder: Path) -> None:
        super().__init__(index, length, limit, folder)
        self.index, self.length, self.limit, self.folder = index, length, limit, folder

    def at(self, index: int) -> LengthError:
        """The same error, with the prompt's index in a caller's list."""
        return type(self)(index, self.length, self.limit, self.folder)

    def __str__(self) -> str:
        return (
            f"prompt {self.index} has {self.length} tokens, {self.folder} takes 1 to {self.limit}: set prompt.budgets"
        )


class PromptMemoryError(LengthError):
    """A prompt that does not fit into the GPU's memory, even alone; limit: half of its tokens."""

    def __str__(self) -> str:
        return (
            f"prompt {self.index} of {self.length} tokens does not fit into the GPU's memory with {self.folder}: "
            f"set prompt.budgets, or shorter windows"
        )


class Engine(Protocol):
    """Answers prompts, in the order given."""

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        """[n, k] log-probabilities of k labels after each prompt, over the full vocabulary."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt."""

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """[n, d] vectors of unit length."""

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """A head's logits: [labels] of a sequence head, [tokens, labels] of a token head."""

    def close(self) -> None:
        """Free the memory."""


class EngineWrapper:
    """Passes every call on to `self.engine`; a subclass overrides what it changes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        return self.engine.choices(prompts, labels)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        return self.engine.generate(prompts, sampling)

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        return self.engine.embed(prompts)

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        return self.engine.logits(prompts)

    def close(self) -> None:
        self.engine.close()


def check_prompt_lengths(prompts: Sequence[Prompt], limit: int, folder: Path) -> None:
    """Raises LengthError, naming the first prompt that has no token or more than `limit`."""
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) <= limit:
            raise LengthError(index, len(prompt), limit, folder)


def check_scores_finite(scores: np.ndarray, folder: Path) -> None:
    """Raises NonFiniteError where a score is infinite or NaN."""
    import numpy as np

    bad = int((~np.isfinite(scores)).sum())
    if bad:
        raise NonFiniteError(folder, bad, scores.size)


def check_adapter_base(folder: Path, base: Path | None) -> None:
    """Raises ValueError for an adapter without its base model, or for a base without an adapter."""
    if (folder / records.ADAPTER).is_file() != (base is not None):
        has, lacks = ("an adapter", "without its base") if base is None else ("no adapter", f"for the base {base}")
        raise ValueError(f"{folder} holds {has} {lacks}: ship an adapter X together with its base X_base")
