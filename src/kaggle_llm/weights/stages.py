"""The stages of a model on its way from training to the engine that ships, as their weights.json tell it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.inference.model import Model, replace_model
from kaggle_llm.weights.checkpoint import Checkpoint, is_float

STEPS = ("model", "adapter")  # names under which weights.json speaks of the stage before


@dataclass(frozen=True)
class Stage:
    """One form of a model."""

    name: str
    models: Sequence[Model]
    """All models of the run with this form in its place."""
    engine: EngineSettings
    """Of this model; the others keep the one that ships."""
    exact: bool
    """It has to give the numbers of the stage before it, but for the rounding of float32."""


def list_stages(model: Model, models: Sequence[Model], engine: EngineSettings) -> list[Stage]:
    """Adapter attached → merged → quantised → the engine that ships, of one of `models`; [] where it is one form only.

    All but the last are computed by transformers in float32. The last one is there where `engine` differs from that.
    """
    if model.base is not None:
        return add_engine([Stage("adapter", models, reference(engine), False)], engine)
    found: list[Stage] = []
    for path, about in walk(model.folder):
        stage = str(about["stage"])
        base = paths.absolute(about["parents"]["base"]) if stage == "adapter" else None
        own = replace_model(models, replace(model, folder=path, base=base))
        found.append(Stage(stage, own, reference(engine), stage == "merged" and is_exact(path, about)))
    return add_engine(found[::-1], engine)


def walk(path: Path) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """The stages of a folder of weights, the last one first; raises FileNotFoundError for one that is gone."""
    while (path / records.WEIGHTS).is_file():
        about = records.read_json(path / records.WEIGHTS)
        yield path, about
        before = [about["parents"][word] for word in STEPS if word in about["parents"]]
        if not before:
            return
        made, path = path, paths.absolute(before[0])
        if not path.is_dir():
            raise FileNotFoundError(f"{before[0]}, which {paths.relative(made)} was made from, is gone: train again")


def is_exact(path: Path, about: Mapping[str, Any]) -> bool:
    """Merged weights in float32 on the base as it is: nothing was rounded."""
    dtypes = {place.dtype for place in Checkpoint(path).tensors.values() if is_float(place.dtype)}
    return dtypes == {"float32"} and about.get("into", "original") == "original"


def reference(engine: EngineSettings) -> EngineSettings:
    """transformers in float32: what the stages before the engine are computed with."""
    return replace(engine, kind="transformers", dtype="float32")


def add_engine(stages: list[Stage], engine: EngineSettings) -> list[Stage]:
    """The last stage once more, with the engine that ships, where that is another one."""
    if not stages or (engine.kind == "transformers" and engine.dtype == "float32"):
        return stages if len(stages) > 1 else []
    name = f"{engine.kind} {engine.dtype}"
    return [*stages, Stage(name, stages[-1].models, engine, engine.dtype == "float32")]
