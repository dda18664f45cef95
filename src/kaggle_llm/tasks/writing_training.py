"""Supervised fine-tuning on completions only: no logits are computed for the prompt's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kaggle_llm.engines.attention import register_segments
from kaggle_llm.engines.packing import compute_logits, pack
from kaggle_llm.engines.prompts import Prompter

if TYPE_CHECKING:
    import polars as pl
    import torch

    from kaggle_llm.engines.model_kinds import ModelKind


@dataclass(frozen=True)
class CompletionExample:
    """Token ids; the completion ends with the end-of-text token, or the model never learns to stop."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]


def make_completions(prompter: Prompter, rows: pl.DataFrame, truth: pl.DataFrame) -> list[CompletionExample]:
    """An example of each row: its prompt, a space and its first right text; prints how many texts were cut.

    truth: id and items, in the order of the rows.
    """
    answers = truth["items"].list.first().to_list()
    examples = [
        CompletionExample(tuple(prompter.row(row)), tuple(prompter.completion(f" {answer}")))
        for row, answer in zip(rows.iter_rows(named=True), answers, strict=True)
    ]
    prompter.report_cuts()
    return examples


class GenerationTask:
    """Cross-entropy of the completions' tokens, averaged over all tokens of a step."""

    kind: ModelKind = "causal"
    padded = False

    def config(self) -> dict[str, Any]:
        return {"attn_implementation": register_segments()}

    def length(self, example: CompletionExample) -> int:
        return len(example.prompt) + len(example.completion)

    def weight(self, example: CompletionExample) -> float:
        return float(len(example.completion))

    def loss(self, model: Any, examples: Sequence[CompletionExample]) -> torch.Tensor:
        """Sum over the completions' tokens of −log p(token | all tokens before it)."""
        import torch

        packed = pack([(example.prompt + example.completion, [()]) for example in examples])
        # A token's logits predict the next one: keep those from the prompt's last token to the last but one of all.
        counts = [len(example.completion) for example in examples]
        keep = np.concatenate([np.arange(end - n, end) for end, n in zip(packed.ends, counts, strict=True)])
        targets = torch.tensor([token for example in examples for token in example.completion])
        logits = compute_logits(model, packed, keep)
        return torch.nn.functional.cross_entropy(logits, targets.to(logits.device), reduction="sum")
