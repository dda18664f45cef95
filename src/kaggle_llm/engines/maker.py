"""Makes engines; the only place that does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kaggle_llm.base import records
from kaggle_llm.base.device import has_gpu, measure_free_memory
from kaggle_llm.engines.engine import CPU_BATCH_TOKENS, Engine, EngineSettings, resolve_dtype
from kaggle_llm.engines.footprint import fit_inference, read_shape, usable_bytes
from kaggle_llm.engines.linear_head import find_head_kind, is_sentence_encoder
from kaggle_llm.engines.model_kinds import ModelKind
from kaggle_llm.engines.pool import WorkerPool, assign_gpus, list_visible_gpus
from kaggle_llm.engines.quantised import read_quantisation


def resolve_engine(settings: EngineSettings) -> EngineSettings:
    """The settings with `auto` decided: vLLM where a GPU and vLLM are present, else transformers; and the dtype.

    Raises ImportError where vLLM is asked for but not installed, ValueError for settings that it does not know.
    """
    kind = settings.kind
    if kind == "auto":
        kind = "vllm" if find_spec("vllm") and has_gpu() else "transformers"  # has_gpu() imports torch: ask last
    if "vllm" in (kind, settings.embedder):
        if not find_spec("vllm"):
            setting, way_out = ("kind", "auto") if kind == "vllm" else ("embedder", "transformers")
            raise ImportError(
                f"engine.{setting} = vllm, but vLLM is not installed here: install it or set engine.{setting}={way_out}"
            )
        from kaggle_llm.engines.vllm_engine import check_vllm_settings

        check_vllm_settings(settings.vllm)
    return resolve_dtype(replace(settings, kind=kind))


def make_engine(folder: Path, settings: EngineSettings, base: Path | None = None) -> Engine:
    """An engine for the model in `folder`, or for the adapter there on the model in `base`.

    What vLLM does not serve here (is_served_by_vllm) runs on transformers whatever the settings say. Runs in worker
    processes where the settings or the machine's GPUs ask for them, else in this process.
    """
    settings = resolve_engine(settings)
    by_vllm = choose_kind(folder, settings, base) == "vllm"
    gpus = assign_gpus(list_visible_gpus(), settings.workers, count_gpus_per_model(settings.vllm) if by_vllm else 1)
    if not by_vllm:
        settings = choose_batch(folder, settings, base, gpus)
    if gpus:
        return WorkerPool(folder, settings, base, gpus)
    if by_vllm:
        from kaggle_llm.engines.vllm_engine import VllmEngine

        return VllmEngine(folder, settings, base)
    from transformers.utils import logging

    from kaggle_llm.engines.transformers_engine import TransformersEngine

    logging.disable_progress_bar()  # "Loading weights": noise in every log
    return TransformersEngine(folder, settings, base)


def choose_batch(
    folder: Path, settings: EngineSettings, base: Path | None, gpus: Sequence[Sequence[str]]
) -> EngineSettings:
    """The settings with batch_tokens auto decided: what the fullest card of the workers has room for, each its share.

    gpus: those of each worker; none for an engine in this process. Without a GPU it stays auto.
    """
    if settings.batch_tokens != "auto":
        return settings
    names = [gpu for own in gpus for gpu in own] or [""]
    free = min((measure_free_memory(gpu) or 0.0) / names.count(gpu) for gpu in names)
    if not free:
        return settings
    tokens = fit_batch(folder, resolve_dtype(settings).dtype, base, free)
    print(f"{folder.name}: engine.batch_tokens = {tokens}, for {free:.1f} GiB of free memory", flush=True)
    return replace(settings, batch_tokens=tokens)


def fit_batch(folder: Path, dtype: str, base: Path | None, free: float) -> int:
    """Tokens of a batch of the model in `folder`, or of the adapter there on the model in `base`, in `free` GiB.

    What a CPU gets where the model's code needs its weights' values, as a mixture of experts may.
    """
    model = base or folder
    kind: ModelKind | None = (
        None if is_sentence_encoder(model) else "causal" if is_language_model(folder, base) else "sequence"
    )
    packed = read_quantisation(model).get("quant_method") not in (None, "compressed-tensors")
    weights = sum(path.stat().st_size for path in model.glob("*.safetensors")) if packed else None
    try:
        return fit_inference(read_shape(model), kind, dtype, usable_bytes(free), weights)
    except ValueError as error:
        print(f"{folder.name}: {error}")
        return CPU_BATCH_TOKENS


def choose_kind(folder: Path, settings: EngineSettings, base: Path | None = None) -> str:
    """ "vllm" where the settings ask for it and it serves the model, else "transformers"."""
    if base is None and is_sentence_encoder(folder):
        return settings.embedder
    return "vllm" if settings.kind == "vllm" and is_served_by_vllm(folder, base) else "transformers"


def is_served_by_vllm(folder: Path, base: Path | None = None) -> bool:
    """Whether engine.kind = vllm serves the model: a language model, or a whole causal model with a head."""
    return is_language_model(folder, base) or (base is None and find_head_kind(folder) is not None)


def is_language_model(folder: Path, base: Path | None = None) -> bool:
    """Whether the model generates text: no sentence encoder, no model with a head, and no adapter of one."""
    if base is not None and records.read_json(folder / records.ADAPTER).get("task_type") not in ("CAUSAL_LM", None):
        return False
    model = base or folder
    if is_sentence_encoder(model):
        return False
    architectures = records.read_json(model / "config.json").get("architectures") or []
    return any(name.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for name in architectures)


def count_gpus_per_model(vllm: Mapping[str, Any]) -> int:
    """GPUs over which vLLM spreads one model. vllm: the setting engine.vllm."""
    return int(vllm.get("tensor_parallel_size", 1) * vllm.get("pipeline_parallel_size", 1))
