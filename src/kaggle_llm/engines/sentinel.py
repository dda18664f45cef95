"""A sick model is stopped at its first answers, not found out from a score: the same for all, or one token for ever."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kaggle_llm.engines.engine import Completion, Engine, LengthError, Sampling
from kaggle_llm.engines.prompts import Prompt

if TYPE_CHECKING:
    import numpy as np

FIRST = 32  # prompts that are asked before the others
ENOUGH = 8  # different prompts, from which on equal answers are no chance
LONG = 8  # tokens of a text
COLLAPSED = 1e-3  # that a head's outputs differ by at most, over different prompts, where it says the same of all
Answers = TypeVar("Answers")  # an array, one for each prompt, or texts


class SickModelError(ValueError):
    """Answers that do not depend on what is asked."""

    def __init__(self, folder: Path, prompts: int, what: str) -> None:
        super().__init__(
            f"model {folder} is sick: {what} for {prompts} different prompts. Weights that are broken, quantised badly "
            f"or overflow in their dtype do that: try engine.dtype=float32, and look at `kaggle-llm parity`"
        )


class Sentinel:
    """An engine whose first answers of each kind are looked at. Non-finite ones the engine itself refuses."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine, self.folder = engine, folder
        self._trusted: set[str] = set()

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        import numpy as np

        parts = self._ask("choices", prompts, lambda part: self.engine.choices(part, labels), self._check_scores)
        return np.concatenate(parts)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        parts = self._ask("generate", prompts, lambda part: self.engine.generate(part, sampling), self._check_texts)
        return list(chain.from_iterable(parts))

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        return self.engine.embed(prompts)

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        parts: list[list[np.ndarray]] = self._ask("logits", prompts, self.engine.logits, self._check_head)
        return list(chain.from_iterable(parts))

    def close(self) -> None:
        self.engine.close()

    def _ask(
        self,
        kind: str,
        prompts: Sequence[Prompt],
        ask: Callable[[Sequence[Prompt]], Answers],
        check: Callable[[Sequence[Prompt], Answers], None],
    ) -> list[Answers]:
        """Answers of all prompts; of the first ones by themselves until those of their kind were looked at."""
        if kind in self._trusted:
            return [ask(prompts)]
        first = ask(prompts[:FIRST])
        if len({tuple(prompt) for prompt in prompts[:FIRST]}) >= ENOUGH:
            check(prompts[:FIRST], first)
            self._trusted.add(kind)
        try:
            return [first, ask(prompts[FIRST:])] if len(prompts) > FIRST else [first]
        except LengthError as error:
            raise LengthError(error.index + FIRST, error.length, error.limit, error.folder) from error

    def _check_head(self, prompts: Sequence[Prompt], logits: list[np.ndarray]) -> None:
        """A head that has learned one value says it of everything, but for the last digits."""
        self._check_scores(prompts, logits, COLLAPSED)

    def _check_scores(
        self, prompts: Sequence[Prompt], scores: np.ndarray | list[np.ndarray], least: float = 0.0
    ) -> None:
        """Raises SickModelError where all rows are the same, or differ by `least` at most."""
        import numpy as np

        rows = list(scores)
        if len({row.shape for row in rows}) == 1 and np.ptp(np.stack(rows), axis=0).max() <= least:
            raise SickModelError(self.folder, len(prompts), f"the scores {np.round(rows[0], 3).tolist()}")

    def _check_texts(self, prompts: Sequence[Prompt], texts: list[list[Completion]]) -> None:
        """Raises SickModelError where all texts are long and of one token, the same in all, as in "!!!!"."""
        ids = [one.ids for found in texts for one in found]
        if min(map(len, ids)) >= LONG and len({token for each in ids for token in each}) == 1:
            raise SickModelError(self.folder, len(prompts), f"the text {texts[0][0].text[:20]!r}")
