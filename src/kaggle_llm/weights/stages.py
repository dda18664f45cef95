"""The stages of a model from training to the engine that ships, read from their weights.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from kaggle_llm.base import paths, records
from kaggle_llm.base.device import BFLOAT16_FROM, describe_device, measure_free_memory, read_capability
from kaggle_llm.engines.engine import Dtype, EngineSettings, resolve_dtype
from kaggle_llm.engines.quantised import weight_bits
from kaggle_llm.inference.model import Model, replace_model
from kaggle_llm.weights.checkpoint import Checkpoint, is_float, read_header

PARENT_STAGES = ("model", "adapter")  # keys of the stage before in weights.json
TRAINED = ("adapter", "trained")  # stages whose weights.json names the dtype of the training
ROOM_GB = 2.0  # GiB for activations and CUDA's context; where that is too little, the engine halves its batches


@dataclass(frozen=True)
class Stage:
    """One form of a model."""

    name: str
    models: Sequence[Model]
    """All models of the run with this form in its place."""
    engine: EngineSettings
    """Engine of this model; the others keep the one that ships."""
    exact: bool
    """Whether it must give the numbers of the stage before it, up to the rounding of float32."""
    on_cpu: bool = False
    """Whether it is computed on the CPU because it does not fit the GPU."""


def list_stages(
    model: Model, models: Sequence[Model], engine: EngineSettings, dtype: Dtype | Literal["trained"] = "trained"
) -> list[Stage]:
    """Adapter attached → merged → quantised → the engine that ships, of one of `models`; [] where it has one form only.

    All stages of weights are computed by transformers in `dtype`, by default the one that the model was trained in;
    `engine` is a stage where it differs from that.
    """
    engine = resolve_dtype(engine)
    walked = list(walk_stages(model.folder))
    trained = [about["dtype"] for _, about in walked if about["stage"] in TRAINED and about.get("dtype")]
    chosen: Dtype = (trained or [engine.dtype])[0] if dtype == "trained" else dtype
    computed = replace(engine, kind="transformers", dtype=chosen)
    if model.base is not None:
        return add_engine([Stage("adapter", models, computed, False, must_spill(model, chosen))], engine)
    stages: list[Stage] = []
    for path, about in walked:
        stage = str(about["stage"])
        base = paths.absolute(about["parents"]["base"]) if stage == "adapter" else None
        form = replace(model, folder=path, base=base)
        exact = stage == "merged" and chosen == "float32" and is_exact(path, about)
        stages.append(Stage(stage, replace_model(models, form), computed, exact, must_spill(form, chosen)))
    return add_engine(stages[::-1], engine)


def must_spill(model: Model, dtype: Dtype) -> bool:
    """Whether the GPU here cannot compute the model: its free memory is too small, or it has no bfloat16."""
    free, capability = measure_free_memory(), read_capability()
    if free is None or capability is None:
        return False
    if dtype == "bfloat16" and capability < BFLOAT16_FROM:
        return True
    needed = sum(count_bytes(folder, dtype) for folder in model.folders)
    return needed / 2**30 + ROOM_GB > free


def count_bytes(folder: Path, dtype: Dtype) -> float:
    """Bytes of a model's weights in memory; transformers unpacks quantised ones."""
    tensors = [tensor for path in sorted(folder.glob("*.safetensors")) for tensor in read_header(path).values()]
    floats = sum(tensor.elements for tensor in tensors if is_float(tensor.dtype))
    packed = sum(tensor.size for tensor in tensors if not is_float(tensor.dtype))
    weights = floats + packed * 8 / min(weight_bits(folder), default=8)
    return weights * (4 if dtype == "float32" else 2)


def describe_stage(stage: Stage) -> str:
    """ "float32 on cpu, as it does not fit the card"."""
    if stage.on_cpu:
        return f"{stage.engine.dtype} on cpu, as it does not fit the card"
    return f"{stage.engine.dtype} on {describe_device()}"


def walk_stages(path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """(folder, its weights.json) of every stage, last one first; raises FileNotFoundError for one that is gone."""
    while (path / records.WEIGHTS).is_file():
        about = records.read_json(path / records.WEIGHTS)
        yield path, about
        before = [about["parents"][key] for key in PARENT_STAGES if key in about["parents"]]
        if not before:
            return
        made, path = path, paths.absolute(before[0])
        if not path.is_dir():
            raise FileNotFoundError(f"{before[0]}, which {paths.relative(made)} was made from, is gone: train again")


def is_exact(path: Path, about: Mapping[str, Any]) -> bool:
    """Whether nothing was rounded: merged in float32 into the base as it is."""
    dtypes = {tensor.dtype for tensor in Checkpoint(path).tensors.values() if is_float(tensor.dtype)}
    return dtypes == {"float32"} and about.get("into", "original") == "original"


def add_engine(stages: list[Stage], engine: EngineSettings) -> list[Stage]:
    """Append the last weights with the engine that ships, where that is not the reference; [] for a single stage."""
    if not stages or engine == stages[-1].engine:
        return stages if len(stages) > 1 else []
    exact = engine.dtype == stages[-1].engine.dtype == "float32"
    return [*stages, Stage(f"{engine.kind} {engine.dtype}", stages[-1].models, engine, exact)]
