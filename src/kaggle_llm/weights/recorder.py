"""Records what a run asks an engine and what it answers: parity compares that, and quantising calibrates on it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.competition.competition import Competition
from kaggle_llm.engines.engine import Completion, Engine, EngineSettings, EngineWrapper, Sampling
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.transformers_engine import TransformersEngine
from kaggle_llm.inference.model import Model
from kaggle_llm.inference.run import Run, score_rows

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


@dataclass(frozen=True)
class Call:
    """One call of an engine, with its answers."""

    method: str
    """choices, logits, embed or generate."""
    prompts: list[tuple[int, ...]]
    answers: Sequence[np.ndarray] | np.ndarray
    """choices: [n, k]; embed: [n, d]; logits: an array for each prompt; generate: none."""
    texts: list[list[str]]
    """generate: the texts of every prompt."""


class RecordingEngine(EngineWrapper):
    """An engine that appends every call to `calls`."""

    def __init__(self, engine: Engine, calls: list[Call]) -> None:
        super().__init__(engine)
        self.calls = calls

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        answers = self.engine.choices(prompts, labels)
        self._record("choices", prompts, answers)
        return answers

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        answers = self.engine.generate(prompts, sampling)
        texts = [[completion.text for completion in completions] for completions in answers]
        self._record("generate", prompts, [], texts)
        return answers

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        answers = self.engine.embed(prompts)
        self._record("embed", prompts, answers)
        return answers

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        answers = self.engine.logits(prompts)
        self._record("logits", prompts, answers)
        return answers

    def _record(
        self,
        method: str,
        prompts: Sequence[Prompt],
        answers: Sequence[np.ndarray] | np.ndarray,
        texts: Sequence[list[str]] = (),
    ) -> None:
        self.calls.append(Call(method, [tuple(prompt) for prompt in prompts], answers, list(texts)))


class RecordingRun(Run):
    """A Run that records the calls of the model `watched`'s engine in `calls`.

    settings: of that engine; the other models keep the config's. on_cpu: it runs on the CPU even where there is a GPU.
    keep_for: as in Run.
    """

    def __init__(
        self,
        watched: str,
        config: Any,
        competition: Competition,
        models: Sequence[Model],
        settings: EngineSettings | None = None,
        keep_for: str = "",
        on_cpu: bool = False,
    ) -> None:
        super().__init__(config, competition, models, keep_for=keep_for)
        self.watched, self.on_cpu = watched, on_cpu
        self.settings = replace(settings, workers=0) if settings else None  # every stage in one process
        self.calls: list[Call] = []

    def open_engine(self, model: Model) -> Engine:
        if model.name != self.watched:
            return super().open_engine(model)
        if self.settings is None:
            return RecordingEngine(super().open_engine(model), self.calls)
        if self.on_cpu:
            return RecordingEngine(TransformersEngine(model.folder, self.settings, model.base, "cpu"), self.calls)
        return RecordingEngine(make_engine(model.folder, self.settings, model.base), self.calls)


def collect_prompts(
    exp: Path, name: str, config: Any, competition: Competition, models: Sequence[Model], rows: pl.DataFrame, run: str
) -> list[tuple[int, ...]]:
    """For each row one of the prompts that predict.score gives to model `name`, drawn with the config's seed.

    rows: without labels. run: the run that is trained. Raises ValueError where a row gives no prompt.
    """
    from tqdm import tqdm

    rng = random.Random(config.seed)
    chosen = []
    with RecordingRun(name, config, competition, models, keep_for=run) as recording:
        for row in tqdm(rows.iter_slices(1), "calibration prompts", rows.height, mininterval=5.0):
            recording.calls.clear()
            score_rows(exp, recording, row)
            prompts = [prompt for call in recording.calls for prompt in call.prompts]
            if not prompts:
                raise ValueError(f"row {row['id'][0]!r}: predict.py sends {name} no prompt to calibrate on")
            chosen.append(rng.choice(prompts))
    return chosen
