"""Checks of speed: nothing is planned anew for every shape, and which share of the matrix-product rate is reached."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from memory import LABELS
from models import draw_groups, draw_trees, flatten, make_job, make_shape, make_task

from kaggle_llm.base.device import has_gpu
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import choose_batch
from kaggle_llm.engines.prefixes import common_prefix
from kaggle_llm.engines.prompts import Prompt, TokenGroup
from kaggle_llm.engines.transformers_engine import TransformersEngine
from kaggle_llm.training.trainer import Job, fine_tune

SIZE = 8192  # of the square matrices whose product gives the rate
ROUNDS = 20
AIMS = {"0.5B": 0.25, "7B": 0.5}  # share of the matrix rate, by shape
TIMES_PADDED = 3.0
TREES = {"0.5B": 400, "7B": 100}  # as many as take some seconds on a card
GROUPS = {"0.5B": 512, "7B": 128}


def choose_dtype() -> Any:
    return "bfloat16" if has_gpu() else "float32"


def measure(work: Callable[[], object]) -> float:
    """Seconds of a call."""
    import torch

    start = time.monotonic()
    work()
    if has_gpu():
        torch.cuda.synchronize()
    return time.monotonic() - start


def matrix_rate() -> float:
    """Floating-point operations a second of a large product: bfloat16 on a card, float32 on a CPU."""
    import torch

    size = SIZE if has_gpu() else 1024
    device, dtype = ("cuda", torch.bfloat16) if has_gpu() else ("cpu", torch.float32)
    first, second = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    first @ second
    seconds = measure(lambda: [first @ second for _ in range(ROUNDS)])
    return ROUNDS * 2 * size**3 / seconds


def count_parameters(base: Path) -> int:
    from safetensors import safe_open

    total = 0
    for path in base.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            total += sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
    return total


def count_unique(tree: Sequence[Prompt]) -> int:
    """Tokens of the prompts' common beginning, once, and of their ends."""
    shared = min(common_prefix(tree[0], prompt) for prompt in tree[1:])
    return shared + sum(len(prompt) - shared for prompt in tree)


def two_passes(folder: Path) -> dict[str, float | str]:
    """Trees of new shapes take the time that they take again: nothing is planned for a shape."""
    engine = TransformersEngine(
        make_shape(folder, "0.5B"), EngineSettings(dtype="bfloat16" if has_gpu() else "float32")
    )
    count = 50 if has_gpu() else 5
    engine.choices(flatten(draw_trees(2, 0)), LABELS)
    first = measure(lambda: engine.choices(flatten(draw_trees(count, 1)), LABELS))
    again = measure(lambda: engine.choices(flatten(draw_trees(count, 1)), LABELS))
    engine.close()
    if has_gpu():
        assert first < 2 * again, f"{first:.2f} s, the same again {again:.2f} s: something is made once for each shape"
    return {"first_seconds": first, "again_seconds": again}


def scoring(folder: Path) -> dict[str, float | str]:
    """Prompts a second with shared prefixes, against padded batches, and their share of the matrix rate (2·N)."""
    rate, figures = matrix_rate(), dict[str, float | str]()
    for name in AIMS if has_gpu() else ("0.5B",):
        base = make_shape(folder, name)
        trees = draw_trees(TREES[name] if has_gpu() else 3, 2)
        prompts, unique = flatten(trees), sum(map(count_unique, trees))
        engine = TransformersEngine(base, choose_batch(base, EngineSettings(dtype=choose_dtype()), None, []))
        engine.choices(flatten(draw_trees(2, 0)), LABELS)
        ours = measure(partial(engine.choices, prompts, LABELS))
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))

        theirs = measure(partial(ask_padded, engine, [prompts[i] for i in order]))
        figures[f"{name} prompts_per_second"] = len(prompts) / ours
        figures[f"{name} times padded batches"] = theirs / ours
        figures[f"{name} share of the matrix rate"] = 2 * count_parameters(base) * unique / ours / rate
        engine.close()
    return {"matrix_tflops": rate / 1e12, **figures, **judge(figures)}


def ask_padded(engine: TransformersEngine, prompts: list[Any]) -> None:
    """The usual loop: eight prompts at a time, padded to the longest."""
    import torch

    with torch.inference_mode():
        for start in range(0, len(prompts), 8):
            engine._last_logits(prompts[start : start + 8])


def training(folder: Path) -> dict[str, float | str]:
    """Tokens a second of LoRA, and their share of the matrix rate: 4·N operations a token, 6·N with checkpointing."""
    rate, figures = matrix_rate(), dict[str, float | str]()
    for name in AIMS if has_gpu() else ("0.5B",):
        base, groups = make_shape(folder, name), draw_groups(GROUPS[name] if has_gpu() else 4, 3, 600)
        tokens = sum(len(group.shared) + sum(map(len, group.candidates)) for group in groups)
        measure_training(groups[:16], make_job(base, folder / f"{name} before", batch=16))
        for checkpointing, operations in ((False, 4), (True, 6)):
            options = {"batch": 16, "batch_tokens": 2**13, "gradient_checkpointing": checkpointing}
            seconds = measure_training(groups, make_job(base, folder / f"{name} {checkpointing}", **options))
            label = f"{name}{' checkpointing' if checkpointing else ''}"
            figures[f"{label} tokens_per_second"] = tokens / seconds
            figures[f"{label} share of the matrix rate"] = operations * count_parameters(base) * tokens / seconds / rate
    return {"matrix_tflops": rate / 1e12, **figures, **judge(figures)}


def measure_training(groups: Sequence[TokenGroup], job: Job) -> float:
    """Seconds of the training alone, without loading and saving."""
    from transformers import Trainer

    train, seconds = Trainer.train, list[float]()

    def train_measured(*given: Any, **named: Any) -> None:
        seconds.append(measure(lambda: train(*given, **named)))

    with mock.patch.object(Trainer, "train", train_measured):
        fine_tune(make_task(), groups, job)
    return sum(seconds)


def judge(figures: Mapping[str, float | str]) -> dict[str, str]:
    """The aims that were missed, which are set for an H100; {} without a card."""
    least = {name: AIMS.get(name.split()[0], 0.0) for name in figures if name.endswith("share of the matrix rate")}
    least |= {name: TIMES_PADDED for name in figures if name.endswith("times padded batches")}
    missed = [f"{name} {figures[name]:.2f} < {aim}" for name, aim in least.items() if float(figures[name]) < aim]
    return {"aims": "; ".join(missed) or "met"} if has_gpu() else {}


def search(folder: Path) -> dict[str, float | str]:
    """1,000 queries over 100,000 vectors of 384 dimensions: the exact search, and one product with top-k."""
    import torch

    from kaggle_llm.retrieval.top_k import search_vectors

    device = "cuda" if has_gpu() else "cpu"
    normalize = torch.nn.functional.normalize
    documents, queries = (normalize(torch.randn(count, 384, device=device), dim=-1) for count in (100_000, 1_000))
    stored = documents.cpu().numpy(), queries.cpu().numpy()
    (queries @ documents.T).topk(25)
    return {
        "seconds": measure(lambda: list(search_vectors(*stored, 25))),
        "product": measure(lambda: (queries @ documents.T).topk(25)),
    }
