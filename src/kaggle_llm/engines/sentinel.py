"""Stops a broken model at its first answers: the same scores for all prompts, or one token repeated forever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kaggle_llm.engines.engine import Completion, Engine, EngineWrapper, LengthError, Sampling
from kaggle_llm.engines.prompts import Prompt

if TYPE_CHECKING:
    import numpy as np

FIRST_PROMPTS = 32  # asked and checked before the others
MIN_DIFFERENT_PROMPTS = 8  # with fewer, equal answers may be chance
MIN_TEXT_TOKENS = 8  # shorter texts may be equal
COLLAPSED_SPREAD = 1e-3  # a head whose logits differ by less over all prompts is a constant
Answers = TypeVar("Answers")


class SickModelError(ValueError):
    """Answers that do not depend on the prompt."""

    def __init__(self, folder: Path, prompts: int, answer: str) -> None:
        super().__init__(
            f"model {folder} is sick: {answer} for {prompts} different prompts. Weights that are broken, quantised "
            f"badly or overflow in their dtype do that: try engine.dtype=float32, and look at `kaggle-llm parity`"
        )


class Sentinel(EngineWrapper):
    """An engine whose first scores, texts and logits are checked; the engine itself refuses non-finite ones."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        super().__init__(engine)
        self.folder = folder
        self._checked: set[str] = set()

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        import numpy as np

        parts = self._ask("choices", prompts, lambda part: self.engine.choices(part, labels), self._check_scores)
        return np.concatenate(parts)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        parts = self._ask("generate", prompts, lambda part: self.engine.generate(part, sampling), self._check_texts)
        return list(chain.from_iterable(parts))

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        parts: list[list[np.ndarray]] = self._ask("logits", prompts, self.engine.logits, self._check_head)
        return list(chain.from_iterable(parts))

    def _ask(
        self,
        method: str,
        prompts: Sequence[Prompt],
        ask: Callable[[Sequence[Prompt]], Answers],
        check: Callable[[Sequence[Prompt], Answers], None],
    ) -> list[Answers]:
        """The answers to all prompts; until a method is checked, the first prompts are asked separately."""
        if method in self._checked:
            return [ask(prompts)]
        first = ask(prompts[:FIRST_PROMPTS])
        if len({tuple(prompt) for prompt in prompts[:FIRST_PROMPTS]}) >= MIN_DIFFERENT_PROMPTS:
            check(prompts[:FIRST_PROMPTS], first)
            self._checked.add(method)
        try:
            return [first, ask(prompts[FIRST_PROMPTS:])] if len(prompts) > FIRST_PROMPTS else [first]
        except LengthError as error:
            raise error.at(error.index + FIRST_PROMPTS) from error

    def _check_head(self, prompts: Sequence[Prompt], logits: list[np.ndarray]) -> None:
        """Raises SickModelError where the logits are a constant, except for the last digits."""
        self._check_scores(prompts, logits, COLLAPSED_SPREAD)

    def _check_scores(
        self, prompts: Sequence[Prompt], scores: np.ndarray | list[np.ndarray], tolerance: float = 0.0
    ) -> None:
        """Raises SickModelError where all rows are equal within `tolerance`."""
        import numpy as np

        rows = list(scores)
        if len({row.shape for row in rows}) == 1 and np.ptp(np.stack(rows), axis=0).max() <= tolerance:
            raise SickModelError(self.folder, len(prompts), f"the scores {np.round(rows[0], 3).tolist()}")

    def _check_texts(self, prompts: Sequence[Prompt], texts: list[list[Completion]]) -> None:
        """Raises SickModelError where all texts are long and repeat one and the same token, as in "!!!!"."""
        ids = [completion.ids for completions in texts for completion in completions]
        if min(map(len, ids)) >= MIN_TEXT_TOKENS and len({token for text in ids for token in text}) == 1:
            raise SickModelError(self.folder, len(prompts), f"the text {texts[0][0].text[:20]!r}")
