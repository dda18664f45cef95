"""A GPU that is too small for a call: the call is halved, one prompt is cut, and nothing of that is silent."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kaggle_llm.base.device import is_out_of_memory
from kaggle_llm.engines import transformers_engine
from kaggle_llm.engines.engine import EngineSettings, PromptMemoryError, Sampling
from kaggle_llm.engines.memory import CuttingEngine, ask_within_memory
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.transformers_engine import TransformersEngine

PROMPTS: list[Prompt] = [tuple(range(7, 7 + length)) for length in (5, 3, 9, 4, 6)]


class SmallCard:
    """Answers prompts with their first token and length; fails above so many tokens in one call."""

    def __init__(self, tokens: int, error: str = "CUDA out of memory. Tried to allocate 20.00 MiB.") -> None:
        self.tokens, self.error, self.calls = tokens, error, list[int]()

    def __call__(self, prompts: Sequence[Prompt]) -> list[tuple[int, int]]:
        self.calls.append(len(prompts))
        if sum(map(len, prompts)) > self.tokens:
            raise RuntimeError(self.error)
        return [(prompt[0], len(prompt)) for prompt in prompts]


def test_a_call_that_does_not_fit_is_halved_and_answers_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    card = SmallCard(12)
    assert ask_within_memory(card, PROMPTS, Path("m")) == [(7, 5), (7, 3), (7, 9), (7, 4), (7, 6)]
    assert card.calls == [5, 3, 2, 1, 2]
    assert "out of GPU memory with 5 prompts at once: going on with 3" in capsys.readouterr().out
    assert ask_within_memory(card, [], Path("m")) == []


def test_a_prompt_that_does_not_fit_alone_is_named_by_its_place_in_the_call() -> None:
    with pytest.raises(PromptMemoryError, match="prompt 2 of 9 tokens does not fit into the GPU's memory") as error:
        ask_within_memory(SmallCard(8), PROMPTS, Path("m"))
    assert (error.value.index, error.value.limit, error.value.at(7).index) == (2, 4, 7)
    assert type(error.value.at(7)) is PromptMemoryError


@pytest.mark.parametrize(
    "error",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    ],
)
def test_memory_runs_out_in_other_words_too(error: str) -> None:
    assert len(ask_within_memory(SmallCard(12, error), PROMPTS, Path("m"))) == 5
    with pytest.raises(RuntimeError, match="device-side assert"):
        ask_within_memory(SmallCard(12, "CUDA error: device-side assert triggered"), PROMPTS, Path("m"))


def test_an_allocator_that_really_fails_is_recognised() -> None:
    import torch

    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(error.value) and not is_out_of_memory(ValueError("out of memory"))


class SmallHead:
    """An engine of a head that takes 12 tokens at a time; gives a row for each prompt, or for each token."""

    def __init__(self, tokens: bool) -> None:
        self.tokens, self.asked = tokens, list[list[Prompt]]()

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        self.asked.append([tuple(prompt) for prompt in prompts])
        ask_within_memory(SmallCard(12), prompts, Path("m"))
        return [np.zeros((len(prompt), 2) if self.tokens else 2) for prompt in prompts]


def test_a_head_that_reads_a_row_gets_cut_prompts_and_one_that_reads_tokens_none() -> None:
    long = [tuple(range(7, 7 + length)) for length in (20, 30, 5, 14)]
    rows: Any = SmallHead(tokens=False)
    assert [row.shape for row in CuttingEngine(rows).logits(long)] == [(2,)] * 4
    assert [list(map(len, asked)) for asked in rows.asked] == [[20, 30, 5, 14], [10, 10, 5, 14], [10, 10, 5, 7]]
    assert rows.asked[-1][1] == (*range(7, 12), *range(32, 37)), "both ends"
    tagger: Any = SmallHead(tokens=True)
    with pytest.raises(MemoryError, match="a window of 20 tokens does not fit"):
        CuttingEngine(tagger).logits(long)
    assert len(CuttingEngine(tagger).logits(long[2:3])[0]) == 5


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


def test_in_the_notebook_a_prompt_that_is_too_long_keeps_its_two_ends(
    small: TransformersEngine, capsys: pytest.CaptureFixture[str]
) -> None:
    long: Prompt = tuple(range(7, 47))
    with pytest.raises(PromptMemoryError, match="prompt 1 of 40 tokens"):
        small.choices([PROMPTS[0], long], [(5,)])
    cut = CuttingEngine(small)
    np.testing.assert_allclose(
        cut.choices([PROMPTS[0], long], [(5,)]), small.choices([PROMPTS[0], long[:5] + long[-5:]], [(5,)]), atol=1e-5
    )
    said = capsys.readouterr().out
    assert (
        "WARNING: prompt 1 of 40 tokens does not fit" in said
        and "1 prompt(s) of this length are cut to 20 tokens" in said
    )
    assert "prompt 1 of 20 tokens" in said and "1 prompt(s) of this length are cut to 10 tokens" in said
    (first, second) = cut.generate([PROMPTS[0], long], Sampling(max_tokens=2))
    assert len(first) == len(second) == 1
