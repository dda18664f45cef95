"""Makes engines; the only place that does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kaggle_llm.base import records
from kaggle_llm.base.device import has_gpu
from kaggle_llm.engines.engine import Engine, EngineSettings, resolve_dtype
from kaggle_llm.engines.pool import WorkerPool, assign_gpus, list_visible_gpus


def resolve_engine(settings: EngineSettings) -> EngineSettings:
    """The settings with `auto` decided: vLLM where a GPU and vLLM are present, else transformers; and the dtype.

    Raises ImportError where vLLM is asked for but not installed, ValueError for settings that it does not know.
    """
    kind = settings.kind
    if kind == "auto":
        kind = "vllm" if find_spec("vllm") and has_gpu() else "transformers"  # has_gpu() imports torch: ask last
    if kind == "vllm":
        if not find_spec("vllm"):
            raise ImportError("engine.kind = vllm, but vLLM is not installed here: install it or set engine.kind=auto")
        from kaggle_llm.engines.vllm_engine import check_vllm_settings

        check_vllm_settings(settings.vllm)
    return resolve_dtype(replace(settings, kind=kind))


def make_engine(folder: Path, settings: EngineSettings, base: Path | None = None) -> Engine:
    """An engine for the model in `folder`, or for the adapter there on the model in `base`.

    Sentence encoders and models with a head always run on transformers. Runs in worker processes where the settings or
    the machine's GPUs ask for them, else in this process.
    """
    settings = resolve_engine(settings)
    by_vllm = choose_kind(folder, settings, base) == "vllm"
    gpus = assign_gpus(list_visible_gpus(), settings.workers, count_gpus_per_model(settings.vllm) if by_vllm else 1)
    if gpus:
        return WorkerPool(folder, settings, base, gpus)
    if by_vllm:
        from kaggle_llm.engines.vllm_engine import VllmEngine

        return VllmEngine(folder, settings, base)
    from transformers.utils import logging

    from kaggle_llm.engines.transformers_engine import TransformersEngine

    logging.disable_progress_bar()  # "Loading weights": noise in every log
    return TransformersEngine(folder, settings, base)


def choose_kind(folder: Path, settings: EngineSettings, base: Path | None = None) -> str:
    """ "vllm" where the settings ask for it and the model is a language model, else "transformers"."""
    return "vllm" if settings.kind == "vllm" and is_language_model(folder, base) else "transformers"


def is_language_model(folder: Path, base: Path | None = None) -> bool:
    """Whether the model generates text: no sentence encoder, no model with a head, and no adapter of one."""
    if base is not None and records.read_json(folder / records.ADAPTER).get("task_type") not in ("CAUSAL_LM", None):
        return False
    model = base or folder
    if (model / "modules.json").is_file():
        return False
    architectures = records.read_json(model / "config.json").get("architectures") or []
    return any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in architectures)


def count_gpus_per_model(vllm: Mapping[str, Any]) -> int:
    """GPUs over which vLLM spreads one model. vllm: the setting engine.vllm."""
    return int(vllm.get("tensor_parallel_size", 1) * vllm.get("pipeline_parallel_size", 1))
