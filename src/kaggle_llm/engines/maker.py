"""The one place where engines are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kaggle_llm.base import records
from kaggle_llm.base.device import has_gpu
from kaggle_llm.engines.engine import Engine, EngineSettings
from kaggle_llm.engines.pool import WorkerPool, assign_cards, list_cards


def resolve_engine(settings: EngineSettings) -> EngineSettings:
    """The settings with `auto` decided: vLLM where a GPU and vLLM are present, else transformers.

    Raises ImportError where vLLM is asked for and absent, ValueError for settings that it does not know.
    """
    kind = settings.kind
    if kind == "auto":
        kind = "vllm" if find_spec("vllm") and has_gpu() else "transformers"  # to ask for a GPU, torch is loaded
    if kind == "vllm":
        if not find_spec("vllm"):
            raise ImportError("engine.kind = vllm, but vLLM is not installed here: install it or set engine.kind=auto")
        from kaggle_llm.engines.vllm_engine import check_settings

        check_settings(settings.vllm)
    return replace(settings, kind=kind)


def make_engine(folder: Path, settings: EngineSettings, base: Path | None = None) -> Engine:
    """An engine for the model in `folder`, or for the adapter there on the model in `base`.

    vLLM serves language models only: sentence encoders and models with a head go to transformers always.
    It runs in worker processes where the settings or the machine's GPUs ask for them, else in this process.
    """
    settings = resolve_engine(settings)
    by_vllm = choose_kind(folder, settings, base) == "vllm"
    cards = assign_cards(list_cards(), settings.workers, count_cards(settings.vllm) if by_vllm else 1)
    if cards:
        return WorkerPool(folder, settings, base, cards)
    if by_vllm:
        from kaggle_llm.engines.vllm_engine import VllmEngine

        return VllmEngine(folder, settings, base)
    from transformers.utils import logging

    from kaggle_llm.engines.transformers_engine import TransformersEngine

    logging.disable_progress_bar()  # "Loading weights" of a second or two, in every log
    return TransformersEngine(folder, settings, base)


def choose_kind(folder: Path, settings: EngineSettings, base: Path | None = None) -> str:
    """Which engine answers for this model: `settings.kind` is vLLM's for language models only."""
    return "vllm" if settings.kind == "vllm" and is_language_model(folder, base) else "transformers"


def is_language_model(folder: Path, base: Path | None = None) -> bool:
    """Whether what the folder holds generates text: no sentence encoder, no head, and no adapter of one."""
    if base is not None and records.read_json(folder / records.ADAPTER).get("task_type") not in ("CAUSAL_LM", None):
        return False
    model = base or folder
    if (model / "modules.json").is_file():
        return False
    architectures = records.read_json(model / "config.json").get("architectures") or []
    return any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in architectures)


def count_cards(settings: Mapping[str, Any]) -> int:
    """GPUs over which vLLM spreads one model; settings: engine.vllm."""
    return int(settings.get("tensor_parallel_size", 1) * settings.get("pipeline_parallel_size", 1))
