"""What every engine of a run answered, written down beside the ranking: what parity compares."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.competition.competition import Competition
from kaggle_llm.engines.engine import Completion, Engine, EngineSettings, Sampling
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.inference.model import Model
from kaggle_llm.inference.run import Run, score_rows

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


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

    settings: of that engine; the other models keep the config's. keep_for: as of Run.
    """

    def __init__(
        self,
        watched: str,
        config: Any,
        competition: Competition,
        models: Sequence[Model],
        settings: EngineSettings | None = None,
        keep_for: str = "",
    ) -> None:
        super().__init__(config, competition, models, keep_for=keep_for)
        self.watched = watched
        self.settings = replace(settings, workers=0) if settings else None  # stages one after the other, all alike
        self.calls: list[Call] = []

    def open_engine(self, model: Model) -> Engine:
        if model.name != self.watched:
            return super().open_engine(model)
        if self.settings is None:
            return RecordingEngine(super().open_engine(model), self.calls)
        return RecordingEngine(make_engine(model.folder, self.settings, model.base), self.calls)


def collect_prompts(
    exp: Path, name: str, config: Any, competition: Competition, models: Sequence[Model], rows: pl.DataFrame, run: str
) -> list[tuple[int, ...]]:
    """For each row one of the prompts that predict.score gives to model `name`; ValueError where it gives none.

    rows: unlabelled; run: whose training asks.
    """
    from tqdm import tqdm

    rng = random.Random(config.seed)
    found = []
    with RecordingRun(name, config, competition, models, keep_for=run) as asked:
        for row in tqdm(rows.iter_slices(1), "calibration prompts", rows.height, mininterval=5.0):
            asked.calls.clear()
            score_rows(exp, asked, row)
            prompts = [prompt for call in asked.calls for prompt in call.prompts]
            if not prompts:
                raise ValueError(f"row {row['id'][0]!r}: predict asks {name} nothing, so nothing can be calibrated on")
            found.append(rng.choice(prompts))
    return found
