"""Kinds of models by their heads, and the classes of transformers and PEFT for each."""

from __future__ import annotations

from typing import Literal

ModelKind = Literal["causal", "sequence", "token", "masked"]
CLASSES: dict[ModelKind, tuple[str, str]] = {  # transformers' class, PEFT's task type
    "causal": ("AutoModelForCausalLM", "CAUSAL_LM"),
    "sequence": ("AutoModelForSequenceClassification", "SEQ_CLS"),
    "token": ("AutoModelForTokenClassification", "TOKEN_CLS"),
    "masked": ("AutoModelForMaskedLM", "FEATURE_EXTRACTION"),
}
HEAD_NAMES = ["classifier", "score"]  # modules that PEFT trains whole for SEQ_CLS and TOKEN_CLS
