"""The linear head of a causal model: one layer, `score`, that stays in full precision where the body is quantised."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from kaggle_llm.base import records
from kaggle_llm.engines.tied import find_tensors

LINEAR_HEAD = "score"  # transformers' name for it; an encoder's head is called classifier


def find_head_kind(model: Path) -> Literal["sequence", "token"] | None:
    """Whether the head answers for the whole prompt or for each token; None without one, and for encoders."""
    (architecture, *_) = records.read_json(model / "config.json").get("architectures") or [""]
    if not architecture.endswith(("ForSequenceClassification", "ForTokenClassification")):
        return None
    if not find_tensors(model, (f"{LINEAR_HEAD}.weight",)):
        return None
    return "token" if architecture.endswith("ForTokenClassification") else "sequence"
