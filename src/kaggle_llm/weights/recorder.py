"""What every engine of a run answered, written down beside the ranking: what parity compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.competition import Competition
from kaggle_llm.inference.engine import Completion, Engine, EngineSettings, Sampling
from kaggle_llm.inference.maker import make_engine
from kaggle_llm.prompts import Prompt
from kaggle_llm.run import Run

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Call:
    """One call of an engine: what it was asked and what it said."""

    kind: str
    """choices, logits, embed or generate."""
    prompts: list[tuple[int, ...]]
    answers: Sequence[np.ndarray] | np.ndarray
    """choices: [n, k]; embed: [n, d]; logits: an array for each prompt; generate: none."""
    texts: list[list[str]]
    """generate: of every prompt."""


class RecordingEngine:
    """An engine that notes what passes through it."""

    def __init__(self, engine: Engine, calls: list[Call]) -> None:
        self.engine, self.calls = engine, calls

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        answers = self.engine.choices(prompts, labels)
        self._note("choices", prompts, answers)
        return answers

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        answers = self.engine.generate(prompts, sampling)
        self._note("generate", prompts, [], [[one.text for one in found] for found in answers])
        return answers

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        answers = self.engine.embed(prompts)
        self._note("embed", prompts, answers)
        return answers

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        answers = self.engine.logits(prompts)
        self._note("logits", prompts, answers)
        return answers

    def close(self) -> None:
        self.engine.close()

    def _note(
        self,
        kind: str,
        prompts: Sequence[Prompt],
        answers: Sequence[np.ndarray] | np.ndarray,
        texts: Sequence[list[str]] = (),
    ) -> None:
        self.calls.append(Call(kind, [tuple(prompt) for prompt in prompts], answers, list(texts)))


class RecordingRun(Run):
    """A Run that notes what the engine of the model `watched` answered, in `calls`.

    settings: of that engine; the other models keep the config's.
    """

    def __init__(
        self,
        watched: str,
        config: Any,
        competition: Competition,
        models: Mapping[str, Path],
        settings: EngineSettings | None = None,
    ) -> None:
        super().__init__(config, competition, models)
        self.watched, self.settings = watched, settings or config.engine
        self.calls: list[Call] = []

    def open_engine(self, name: str) -> Engine:
        if name != self.watched:
            return super().open_engine(name)
        here = replace(self.settings, workers=0)  # one stage after the other, all of them alike
        engine = make_engine(self.model(name), here, self.models.get(f"{name}_base"))
        return RecordingEngine(engine, self.calls)
