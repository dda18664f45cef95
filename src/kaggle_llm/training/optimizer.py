"""Learning rates apart: LoRA's A and B, a head, the token embeddings."""

from __future__ import annotations

import re
from typing import Any

from kaggle_llm.training.settings import TrainingSettings

# PEFT keeps a trained head under modules_to_save; without an adapter it stands beside the backbone.
HEAD = re.compile(r"modules_to_save|(^|\.)(score|classifier|pooler)\.")


def group_parameters(model: Any, training: TrainingSettings) -> list[dict[str, Any]]:
    """torch's parameter groups of all that is trained, one for each learning rate and weight decay.

    Biases and norms (vectors) are not decayed.
    """
    tables = {id(module.weight) for module in model.modules() if type(module).__name__ == "Embedding"}
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, weight in model.named_parameters():
        if not weight.requires_grad:
            continue
        rate = choose_rate(name, id(weight) in tables, training)
        decay = training.weight_decay if weight.ndim > 1 else 0.0
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(weight)
    return list(groups.values())


def choose_rate(name: str, is_embedding: bool, training: TrainingSettings) -> float:
    """The learning rate of a parameter by its name."""
    own = None
    if is_embedding:
        own = training.embedding_learning_rate
    elif "lora_B" in name or "lora_embedding_B" in name:
        own = training.lora_b_learning_rate
    elif HEAD.search(name) and "lora_" not in name:
        own = training.head_learning_rate
    return training.learning_rate if own is None else own
