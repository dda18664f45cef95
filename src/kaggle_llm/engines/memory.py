"""Answers prompts within the GPU's memory: a call that does not fit is halved, a prompt that does not fit is cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kaggle_llm.base.device import is_out_of_memory, release_device
from kaggle_llm.engines.engine import Completion, EngineWrapper, PromptMemoryError, Sampling
from kaggle_llm.engines.prompts import Prompt

if TYPE_CHECKING:
    import numpy as np

AnswerT = TypeVar("AnswerT")
AnswersT = TypeVar("AnswersT")


def ask_within_memory(
    ask: Callable[[Sequence[Prompt]], list[AnswerT]], prompts: Sequence[Prompt], folder: Path, first: int = 0
) -> list[AnswerT]:
    """ask(prompts), in halves one after the other where the GPU's memory is too small.

    first: the first prompt's index in the caller's list. Raises PromptMemoryError for a prompt that does not fit alone.
    """
    try:
        return ask(prompts)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        # The halves are asked outside: the error holds on to what filled the memory
    release_device()
    if len(prompts) == 1:
        raise PromptMemoryError(first, len(prompts[0]), len(prompts[0]) // 2, folder)
    middle = (len(prompts) + 1) // 2
    print(f"out of GPU memory with {len(prompts)} prompts at once: going on with {middle}", flush=True)
    return [
        *ask_within_memory(ask, prompts[:middle], folder, first),
        *ask_within_memory(ask, prompts[middle:], folder, first + middle),
    ]


class CuttingEngine(EngineWrapper):
    """Cuts a prompt that does not fit into the GPU's memory alone to half of its tokens, and says so.

    For the notebook: a worse answer to one row is better than no submission. In CV the error stays an error.
    """

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        return ask_cut(lambda cut: self.engine.choices(cut, labels), prompts)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        return ask_cut(lambda cut: self.engine.generate(cut, sampling), prompts)

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        return ask_cut(lambda cut: self.engine.embed(cut), prompts)

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """Raises MemoryError for a cut prompt of a token head, as every token needs its logits."""
        rows = ask_cut(lambda cut: self.engine.logits(cut), prompts)
        for row, prompt in zip(rows, prompts, strict=True):
            if row.ndim == 2 and len(row) < len(prompt):
                raise MemoryError(
                    f"a window of {len(prompt)} tokens does not fit into the GPU's memory: lower windows.max_tokens"
                )
        return rows


def ask_cut(ask: Callable[[Sequence[Prompt]], AnswersT], prompts: Sequence[Prompt]) -> AnswersT:
    """ask(prompts); where a prompt does not fit, it and all that are as long are cut at once."""
    cut = list(prompts)
    while True:
        try:
            return ask(cut)
        except PromptMemoryError as error:
            if error.limit < 1:
                raise
            longest = [index for index, prompt in enumerate(cut) if len(prompt) >= error.length]
            print(
                f"WARNING: {error}; {len(longest)} prompt(s) of this length are cut to {error.limit} tokens", flush=True
            )
            for index in longest:
                cut[index] = cut_middle(cut[index], error.limit)


def cut_middle(prompt: Prompt, tokens: int) -> Prompt:
    """The first and the last tokens: instructions, and where the answer begins; a head reads one of the two ends."""
    first = tokens // 2
    return [*prompt[:first], *prompt[len(prompt) - tokens + first :]]
