"""Random models for the checks: tiny ones, and the shapes of 0.5B and 7B where there is a card for them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pico import save_llama

from kaggle_llm.base.device import has_gpu
from kaggle_llm.engines.prompts import Prompt, TokenGroup
from kaggle_llm.tasks.choice_training import ChoiceSettings, ChoiceTask
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.trainer import Job

YES, NO, FIRST, LAST = 7, 8, 10, 500  # token ids of the tiny tokenizer
SHAPES: dict[str, dict[str, int]] = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28},
}
HEADS = {"0.5B": 2, "7B": 4}  # of keys and values


def make_shape(folder: Path, name: str) -> Path:
    """A random bfloat16 model of this shape (Qwen2.5's, with a small vocabulary), or a tiny one without a card."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if not has_gpu():
        return save_llama(folder / name)
    tiny = save_llama(folder / "tiny")
    sizes = {**SHAPES[name], "num_key_value_heads": HEADS[name], "max_position_embeddings": 4096}
    config = LlamaConfig.from_pretrained(tiny, initializer_range=0.02, **sizes)
    with torch.device("cuda"):
        torch.set_default_dtype(torch.bfloat16)
        model = LlamaForCausalLM(config)
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder / name)
    for path in tiny.glob("tokenizer*"):
        (folder / name / path.name).write_bytes(path.read_bytes())
    del model
    return folder / name


def draw_trees(count: int, seed: int, longest: int = 600) -> list[list[Prompt]]:
    """`count` questions with 8 prompts each, which share a beginning of any length."""
    rng = random.Random(seed)
    trees = []
    for _ in range(count):
        shared = rng.choices(range(FIRST, LAST), k=rng.randint(longest // 4, longest))
        ends = [rng.choices(range(FIRST, LAST), k=rng.randint(4, 60)) for _ in range(8)]
        trees.append([(*shared, *end) for end in ends])
    return trees


def flatten(trees: Sequence[Sequence[Prompt]]) -> list[Prompt]:
    return [prompt for tree in trees for prompt in tree]


def draw_groups(count: int, seed: int, longest: int = 200) -> list[TokenGroup]:
    rng = random.Random(seed)
    return [
        TokenGroup(
            rng.choices(range(FIRST, LAST), k=rng.randint(8, longest)),
            [rng.choices(range(FIRST, LAST), k=rng.randint(2, 30)) for _ in range(4)],
            (1.0, 0.0, 0.0, 0.0),
        )
        for _ in range(count)
    ]


def make_task() -> ChoiceTask:
    return ChoiceTask(ChoiceSettings(), [[YES], [NO]])


def make_job(base: Path, folder: Path, method: Any = "lora", **training: Any) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    settings = TrainingSettings(**({"dtype": "bfloat16", "batch": 4, "warmup": 0.0} | training))
    return Job(base, folder, LoraSettings(method), settings, seed=0)
