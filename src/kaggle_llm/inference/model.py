"""The models of a run: what each is called, where it lies, and its place in an ensemble. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths


@dataclass(frozen=True)
class Model:
    """A folder of weights, or of a fitted decision, under the name that predict.py has for it."""

    name: str
    folder: Path
    base: Path | None = None
    """Of an adapter: the model that it is attached to."""
    fold: int | None = None
    """In an ensemble of folds: the fold whose rows it was not trained on; None: all folds share it."""
    member: int | None = None
    """In an ensemble of runs: its run's place in config.members."""

    @property
    def label(self) -> str:
        """ "reranker of fold 0"."""
        places = [f"fold {self.fold}"] * (self.fold is not None) + [f"member {self.member}"] * (self.member is not None)
        return " of ".join([self.name, *places])

    @property
    def folders(self) -> list[Path]:
        return [self.folder, *([self.base] if self.base else [])]


def describe_model(model: Model, write: Callable[[Path], str] = paths.relative) -> dict[str, Any]:
    """As records and manifests have it; what is None is left out. write: how a folder is named there."""
    described = {**asdict(model), "folder": write(model.folder), "base": write(model.base) if model.base else None}
    return {key: value for key, value in described.items() if value is not None}


def read_model(described: Mapping[str, Any], find: Callable[[str], Path] = paths.absolute) -> Model:
    """The inverse of `describe_model`."""
    base = described.get("base")
    return Model(**{**described, "folder": find(described["folder"]), "base": find(base) if base else None})


def describe_models(models: Iterable[Model]) -> list[dict[str, Any]]:
    return [describe_model(model) for model in models]


def read_models(described: Iterable[Mapping[str, Any]]) -> list[Model]:
    return [read_model(one) for one in described]


def find_model(models: Sequence[Model], name: str) -> Model:
    """The one of this name, but for members' own; raises KeyError where there is none."""
    own = [model for model in models if model.member is None]
    for model in own:
        if model.name == name:
            return model
    raise KeyError(f"no model {name!r} in this run: it has {', '.join(model.name for model in own) or 'none'}")


def replace_model(models: Sequence[Model], new: Model) -> list[Model]:
    """`new` in the place of the one of its name and member, or behind the others."""
    others = [model for model in models if (model.name, model.member) != (new.name, new.member)]
    return [*others, new]


def split_folds(models: Sequence[Model]) -> dict[int | None, list[Model]]:
    """Fold → all models that answer together, in the order of the folds; without an ensemble None → all.

    What a member has of several folds stays together: it answers as an ensemble by itself.
    """

    def split(model: Model, k: int | None) -> list[Model]:
        if model.member is not None:
            return [model]
        return [replace(model, fold=None)] if model.fold in (None, k) else []

    own = {model.fold for model in models if model.member is None and model.fold is not None}
    folds: list[int | None] = [*sorted(own)]
    return {k: [one for model in models for one in split(model, k)] for k in folds or [None]}


def join_folds(models: Mapping[int, Sequence[Model]]) -> list[Model]:
    """The models of several folds as an ensemble: what all of them have in common has no fold."""
    shared = [one for one in next(iter(models.values())) if all(one in own for own in models.values())]
    return [*shared, *(replace(one, fold=k) for k, own in models.items() for one in own if one not in shared)]


def of_member(models: Sequence[Model], number: int) -> list[Model]:
    """Those of one member of an ensemble of runs, as that run has them."""
    return [replace(model, member=None) for model in models if model.member == number]


def check_whole(models: Sequence[Model]) -> list[Model]:
    """`models` themselves; raises ValueError where the folds of an ensemble do not have the same models."""
    names = {model.name for model in models if model.member is None}
    for k, own in split_folds(models).items():
        if lacking := sorted(names - {model.name for model in own if model.member is None}):
            raise ValueError(
                f"{lacking[0]} of fold {k} does not ship, though other folds' do: ship the same folds of both"
            )
    return list(models)


def list_folders(models: Iterable[Model]) -> Iterator[Path]:
    """Every folder once."""
    yield from dict.fromkeys(folder for model in models for folder in model.folders)
