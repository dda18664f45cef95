"""Checks of numbers: the card's against the CPU's in float32, one kernel's against another's, a resumed training's."""

from __future__ import annotations

import random
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from memory import LABELS
from models import FIRST, LAST, draw_groups, draw_trees, flatten, make_job, make_shape, make_task
from pico import save_encoder, save_llama

from kaggle_llm.base.device import has_gpu
from kaggle_llm.engines.attention_forms import (
    attend_by_lengths,
    attend_masked,
    attend_segment_by_segment,
    has_lengths,
)
from kaggle_llm.engines.engine import EngineSettings, NonFiniteError, resolve_dtype
from kaggle_llm.engines.packing import pack
from kaggle_llm.engines.pool import WorkerPool
from kaggle_llm.engines.segments import Layout
from kaggle_llm.engines.transformers_engine import TransformersEngine
from kaggle_llm.retrieval.top_k import search_vectors
from kaggle_llm.tasks.heads import HeadSettings
from kaggle_llm.tasks.heads_training import HeadExample, HeadTask
from kaggle_llm.tasks.tags_training import TokenExample, TokenSettings, TokenTask
from kaggle_llm.tasks.writing_training import CompletionExample, GenerationTask
from kaggle_llm.training.base_model import load_trainable
from kaggle_llm.training.settings import TrainingSettings, resolve_training
from kaggle_llm.training.trainer import fine_tune

EXACT, HALF = 1e-4, 0.02  # of a loss, relative: in float32, in half precision
LARGEST = {"float32": 1e-3, "bfloat16": 0.3, "float16": 0.1}  # |Δ log p| of a tiny random model


def list_tasks() -> dict[str, tuple[Any, list[Any]]]:
    rng = random.Random(0)
    ids = [tuple(rng.choices(range(FIRST, LAST), k=rng.randint(5, 40))) for _ in range(4)]
    heads = HeadSettings("classification", ["a", "b"])
    return {
        "choice": (make_task(), draw_groups(4, 0)),
        "writing": (GenerationTask(), [CompletionExample(row[:3], row[3:]) for row in ids]),
        "head": (HeadTask(heads), [HeadExample(row, (1.0, 0.0)) for row in ids]),
        "tags": (TokenTask(TokenSettings(labels=["O", "B-x"])), [TokenExample(row, (0,) * len(row)) for row in ids]),
    }


def every_task(folder: Path) -> dict[str, float | str]:
    """The loss of each task × dtype against the CPU's in float32; what is trained is float32 and has gradients."""
    import torch

    base = save_llama(folder / "tiny")
    device = "cuda" if has_gpu() else "cpu"
    dtypes = ["float32", "bfloat16", *(["float16"] if has_gpu() else [])]
    figures: dict[str, float | str] = {}
    for name, (task, examples) in list_tasks().items():
        job = make_job(base, folder / name)
        losses = {}
        for where, dtype in [("cpu", "float32"), *((device, dtype) for dtype in dtypes)]:
            training = make_job(base, folder / name, dtype=dtype).training
            model = load_trainable(base, task.kind, job.lora, training, 0, **task.config()).to(where)
            half = nullcontext() if dtype == "float32" else torch.autocast(where, dtype=getattr(torch, dtype))
            with half:
                loss = task.loss(model, examples)
            loss.backward()
            trained = [weight for weight in model.parameters() if weight.requires_grad]
            assert {weight.dtype for weight in trained} == {torch.float32}, f"{name} in {dtype}"
            assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in trained), (
                f"{name} in {dtype}"
            )
            losses[where, dtype] = float(loss.detach())
        expected = losses.pop(("cpu", "float32"))
        for (_, dtype), loss_there in losses.items():
            difference = abs(loss_there - expected) / abs(expected)
            assert difference <= (EXACT if dtype == "float32" else HALF), f"{name} in {dtype}: {difference:.2g}"
            figures[f"{name} {dtype}"] = difference
    return figures


def ask(base: Path, prompts: Sequence[Any], device: str = "", **settings: Any) -> np.ndarray:
    """[n, 2] log-probabilities by a new engine. device: cpu, also where there is a card."""
    import torch

    engine = TransformersEngine(base, EngineSettings(**settings))
    if device:
        engine.device = torch.device(device)
        engine._causal.to(device)
    scores = engine.choices(prompts, LABELS)
    engine.close()
    return scores


def auto_dtypes(folder: Path) -> dict[str, float | str]:
    """What auto became here; float32 has the precision of float32, not of TF32, whose products are 1e-3 off."""
    import torch

    chosen = {"training": resolve_training(TrainingSettings()).dtype, "engine": resolve_dtype(EngineSettings()).dtype}
    assert (chosen["training"] == "float32") != has_gpu(), chosen
    TransformersEngine(save_llama(folder / "tiny"), EngineSettings())  # prepares the device
    first, second = (torch.randn(512, 512, dtype=torch.float64) for _ in range(2))
    device = "cuda" if has_gpu() else "cpu"
    product = (first.float().to(device) @ second.float().to(device)).double().cpu()
    error = float((product - first @ second).norm() / (first @ second).norm())
    assert error < 1e-5, f"a product in float32 is {error:.2g} off"
    return {**chosen, "error": error}


def scores(folder: Path) -> dict[str, float | str]:
    """The card's scores in each dtype against the CPU's in float32."""
    base, prompts = save_llama(folder / "tiny"), flatten(draw_trees(20, 3))
    expected = ask(base, prompts, "cpu", dtype="float32")
    figures: dict[str, float | str] = {}
    for dtype in ("float32", "bfloat16", "float16"):
        difference = float(np.abs(ask(base, prompts, dtype=dtype) - expected).max())
        assert difference <= LARGEST[dtype], f"{dtype}: |Δ log p| {difference:.3g}"
        figures[dtype] = difference
    return figures


def forms(folder: Path) -> dict[str, float | str]:
    """Forms of attention within segments against a call for each segment in float32; the largest relative difference.

    Of outputs and gradients, for rows of trees, with keys and values of a cache and without.
    """
    import torch

    device = torch.device("cuda", 0) if has_gpu() else torch.device("cpu")
    figures: dict[str, float | str] = {}
    for dtype in ("float32", *(["bfloat16", "float16"] if has_gpu() else [])):
        is_flash = has_gpu() and dtype != "float32" and has_lengths(0)
        for form in (attend_masked, *([attend_by_lengths] if is_flash else [])):
            differences = [
                float((made.float() - right).abs().max() / right.abs().max())
                for past in (0, 9)
                for made, right in zip(
                    attend_random(form, past, device, getattr(torch, dtype)),
                    attend_random(attend_segment_by_segment, past, device, torch.float32),
                    strict=True,
                )
            ]
            largest = max(differences)
            assert largest < (1e-5 if dtype == "float32" else HALF), f"{form.__name__} in {dtype}: {largest:.2g}"
            figures[f"{form.__name__} {dtype}"] = largest
    return figures


def attend_random(form: Any, past: int, device: Any, dtype: Any) -> list[Any]:
    """Output, and gradients of query, key and value, of 8 heads of 64 in 2 groups on random trees."""
    import torch

    row = pack([(group.shared, group.candidates) for group in draw_groups(6, 4)])
    generator = torch.Generator().manual_seed(0)
    inputs = [
        torch.randn(1, heads, more + len(row.ids), 64, generator=generator).to(device, dtype).requires_grad_()
        for heads, more in ((8, 0), (2, past), (2, past))
    ]
    output = form(*inputs, Layout(row.segments), None, 0.0)
    (output.float() * torch.randn(output.shape, generator=generator).to(device)).sum().backward()
    return [output.detach(), *(given.grad for given in inputs if given.grad is not None)]


def kernels(folder: Path) -> dict[str, float | str]:
    """Scores with shared prefixes against prompts alone, under each attention kernel that runs here."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    base, trees = save_llama(folder / "tiny"), draw_trees(10, 4)
    dtype = "float16" if has_gpu() else "float32"
    alone = np.concatenate([ask(base, [prompt], dtype="float32") for prompt in flatten(trees)[:16]])
    figures: dict[str, float | str] = {}
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
        try:
            with sdpa_kernel([backend]):
                found = ask(base, flatten(trees)[:16], dtype=dtype)
        except RuntimeError as error:  # a T4 has no flash attention
            figures[backend.name] = f"not here: {str(error)[:40]}"
            continue
        difference = float(np.abs(found - alone).max())
        assert difference <= LARGEST[dtype], f"{backend.name}: |Δ log p| {difference:.3g}"
        figures[backend.name] = difference
    return figures


def vectors(folder: Path) -> dict[str, float | str]:
    """An encoder's vectors are the same alone and in a batch, bit for bit; a search on the card is that of the CPU."""
    rng = np.random.default_rng(8)
    encoder = save_encoder(folder / "encoder")
    prompts = [rng.integers(5, 200, length).tolist() for length in rng.integers(1, 60, 200)]
    figures: dict[str, float | str] = {}
    for dtype in ("float32", "float16" if has_gpu() else "bfloat16"):
        engine = TransformersEngine(encoder, EngineSettings(dtype=dtype))  # type: ignore[arg-type]
        together = engine.embed(prompts)
        alone = np.concatenate([engine.embed([prompt]) for prompt in prompts[:40]])
        figures[dtype] = float(np.abs(alone - together[:40]).max())
        assert figures[dtype] == 0.0, f"{dtype}: a vector differs by {figures[dtype]:.3g} in a batch"
    for (places, _), query in zip(search_vectors(together, together[:40], 20), together, strict=False):
        cosines = (together.astype(np.float64) * query.astype(np.float64)).sum(axis=1)
        assert places.tolist() == np.argsort(-cosines, kind="stable")[:20].tolist()
    return figures


def overflow(folder: Path) -> dict[str, float | str]:
    """A model whose activations exceed float16's largest number is refused by name, through a worker too."""
    from safetensors.torch import load_file, save_file

    base = save_llama(folder / "tiny")
    weights = load_file(base / "model.safetensors")
    weights = {name: weight.float() * (3e4 if "down_proj" in name else 1) for name, weight in weights.items()}
    save_file(weights, base / "model.safetensors", {"format": "pt"})
    pool = WorkerPool(base, EngineSettings(dtype="float16"), None, [["0"]])
    try:
        pool.choices(flatten(draw_trees(1, 5)), LABELS)
    except NonFiniteError as error:
        return {"message": str(error)[:80]}
    finally:
        pool.close()
    raise AssertionError("no score was infinite")


def resume(folder: Path) -> dict[str, float | str]:
    """Killed after three of six steps and started again: the weights of a training that was never killed."""
    import torch
    from safetensors.torch import load_file
    from transformers import TrainerCallback

    from kaggle_llm.training import trainer

    class Kill(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 4:
                raise KeyboardInterrupt

    base, groups = save_llama(folder / "tiny"), draw_groups(24, 6)
    job = {name: make_job(base, folder / name, checkpoint_steps=3, learning_rate=1e-3) for name in ("whole", "killed")}
    fine_tune(make_task(), groups, job["whole"])
    original = trainer.make_callbacks
    trainer.make_callbacks = lambda *args: [*original(*args), Kill()]
    try:
        fine_tune(make_task(), groups, job["killed"])
    except KeyboardInterrupt:
        pass
    finally:
        trainer.make_callbacks = original
    fine_tune(make_task(), groups, job["killed"])
    first, second = (load_file(folder / name / "adapter_model.safetensors") for name in job)
    difference = max(float((first[name] - second[name]).abs().max()) for name in first)
    assert difference <= (1e-5 if torch.cuda.is_available() else 0.0), difference
    return {"max_abs_diff": difference}


def vllm(folder: Path) -> dict[str, float | str]:
    """vLLM's label probabilities against transformers' on the same card."""
    base, prompts = make_shape(folder, "0.5B"), flatten(draw_trees(10, 7))
    expected = ask(base, prompts, dtype="float16")
    pool = WorkerPool(base, EngineSettings(kind="vllm", dtype="float16"), None, [["0"]])
    found = pool.choices(prompts, LABELS)
    pool.close()
    difference = float(np.abs(found - expected).mean())
    assert difference <= 0.1, difference
    return {"mean_abs_diff": difference}
