"""Trains one model for both of a reranker's questions: Yes or No for each candidate, and the letter of a window."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from kaggle_llm.engines.packing import compute_logits, pack
from kaggle_llm.engines.prompts import Prompt, TokenGroup
from kaggle_llm.tasks.choice_training import ChoiceSettings, ChoiceTask

if TYPE_CHECKING:
    import torch


def mix_examples(*kinds: Sequence[TokenGroup], seed: int) -> list[TokenGroup]:
    """All examples, shuffled: `training.tokens` then takes a share of each kind."""
    examples = [example for kind in kinds for example in kind]
    random.Random(seed).shuffle(examples)
    return examples


class TwoFormsTask(ChoiceTask):
    """The pointwise loss for examples of several candidates, the letters' for windows, whose one candidate is empty."""

    def __init__(self, settings: ChoiceSettings, labels: Sequence[Prompt], letters: Sequence[Prompt]) -> None:
        super().__init__(settings, labels)
        self.letters = ChoiceTask(ChoiceSettings("labels", len(letters)), letters).labels

    def weight(self, example: TokenGroup) -> float:
        """1; raises ValueError where the target has not one value for each option."""
        options = len(self.letters) if self._is_window(example) else len(example.candidates)
        if len(example.target) != options:
            raise ValueError(f"an example has a target of {len(example.target)} values for {options} options")
        return 1.0

    def logits(self, model: Any, examples: Sequence[TokenGroup]) -> Sequence[torch.Tensor]:
        """Scores [options] an example."""
        packed = pack([(example.shared, example.candidates) for example in examples])
        logits = compute_logits(model, packed, packed.ends)
        parts = logits.split([len(example.candidates) for example in examples])
        yes, no = self.labels
        return [
            part[0, self.letters] if self._is_window(example) else part[:, yes] - part[:, no]
            for example, part in zip(examples, parts, strict=True)
        ]

    @staticmethod
    def _is_window(example: TokenGroup) -> bool:
        return len(example.candidates) == 1
