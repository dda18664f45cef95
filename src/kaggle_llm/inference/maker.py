"""The one place where engines are made."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from kaggle_llm import records
from kaggle_llm.inference.engine import Engine, EngineSettings


def resolve_engine(settings: EngineSettings) -> EngineSettings:
    """The settings with `auto` decided: vLLM where a GPU and vLLM are present, else transformers.

    Raises ImportError where vLLM is asked for and absent, ValueError for settings that it does not know.
    """
    kind = settings.kind
    if kind == "auto":
        kind = "vllm" if has_gpu() and find_spec("vllm") else "transformers"
    if kind == "vllm":
        if not find_spec("vllm"):
            raise ImportError("engine.kind = vllm, but vLLM is not installed here: install it or set engine.kind=auto")
        from kaggle_llm.inference.vllm_engine import check_settings

        check_settings(settings.vllm)
    return replace(settings, kind=kind)


def make_engine(folder: Path, settings: EngineSettings, base: Path | None = None) -> Engine:
    """An engine for the model in `folder`, or for the adapter there on the model in `base`.

    vLLM serves language models only: sentence encoders and models with a head go to transformers always.
    """
    if resolve_engine(settings).kind == "vllm" and is_language_model(folder, base):
        from kaggle_llm.inference.vllm_engine import VllmEngine

        return VllmEngine(folder, settings, base)
    from transformers.utils import logging

    from kaggle_llm.inference.transformers_engine import TransformersEngine

    logging.disable_progress_bar()  # "Loading weights" of a second or two, in every log
    return TransformersEngine(folder, settings, base)


def is_language_model(folder: Path, base: Path | None = None) -> bool:
    """Whether what the folder holds generates text: no sentence encoder, no head, and no adapter of one."""
    if base is not None and records.read_json(folder / records.ADAPTER).get("task_type") not in ("CAUSAL_LM", None):
        return False
    model = base or folder
    if (model / "modules.json").is_file():
        return False
    architectures = records.read_json(model / "config.json").get("architectures") or []
    return any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in architectures)


def has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
