"""Completion-only training: the loss of the completions' tokens, whatever stands beside them."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kaggle_llm.tasks.writing_training import CompletionExample, GenerationTask

TASK = GenerationTask()


def random_examples(seed: int, count: int) -> list[CompletionExample]:
    rng = random.Random(seed)

    def tokens(longest: int) -> tuple[int, ...]:
        return tuple(rng.choices(range(6, 560), k=rng.randint(1, longest)))

    return [CompletionExample(tokens(30), tokens(9)) for _ in range(count)]


@pytest.mark.parametrize("count", [1, 2, 6])
def test_loss_is_transformers_own_with_the_prompt_masked(
    pico_llm: Path, with_lora: Callable[..., Any], count: int
) -> None:
    import torch

    examples, plain, packed = random_examples(count, count), with_lora(pico_llm), with_lora(pico_llm, **TASK.config())
    literal = 0.0
    with torch.no_grad():
        for example in examples:
            labels = torch.tensor([[-100] * len(example.prompt) + list(example.completion)])
            mean = plain(torch.tensor([example.prompt + example.completion]), labels=labels).loss.item()
            literal += mean * len(example.completion)
        found = TASK.loss(packed, examples).item()
    assert found == pytest.approx(literal, abs=1e-5 * sum(TASK.weight(example) for example in examples))


def test_only_positions_that_carry_loss_meet_the_vocabulary(pico_llm: Path, with_lora: Callable[..., Any]) -> None:
    model, examples, rows = with_lora(pico_llm, **TASK.config()), random_examples(1, 4), []
    model.get_base_model().lm_head.register_forward_hook(lambda _, __, out: rows.append(np.prod(out.shape[:-1])))
    TASK.loss(model, examples).backward()
    assert rows == [sum(len(example.completion) for example in examples)]
