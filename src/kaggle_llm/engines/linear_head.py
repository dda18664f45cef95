"""What vLLM's pooling runner serves: sentence encoders, and causal models with a linear head.

The head is one layer, `score`, that stays in full precision where the body is quantised.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from kaggle_llm.base import records
from kaggle_llm.engines.tied import find_tensors

LINEAR_HEAD = "score"  # transformers' name for it; an encoder's head is called classifier
HEADED = ("ForSequenceClassification", "ForTokenClassification")


def read_architecture(model: Path) -> str:
    """The class of transformers that a model's config names first; "" where it names none."""
    (architecture, *_) = records.read_json(model / "config.json").get("architectures") or [""]
    return str(architecture)


def is_sentence_encoder(model: Path) -> bool:
    """Whether it is a folder of sentence-transformers; a cross-encoder is one with a head, and gives no vectors."""
    return (model / "modules.json").is_file() and not read_architecture(model).endswith(HEADED)


def find_head_kind(model: Path) -> Literal["sequence", "token"] | None:
    """Whether the head answers for the whole prompt or for each token; None without one, and for encoders."""
    architecture = read_architecture(model)
    if not architecture.endswith(HEADED):
        return None
    if not find_tensors(model, (f"{LINEAR_HEAD}.weight",)):
        return None
    return "token" if architecture.endswith("ForTokenClassification") else "sequence"
