"""Scores that were given before come back without the model, and nothing else does."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kaggle_llm.inference.engine import EngineSettings, Sampling
from kaggle_llm.memory import RememberingEngine, RememberingRun

PROMPTS, LABELS = [[7, 8, 9], [7, 10]], [[11], [12]]


def open_run(llm: Path, memory: Any) -> RememberingRun:
    config: Any = SimpleNamespace(engine=EngineSettings())
    nothing: Any = None
    return RememberingRun(config, nothing, {"judge": llm}, {}, memory)


def test_the_second_time_scores_come_without_the_model(pico_llm: Path) -> None:
    memory: Any = {}
    with open_run(pico_llm, memory) as run:
        first = run.engine("judge").choices(PROMPTS, LABELS)
    kept = first.copy()
    first[:] = 0  # what is done to them is not remembered
    engine = RememberingEngine(lambda: pytest.fail("the model is loaded"), memory[pico_llm, None])
    np.testing.assert_array_equal(engine.choices(PROMPTS, LABELS), kept)


@pytest.mark.parametrize(
    ("prompts", "labels"),
    [(PROMPTS[::-1], LABELS), (PROMPTS, LABELS[::-1]), (PROMPTS[:1], LABELS), ([[7, 8], [9, 7, 10]], LABELS)],
)
def test_what_was_not_asked_before_is_asked(pico_llm: Path, prompts: list, labels: list) -> None:
    memory: Any = {}
    with open_run(pico_llm, memory) as run, open_run(pico_llm, {}) as other:
        run.engine("judge").choices(PROMPTS, LABELS)
        found = run.engine("judge").choices(prompts, labels)
        np.testing.assert_allclose(found, other.engine("judge").choices(prompts, labels), atol=1e-6)


def test_another_model_has_answers_of_its_own(pico_llm: Path, make_llm: Any, tmp_path: Path) -> None:
    memory: Any = {}
    other = make_llm(tmp_path / "other", intermediate_size=48)
    found = []
    for folder in (pico_llm, other):
        with open_run(folder, memory) as run:
            found.append(run.engine("judge").choices(PROMPTS, LABELS))
    assert not np.allclose(*found) and set(memory) == {(pico_llm, None), (other, None)}


def test_logits_come_back_and_texts_are_written_anew() -> None:
    asked: list[str] = []

    class Asked:
        def logits(self, prompts: Any) -> list[np.ndarray]:
            asked.append("logits")
            return [np.ones((len(prompt), 2)) for prompt in prompts]

        def generate(self, prompts: Any, sampling: Sampling) -> list:
            asked.append("generate")
            return [[] for _ in prompts]

        def close(self) -> None:
            asked.append("close")

    engine: Any = RememberingEngine(Asked, {})  # type: ignore[arg-type]
    for _ in range(2):
        assert [one.shape for one in engine.logits(PROMPTS)] == [(3, 2), (2, 2)]
        assert engine.generate(PROMPTS, Sampling(4)) == [[], []]
    engine.close()
    assert asked == ["logits", "generate", "generate", "close"]
