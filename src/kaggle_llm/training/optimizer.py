"""The optimizer, with separate learning rates for LoRA's A and B, a head, and the token embeddings."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from kaggle_llm.training.settings import TrainingSettings

# PEFT keeps a trained head under modules_to_save; without an adapter it is beside the backbone.
HEAD_PARAMETER = re.compile(r"modules_to_save|(^|\.)(score|classifier|pooler)\.")

LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks)\.(\d+)\.")


def group_parameters(model: Any, training: TrainingSettings) -> list[dict[str, Any]]:
    """torch's parameter groups of all trained weights, one for each learning rate and weight decay.

    Biases and norms (vectors) have no weight decay.
    """
    tables = {id(module.weight) for module in model.modules() if type(module).__name__ == "Embedding"}
    scale = layer_scale([name for name, _ in model.named_parameters()], training.tricks.layer_decay)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        is_embedding = id(weight) in tables
        rate = choose_rate(name, is_embedding, training) * scale(name, is_embedding)
        decay = training.weight_decay if weight.ndim > 1 else 0.0
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(weight)
    return list(groups.values())


def layer_scale(names: Sequence[str], decay: float) -> Callable[[str, bool], float]:
    """(name, whether it is a table of embeddings) → the factor of its learning rate: decay^(L − i) in layer i of 0 to
    L − 1, decay^(L + 1) in the embeddings, 1 in what comes after the layers.

    Source: Clark et al., ELECTRA, 2020, appendix B. Raises ValueError for a model whose layers are not numbered.
    """
    layers = [int(match[1]) for name in names if (match := LAYER.search(name))]
    if decay == 1:
        return lambda name, is_embedding: 1.0
    if not layers:
        raise ValueError(f"training.tricks.layer_decay = {decay}: the model has no numbered layers; leave it out")
    count = max(layers) + 1

    def scale(name: str, is_embedding: bool) -> float:
        if match := LAYER.search(name):
            return decay ** (count - int(match[1]))
        return decay ** (count + 1) if is_embedding or "embeddings." in name else 1.0

    return scale


def choose_optimizer(name: str) -> type[Any]:
    """The class of training.optimizer."""
    if name == "adamw":
        from torch.optim import AdamW

        return AdamW
    from bitsandbytes.optim import AdamW8bit, PagedAdamW8bit

    optimizer: type[Any] = PagedAdamW8bit if name == "paged_adamw_8bit" else AdamW8bit
    return optimizer


def choose_rate(name: str, is_embedding: bool, training: TrainingSettings) -> float:
    """The learning rate of a parameter by its name."""
    rate = None
    if is_embedding:
        rate = training.embedding_learning_rate
    elif "lora_B" in name or "lora_embedding_B" in name:
        rate = training.lora_b_learning_rate
    elif HEAD_PARAMETER.search(name) and "lora_" not in name:
        rate = training.head_learning_rate
    return training.learning_rate if rate is None else rate
