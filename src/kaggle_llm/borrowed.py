"""Models by name: an ensemble's members, and those that an experiment takes from elsewhere, its config's `models`.

`name: <run>:<model>` is a model that another run ships; in fold k's CV it is the one that the run trained for its own
fold k. `name: <folder>` is a model that nobody here trained, the same in every fold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from kaggle_llm import paths, records

Models = Mapping[str, Path]
MEMBER = re.compile(r"fold(\d+)\.")  # what the name of one fold's model begins with in an ensemble


def list_members(models: Models) -> dict[str, dict[str, Path]]:
    """fold<k> → its models under their own names, in the order of the folds; without an ensemble "" → all models.

    Models without a fold belong to every member.
    """
    shared = {name: path for name, path in models.items() if not MEMBER.match(name)}
    folds = sorted({int(found[1]) for name in models if (found := MEMBER.match(name))})
    members = {f"fold{k}": dict(shared) for k in folds} or {"": shared}
    for name, path in models.items():
        if MEMBER.match(name):
            fold, _, own = name.partition(".")
            members[fold][own] = path
    return members


def name_members(runs: Sequence[str]) -> dict[str, str]:
    """All that these runs ship as `models` names it: member<n>.<name> → <run>:<name>.

    Raises FileNotFoundError for a run that is not complete, ValueError for one that is named twice.
    """
    if twice := [run for place, run in enumerate(runs) if run in runs[:place]]:
        raise ValueError(f"members: {twice[0]} stands there twice: its weight says how much it counts")
    named: dict[str, str] = {}
    for number, run in enumerate(runs):
        shipped = list_members(read_models(read_complete(f"member{number}", run).settings["ship"]))
        names = {name for models in shipped.values() for name in models}
        named |= {f"member{number}.{name}": f"{run}:{name}" for name in sorted(names)}
    return named


def find_member(models: Models, number: int) -> dict[str, Path]:
    """The models of member<number> under their own names."""
    prefix = f"member{number}."
    return {name.removeprefix(prefix): path for name, path in models.items() if name.startswith(prefix)}


def list_lenders(config: Mapping[str, Any]) -> list[str]:
    """The runs that a recorded config takes models of, or has as its members."""
    return list(dict.fromkeys([run for _, run in list_runs(config.get("models", {}))] + config.get("members", [])))


def find_shipped(borrowed: Mapping[str, str]) -> dict[str, Path]:
    """What ships beside the experiment's own models, by name; as fold<k>.<name> where the other run ships its folds."""

    def pick(name: str, text: str, run: records.Record, model: str) -> dict[str, Path]:
        members = list_members(read_models(run.settings["ship"]))
        own = {fold: pick_model(name, text, models, model) for fold, models in members.items()}
        first, *others = own.values()
        if all(other == first for other in others):
            return first
        return {f"{fold}.{key}": path for fold, models in own.items() for key, path in models.items()}

    return find_models(borrowed, pick)


def find_fold(borrowed: Mapping[str, str], fold: int) -> dict[str, Path]:
    """What predicts fold `fold` in CV, by name: of another run the model that it trained without its own such fold."""

    def pick(name: str, text: str, run: records.Record, model: str) -> dict[str, Path]:
        models = run.settings["fold_models"]
        if str(fold) not in models:
            lender = text.partition(":")[0]
            raise ValueError(
                f"models.{name} = {text!r}: {lender} validated fold {', '.join(models)} and not fold {fold}"
            )
        return pick_model(name, text, read_models(models[str(fold)]), model)

    return find_models(borrowed, pick)


def find_models(
    borrowed: Mapping[str, str], pick: Callable[[str, str, records.Record, str], dict[str, Path]]
) -> dict[str, Path]:
    """Folders as they are, and what `pick` takes of another run: (name, its text, the run's record, the model)."""
    found: dict[str, Path] = {}
    for name, text in borrowed.items():
        if ":" in text:
            run, model = split_name(name, text)
            found |= pick(name, text, read_complete(name, run), model)
        else:
            found |= find_folder(name, text)
    return found


def check_held_out(borrowed: Mapping[str, str], validated: Mapping[int, Sequence[str]]) -> None:
    """Raises ValueError where a borrowed model was trained on rows that it is to be scored on: a leak.

    validated: of every fold the ids that are scored. Without a run nothing says what a model was trained on.
    """
    for name, run in list_runs(borrowed):
        held_out = read_held_out(name, run)
        for fold, ids in validated.items():
            seen = [row for row in ids if row not in held_out.get(fold, set())]
            if seen:
                raise ValueError(
                    f"models.{name} is a leak: {len(seen)} of the {len(ids)} rows of fold {fold} (first {seen[:3]}) "
                    f"were not held out in fold {fold} of {run}. Give both runs the same folds and rows"
                )


def join_models(own: Models, borrowed: Models) -> dict[str, Path]:
    """Both; raises ValueError for a name in both, and where an ensemble's members would not all have all."""
    twice = sorted(own.keys() & borrowed.keys())
    if twice:
        raise ValueError(f"models.{twice[0]}: the experiment has a model of this name, choose another one")
    joined = {**own, **borrowed}
    members = list_members(joined)
    names = {name for models in members.values() for name in models}
    for fold, models in members.items():
        if lacking := sorted(names - models.keys()):
            raise ValueError(
                f"{lacking[0]} of {fold} does not ship, though other folds' do: ship the same folds of both"
            )
    return joined


def list_runs(borrowed: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Name and run of those that another run made."""
    for name, text in borrowed.items():
        if ":" in text:
            yield name, text.partition(":")[0]


def split_name(name: str, text: str) -> tuple[str, str]:
    run, _, model = text.partition(":")
    if not run or not model:
        raise ValueError(f"models.{name} = {text!r}: write <run>:<model>, or the path of a folder")
    return run, model


def find_folder(name: str, text: str) -> dict[str, Path]:
    folder = paths.absolute(text)
    if not folder.is_dir():
        raise FileNotFoundError(f"models.{name} = {text!r} is no folder: write <run>:<model>, or the path of a folder")
    return {name: folder}


def pick_model(name: str, text: str, models: Models, model: str) -> dict[str, Path]:
    """The model under its new name, and beside an adapter its base."""
    if model not in models:
        raise ValueError(f"models.{name} = {text!r}: that run has no model {model!r}, it has {', '.join(models)}")
    found = {name: models[model]}
    if f"{model}_base" in models:
        found[f"{name}_base"] = models[f"{model}_base"]
    for path in found.values():
        if not path.is_dir():
            raise FileNotFoundError(
                f"models.{name} = {text!r}: {paths.relative(path)} is not here: train that run here"
            )
    return found


def read_complete(name: str, run: str) -> records.Record:
    record = records.read_record(paths.run_folder(run))
    if record is None:
        raise FileNotFoundError(f"models.{name}: {run} is no complete run: finish its train.py first")
    return record


def read_models(recorded: Mapping[str, str]) -> dict[str, Path]:
    return {name: paths.absolute(path) for name, path in recorded.items()}


def read_held_out(name: str, run: str) -> dict[int, set[str]]:
    """Fold → ids of the rows that the run predicted with a model that had not seen them."""
    import polars as pl

    read_complete(name, run)
    path = paths.run_folder(run) / "oof.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"models.{name}: {paths.relative(path)} is not here: train that run here")
    oof = pl.read_parquet(path, columns=["id", "fold"])
    return {fold: set(part["id"]) for (fold,), part in oof.group_by("fold")}
