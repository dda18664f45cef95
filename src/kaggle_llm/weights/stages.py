"""The stages of a model from training to the engine that ships, read from their weights.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.inference.model import Model, replace_model
from kaggle_llm.weights.checkpoint import Checkpoint, is_float

PARENT_STAGES = ("model", "adapter")  # keys of the stage before in weights.json


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


def list_stages(model: Model, models: Sequence[Model], engine: EngineSettings) -> list[Stage]:
    """Adapter attached → merged → quantised → the engine that ships, of one of `models`; [] where it has one form only.

    All stages of weights are computed by transformers in float32; `engine` is a stage where it differs from that.
    """
    if model.base is not None:
        return add_engine([Stage("adapter", models, reference(engine), False)], engine)
    stages: list[Stage] = []
    for path, about in walk_stages(model.folder):
        stage = str(about["stage"])
        base = paths.absolute(about["parents"]["base"]) if stage == "adapter" else None
        replaced = replace_model(models, replace(model, folder=path, base=base))
        stages.append(Stage(stage, replaced, reference(engine), stage == "merged" and is_exact(path, about)))
    return add_engine(stages[::-1], engine)


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


def reference(engine: EngineSettings) -> EngineSettings:
    """The settings with transformers in float32, which compute the stages before the engine that ships."""
    return replace(engine, kind="transformers", dtype="float32")


def add_engine(stages: list[Stage], engine: EngineSettings) -> list[Stage]:
    """Append the last weights with the engine that ships, where that is not the reference; [] for a single stage."""
    if not stages or (engine.kind == "transformers" and engine.dtype == "float32"):
        return stages if len(stages) > 1 else []
    name = f"{engine.kind} {engine.dtype}"
    return [*stages, Stage(name, stages[-1].models, engine, engine.dtype == "float32")]
