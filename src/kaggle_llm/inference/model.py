"""The models of a run: name, folder, and place in an ensemble. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths


@dataclass(frozen=True)
class Model:
    """A folder of weights, or of a fitted decision, with its name in predict.py."""

    name: str
    folder: Path
    base: Path | None = None
    """For an adapter, the folder of its base model."""
    fold: int | None = None
    """In an ensemble of folds, the fold that it was not trained on; None: all folds share it."""
    member: int | None = None
    """In an ensemble of runs, the index of its run in config.members."""

    @property
    def label(self) -> str:
        """ "reranker of fold 0"."""
        parts = [("fold", self.fold), ("member", self.member)]
        return " of ".join([self.name, *(f"{part} {number}" for part, number in parts if number is not None)])

    @property
    def folders(self) -> list[Path]:
        return [self.folder, *([self.base] if self.base else [])]


def describe_model(model: Model, write: Callable[[Path], str] = paths.relative) -> dict[str, Any]:
    """The model for records and manifests, without fields that are None. write: folder → its text there."""
    described = {**asdict(model), "folder": write(model.folder), "base": write(model.base) if model.base else None}
    return {key: value for key, value in described.items() if value is not None}


def read_model(described: Mapping[str, Any], find: Callable[[str], Path] = paths.absolute) -> Model:
    """The inverse of `describe_model`."""
    base = described.get("base")
    return Model(**{**described, "folder": find(described["folder"]), "base": find(base) if base else None})


def describe_models(models: Iterable[Model]) -> list[dict[str, Any]]:
    return [describe_model(model) for model in models]


def read_models(described: Iterable[Mapping[str, Any]]) -> list[Model]:
    return [read_model(model) for model in described]


def find_model(models: Sequence[Model], name: str) -> Model:
    """The model of this name, not counting models of members; raises KeyError where there is none."""
    own = [model for model in models if model.member is None]
    for model in own:
        if model.name == name:
            return model
    raise KeyError(f"no model {name!r} in this run: it has {', '.join(model.name for model in own) or 'none'}")


def replace_model(models: Sequence[Model], new: Model) -> list[Model]:
    """The models with `new` at the end, instead of the one with its name and member if there is one."""
    others = [model for model in models if (model.name, model.member) != (new.name, new.member)]
    return [*others, new]


def split_folds(models: Sequence[Model]) -> dict[int | None, list[Model]]:
    """Fold → its models and the shared ones, in the order of the folds; without an ensemble of folds {None: all}.

    The models of a member stay together, it is an ensemble by itself; but the folds of a stack (an experiment with
    members and models of its own) each have the members' models of the same fold, as in CV.
    """
    folds_of: dict[int | None, set[int]] = {None: set()}
    for model in models:
        folds_of.setdefault(model.member, set()).update([] if model.fold is None else [model.fold])

    def split(model: Model, k: int | None) -> list[Model]:
        if folds_of[model.member] != folds_of[None]:
            return [model]
        return [replace(model, fold=None)] if model.fold in (None, k) else []

    folds: list[int | None] = [*sorted(folds_of[None])]
    return {k: [part for model in models for part in split(model, k)] for k in folds or [None]}


def join_folds(models: Mapping[int, Sequence[Model]]) -> list[Model]:
    """The inverse of `split_folds`: fold → models, as an ensemble; models that all folds share have no fold."""
    shared = [model for model in next(iter(models.values())) if all(model in own for own in models.values())]
    return [*shared, *(replace(model, fold=k) for k, own in models.items() for model in own if model not in shared)]


def select_member_models(models: Sequence[Model], number: int) -> list[Model]:
    """The models of one member of an ensemble of runs, as in its own run."""
    return [replace(model, member=None) for model in models if model.member == number]


def check_folds_match(models: Sequence[Model]) -> list[Model]:
    """Returns `models`; raises ValueError where the folds of an ensemble do not have the same models."""
    names = {model.name for model in models if model.member is None}
    for k, own in split_folds(models).items():
        if missing := sorted(names - {model.name for model in own if model.member is None}):
            raise ValueError(
                f"model {missing[0]} ships for other folds, but not for fold {k}: ship the same folds of all models"
            )
    return list(models)


def list_folders(models: Iterable[Model]) -> Iterator[Path]:
    """Every folder of the models, once."""
    yield from dict.fromkeys(folder for model in models for folder in model.folders)
