"""Scores that a training asks for twice are computed once: those a decision is fitted on, and then those of CV."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kaggle_llm.competition import Competition
from kaggle_llm.inference.engine import Completion, Engine, Sampling
from kaggle_llm.prompts import Prompt
from kaggle_llm.run import Run

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

Answers = dict[str, Any]  # hash of a call → what it gave
Memory = dict[tuple[Path, Path | None], Answers]
Scores = TypeVar("Scores", "np.ndarray", "list[np.ndarray]")


class RememberingEngine:
    """An engine that gives the scores of a call again, which is made of the same prompts in the same order.

    load: makes the engine, at the first call that is new. answers: of the calls before, of the same model.
    """

    def __init__(self, load: Callable[[], Engine], answers: Answers) -> None:
        self._load, self._answers = load, answers
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The engine, loaded."""
        if self._engine is None:
            self._engine = self._load()
        return self._engine

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        return self._recall(lambda: self.engine.choices(prompts, labels), prompts, labels)

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        return self._recall(lambda: self.engine.logits(prompts), prompts)

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        return self.engine.embed(prompts)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        return self.engine.generate(prompts, sampling)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    def _recall(self, ask: Callable[[], Scores], *asked: Sequence[Prompt]) -> Scores:
        text = json.dumps([[[int(token) for token in prompt] for prompt in prompts] for prompts in asked])
        key = hashlib.sha256(text.encode()).hexdigest()
        if key not in self._answers:
            self._answers[key] = ask()
        return deepcopy(self._answers[key])  # whoever gets them may write into them


class RememberingRun(Run):
    """A Run in CV whose engines remember. memory: (model, its base or None) → answers, one for all Runs of a training.

    recorded: as of Run.
    """

    def __init__(
        self,
        config: Any,
        competition: Competition,
        models: Mapping[str, Path],
        recorded: Mapping[str, pl.DataFrame],
        memory: Memory,
    ) -> None:
        super().__init__(config, competition, models, recorded=recorded)
        self._memory = memory

    def open_engine(self, name: str) -> Engine:
        model = self.model(name), self.models.get(f"{name}_base")
        return RememberingEngine(partial(super().open_engine, name), self._memory.setdefault(model, {}))
