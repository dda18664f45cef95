"""Checks of the card's memory: who gives it back, what happens where it is too small, and whose process holds it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from models import NO, YES, draw_groups, draw_trees, flatten, make_job, make_shape, make_task

from kaggle_llm.base.device import has_gpu
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.footprint import Batch, read_shape
from kaggle_llm.engines.pool import WorkerPool
from kaggle_llm.engines.transformers_engine import TransformersEngine
from kaggle_llm.inference.model import Model
from kaggle_llm.tasks.writing_training import CompletionExample, GenerationTask
from kaggle_llm.training.estimate import estimate_training
from kaggle_llm.training.trainer import fine_tune
from kaggle_llm.weights.stages import must_spill

LABELS = [(YES,), (NO,)]
SHARE = 0.6  # of the card, which the next process takes
PLANNED = 0.15  # relative error of a planned peak
LEFT_OVER = 64 * 2**20  # bytes that may stay reserved


def hand_over(folder: Path) -> dict[str, float | str]:
    """After a training another process can have 60 % of the card."""
    import torch

    base = make_shape(folder, "0.5B")
    fine_tune(make_task(), draw_groups(8, 0), make_job(base, folder / "run"))
    if not has_gpu():
        return {"card": "none"}
    reserved = torch.cuda.memory_reserved()
    assert reserved < LEFT_OVER, f"{reserved / 1e9:.2f} GB stay reserved after the training"
    size = int(SHARE * torch.cuda.get_device_properties(0).total_memory)
    code = f"import torch; torch.empty({size}, dtype=torch.uint8, device='cuda')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    return {"peak_gb": torch.cuda.max_memory_allocated() / 1e9, "reserved_gb": reserved / 1e9}


def small_scoring(folder: Path) -> dict[str, float | str]:
    """A card with so little memory gives the scores of one with enough."""
    import torch

    prompts = flatten(draw_trees(20, 1, 2000))
    engine = TransformersEngine(make_shape(folder, "0.5B"), EngineSettings(dtype="bfloat16", batch_tokens=2**17))
    expected = engine.choices(prompts, LABELS)
    needed = torch.cuda.max_memory_allocated()
    engine.close()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(0.5 * needed / total, 1.0))
    try:
        scores = engine.choices(prompts, LABELS)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        engine.close()
    difference = float(np.abs(scores - expected).max())
    assert difference < 0.3, f"|Δ log p| {difference:.3f}"
    return {"needed_gb": needed / 1e9, "max_abs_diff": difference}


def small_training(folder: Path) -> dict[str, float | str]:
    """The message has figures and the ways out."""
    import torch

    base = make_shape(folder, "0.5B")
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(1.5e9 / total)
    try:
        fine_tune(make_task(), draw_groups(8, 0, 2000), make_job(base, folder / "run", batch_tokens=2**15))
    except MemoryError as error:
        assert "training.batch_tokens" in str(error), error
        return {"message": str(error)[:80]}
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    raise AssertionError("1.5 GB were enough")


def planned_memory(folder: Path) -> dict[str, float | str]:
    """The peak of torch's memory in a training is what `kaggle-llm plan` says of it, within 15 %."""
    import torch

    text, kept = tuple(range(10, 266)), 8
    examples = [CompletionExample(text[:-kept], text[-kept:])] * 16
    figures: dict[str, float | str] = {}
    cases = [("0.5B", "lora", False), ("0.5B", "full", False), ("0.5B", "lora", True), ("7B", "lora", True)]
    for name, method, checkpointing in cases:
        base, label = make_shape(folder, name), f"{name} {method}{' checkpointing' if checkpointing else ''}"
        options = {"batch": 8, "batch_tokens": 1024, "gradient_checkpointing": checkpointing}
        job = make_job(base, folder / label, method, **options)
        batch = Batch(1024, len(text), 4 * kept)
        planned = estimate_training(read_shape(base), "causal", job.lora, job.training, batch).memory.total
        torch.cuda.reset_peak_memory_stats()
        fine_tune(GenerationTask(), examples, job)
        figures[label] = planned / torch.cuda.max_memory_allocated()
    wrong = {label: ratio for label, ratio in figures.items() if abs(float(ratio) - 1) > PLANNED}
    assert not wrong, f"planned over measured: {wrong}"
    return figures


@contextmanager
def fill_card(share: float) -> Iterator[None]:
    """Another process holds this share of the card."""
    code = "import sys, torch; free, total = torch.cuda.mem_get_info(); "
    code += f"held = torch.empty(int({share} * total), dtype=torch.uint8, device='cuda'); print('held', flush=True); "
    process = subprocess.Popen(
        [sys.executable, "-c", code + "sys.stdin.read()"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout and process.stdout.readline() == b"held\n"
        yield
    finally:
        process.kill()
        process.wait()


def vllm_beside_another(folder: Path) -> dict[str, float | str]:
    """vLLM starts and answers on a card of which another process holds 40 %."""
    base, prompts = make_shape(folder, "0.5B"), flatten(draw_trees(4, 8))
    with fill_card(0.4):
        pool = WorkerPool(base, EngineSettings(kind="vllm", dtype="float16"), None, [["0"]])
        scores = pool.choices(prompts, LABELS)
        pool.close()
    assert np.isfinite(scores).all()
    return {"prompts": float(len(prompts))}


def parity_reference(folder: Path) -> dict[str, float | str]:
    """A reference that fits the card is computed there; on a full card it is computed on the CPU, with its scores."""
    base, prompts = make_shape(folder, "0.5B"), flatten(draw_trees(1, 9))[:4]
    model = Model("m", base)
    assert not must_spill(model, "float32")
    with fill_card(0.97):
        assert must_spill(model, "float32")
        engine = TransformersEngine(base, EngineSettings(dtype="float32"), device="cpu")
        scores = engine.choices(prompts, LABELS)
        engine.close()
    engine = TransformersEngine(base, EngineSettings(dtype="float32"))
    difference = float(np.abs(engine.choices(prompts, LABELS) - scores).max())
    engine.close()
    assert difference < 1e-3, f"|Δ log p| {difference:.3g}"
    return {"max_abs_diff": difference}


def two_workers(folder: Path) -> dict[str, float | str]:
    """Two workers share a card; one is killed in a call, and the answers are those of one engine."""
    base, prompts = make_shape(folder, "0.5B"), flatten(draw_trees(40, 2))
    settings = EngineSettings(dtype="bfloat16" if has_gpu() else "float32")
    engine = TransformersEngine(base, settings)
    expected = engine.choices(prompts, LABELS)
    engine.close()
    pool = WorkerPool(base, settings, None, [["0"], ["0"]] if has_gpu() else [[], []])
    pool.choices(prompts[:16], LABELS)
    killer = threading.Timer(0.5, lambda: pool._workers[0].kill())
    start = time.monotonic()
    killer.start()
    scores = pool.choices(prompts, LABELS)
    pool.close()
    difference = float(np.abs(scores - expected).max())
    assert difference < (0.3 if has_gpu() else 1e-4), f"|Δ log p| {difference:.3f}"
    return {"seconds": time.monotonic() - start, "max_abs_diff": difference}
