"""Answers prompts within the GPU's memory: a call that does not fit is halved, a prompt that does not fit is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kaggle_llm.base.device import release_device
from kaggle_llm.engines.engine import Completion, EngineWrapper, PromptMemoryError, Sampling
from kaggle_llm.engines.prompts import Prompt

if TYPE_CHECKING:
    import numpy as np

AnswerT = TypeVar("AnswerT")
AnswersT = TypeVar("AnswersT")


def ask_within_memory(
    ask: Callable[[Sequence[Prompt]], list[AnswerT]], prompts: Sequence[Prompt], folder: Path, first: int = 0
) -> list[AnswerT]:
    """ask(prompts); where the GPU's memory is too small, its halves one after the other.

    first: the first prompt's index in the caller's list. Raises PromptMemoryError for a prompt that does not fit alone.
    """
    import torch

    try:
        return ask(prompts)
    except torch.OutOfMemoryError:
        pass  # the halves are asked outside: the error holds on to what filled the memory
    release_device()
    if len(prompts) == 1:
        raise PromptMemoryError(first, len(prompts[0]), len(prompts[0]) // 2, folder)
    middle = (len(prompts) + 1) // 2
    print(f"out of GPU memory at {len(prompts)} prompts: {middle} at a time", flush=True)
    return [
        *ask_within_memory(ask, prompts[:middle], folder, first),
        *ask_within_memory(ask, prompts[middle:], folder, first + middle),
    ]


class CuttingEngine(EngineWrapper):
    """Cuts a prompt that does not fit into the GPU's memory alone to its last half, and says so.

    For the notebook: a worse answer to one row is better than no submission. In CV the error stays an error, and
    logits, of which a tagger needs one for each token, are never those of a cut prompt.
    """

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        return ask_cut(lambda cut: self.engine.choices(cut, labels), prompts)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        return ask_cut(lambda cut: self.engine.generate(cut, sampling), prompts)

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        return ask_cut(lambda cut: self.engine.embed(cut), prompts)


def ask_cut(ask: Callable[[Sequence[Prompt]], AnswersT], prompts: Sequence[Prompt]) -> AnswersT:
    cut = list(prompts)
    while True:
        try:
            return ask(cut)
        except PromptMemoryError as error:
            if error.limit < 1:
                raise
            print(f"WARNING: {error}; it is cut to its last {error.limit}", flush=True)
            cut[error.index] = cut[error.index][-error.limit :]
