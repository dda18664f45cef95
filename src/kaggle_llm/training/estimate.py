"""Estimates the memory and the operations of a training, by the trace of its model (engines/footprint.py)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from kaggle_llm.engines.footprint import (
    BYTES,
    GIB,
    SMALLEST_BATCH,
    Batch,
    Estimate,
    Memory,
    Trace,
    count_layers,
    count_parameters,
    extrapolate,
    measure_growth,
    round_batch,
    trace,
)
from kaggle_llm.engines.model_kinds import ModelKind
from kaggle_llm.training.base_model import attach_adapter
from kaggle_llm.training.settings import LoraSettings, TrainingSettings

NF4_BYTES = (
    0.516  # a weight: 4 bits, an 8-bit scale for 64 of them, a 32-bit one for 256 scales (Dettmers et al., 2023)
)
GRADIENT_BYTES = 4  # of a trained weight, which is float32
OPTIMIZER_BYTES = {"adamw": 8, "adamw_8bit": 2, "paged_adamw_8bit": 2}  # two moments
STEP_BYTES = 4  # AdamW updates all weights at once: a copy of their size, when no activations are left


def estimate_training(
    config: Any, kind: ModelKind, lora: LoraSettings, training: TrainingSettings, batch: Batch
) -> Estimate:
    """Memory and operations of one process that trains the model of a transformers config; training.dtype is decided.

    Raises ValueError for a model that cannot be run without its weights' values.
    """
    short, long = (trace_training(config, kind, lora, training.dtype, batch, layers) for layers in (1, 2))
    full, layers = extrapolate(short, long, count_layers(config)), count_layers(config)
    exact = count_parameters(config, kind)
    is_full = lora.method == "full"
    size = BYTES[training.dtype]
    activations, operations = full.activations, full.operations
    if training.gradient_checkpointing:
        hidden = config.get_text_config().hidden_size * (4 if is_full else size)
        cast = size * (long.trained - short.trained) if is_full and size < 4 else 0.0
        inputs = layers - 1 if is_full else layers  # above frozen embeddings a layer alone does not keep its input
        activations = short.activations + inputs * batch.rows * batch.length * hidden + (layers - 1) * cast
        operations += layers * (long.forward - short.forward)
    weights = float(exact * (4 if is_full else size))
    if lora.method == "qlora":
        weights += full.linear * (NF4_BYTES - size)
        activations += full.largest * size  # one matrix at a time is unpacked
    trained = exact if is_full else full.trained
    memory = Memory(
        weights,
        0.0 if is_full else 4 * trained,
        GRADIENT_BYTES * trained,
        OPTIMIZER_BYTES[training.optimizer] * trained,
        max(activations, short.after, STEP_BYTES * trained),
    )
    return Estimate(memory, operations / (batch.rows * batch.length), exact)


def fit_batch_tokens(config: Any, kind: ModelKind, lora: LoraSettings, training: TrainingSettings, room: float) -> int:
    """The largest power of two of tokens, at most LARGEST_BATCH, whose estimate is within `room` bytes.

    Raises ValueError where SMALLEST_BATCH does not fit.
    """
    fixed, each = measure_growth(lambda batch: estimate_training(config, kind, lora, training, batch), config)
    needed = fixed + SMALLEST_BATCH * each
    if needed > room:
        sizes = f"{SMALLEST_BATCH} tokens need {needed / GIB:.1f} GiB, {room / GIB:.1f} are free"
        raise ValueError(
            f"training.batch_tokens = auto: {sizes}: set training.gradient_checkpointing=true or lora.method=qlora "
            f"(kaggle-llm plan), or give a number"
        )
    return round_batch((room - fixed) / each)


def trace_training(config: Any, kind: ModelKind, lora: LoraSettings, dtype: str, batch: Batch, layers: int) -> Trace:
    """Forward and backward pass of the first layers, with the adapter or all weights trained."""

    def prepare(model: Any, counter: Any) -> Any:
        import torch

        if lora.method != "full":
            with torch.device("meta"):
                return attach_adapter(model, kind, replace(lora, method="lora"))
        embeddings = model.get_input_embeddings()
        embeddings.register_forward_hook(lambda module, given, out: out.register_hook(counter.mark) and None)
        return model

    return trace(config, kind, dtype, batch, layers, prepare, "float32" if lora.method == "full" else None)
