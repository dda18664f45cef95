"""A GPU that is too small for a call: the call is halved, one prompt is cut, and nothing of that is silent."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kaggle_llm.engines import transformers_engine
from kaggle_llm.engines.engine import EngineSettings, PromptMemoryError, Sampling
from kaggle_llm.engines.memory import CuttingEngine, ask_within_memory
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.transformers_engine import TransformersEngine

PROMPTS: list[Prompt] = [tuple(range(7, 7 + length)) for length in (5, 3, 9, 4, 6)]


class SmallCard:
    """Answers prompts with their first token and length; fails above so many tokens in one call."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.calls = tokens, list[int]()

    def __call__(self, prompts: Sequence[Prompt]) -> list[tuple[int, int]]:
        import torch

        self.calls.append(len(prompts))
        if sum(map(len, prompts)) > self.tokens:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [(prompt[0], len(prompt)) for prompt in prompts]


def test_a_call_that_does_not_fit_is_halved_and_answers_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    card = SmallCard(12)
    assert ask_within_memory(card, PROMPTS, Path("m")) == [(7, 5), (7, 3), (7, 9), (7, 4), (7, 6)]
    assert card.calls == [5, 3, 2, 1, 2]
    assert "out of GPU memory at 5 prompts: 3 at a time" in capsys.readouterr().out
    assert ask_within_memory(card, [], Path("m")) == []


def test_a_prompt_that_does_not_fit_alone_is_named_by_its_place_in_the_call() -> None:
    with pytest.raises(PromptMemoryError, match="prompt 2 of 9 tokens does not fit into the GPU's memory") as error:
        ask_within_memory(SmallCard(8), PROMPTS, Path("m"))
    assert (error.value.index, error.value.limit, error.value.at(7).index) == (2, 4, 7)
    assert type(error.value.at(7)) is PromptMemoryError


@pytest.fixture
def small(pico_llm: Path, monkeypatch: pytest.MonkeyPatch) -> TransformersEngine:
    """An engine whose forward passes fail above 16 tokens."""
    engine = TransformersEngine(pico_llm, EngineSettings())
    module, forward = engine.module("choices"), type(engine.module("choices")).forward

    def limited(self: Any, *args: Any, **kwargs: Any) -> Any:
        import torch

        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is not None and ids.numel() > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(module), "forward", limited)
    return engine


def test_an_engine_on_a_small_card_gives_the_same_scores(small: TransformersEngine, pico_llm: Path) -> None:
    labels = [(5,), (6,)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers_engine, "ask_within_memory", lambda ask, prompts, folder: ask(prompts))
        import torch

        with pytest.raises(torch.OutOfMemoryError):
            small.choices(PROMPTS, labels)
    found = small.choices(PROMPTS, labels)
    alone = np.concatenate([small.choices([prompt], labels) for prompt in PROMPTS])
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_in_the_notebook_a_prompt_that_is_too_long_is_cut_to_its_end(
    small: TransformersEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    long: Prompt = tuple(range(7, 47))
    with pytest.raises(PromptMemoryError, match="prompt 1 of 40 tokens"):
        small.choices([PROMPTS[0], long], [(5,)])
    cut = CuttingEngine(small)
    np.testing.assert_allclose(
        cut.choices([PROMPTS[0], long], [(5,)]), small.choices([PROMPTS[0], long[-10:]], [(5,)]), atol=1e-5
    )
    said = capsys.readouterr().out
    assert "WARNING: prompt 1 of 40 tokens does not fit" in said and "cut to its last 20" in said
    assert "prompt 1 of 20 tokens" in said and "cut to its last 10" in said
    (first, second) = cut.generate([PROMPTS[0], long], Sampling(max_tokens=2))
    assert len(first) == len(second) == 1
