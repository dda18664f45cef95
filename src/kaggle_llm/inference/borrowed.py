"""Where an experiment's models come from: its config's `models`, and the runs of its `members`.

`name: <folder>` is a model that nobody here trained, the same in every fold; train.py may train it further.
`name: <run>:<model>` is a model that another run ships; in fold k's CV it is the one that the run trained for its own
fold k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.inference.model import Model, read_models

Pick = Callable[[str, str, records.Record], list[Model]]  # what a text of `models` says, and its run → all its models


def list_lenders(config: Mapping[str, Any]) -> list[str]:
    """The runs that a recorded config takes models of, or has as its members."""
    return list(dict.fromkeys([run for _, run in list_runs(config.get("models", {}))] + config.get("members", [])))


def find_shipped(models: Mapping[str, str], members: Sequence[str] = ()) -> list[Model]:
    """What ships of all of them, in an ensemble of folds where a lender ships its folds."""

    def pick(where: str, run: str, record: records.Record) -> list[Model]:
        return read_models(record.settings["ship"])

    return find_models(models, members, pick)


def find_fold(models: Mapping[str, str], members: Sequence[str], fold: int) -> list[Model]:
    """What predicts fold `fold` in CV: of another run the models that it trained without its own such fold."""

    def pick(where: str, run: str, record: records.Record) -> list[Model]:
        known = record.settings["fold_models"]
        if str(fold) not in known:
            raise ValueError(f"{where}: {run} validated fold {', '.join(known)} and not fold {fold}")
        return read_models(known[str(fold)])

    return find_models(models, members, pick)


def find_models(models: Mapping[str, str], members: Sequence[str], pick: Pick) -> list[Model]:
    """Folders as they are, and what `pick` takes of other runs; raises FileNotFoundError for what is not here."""
    found: list[Model] = []
    for name, text in models.items():
        where = f"models.{name} = {text!r}"
        if ":" not in text:
            found.append(Model(name, paths.model_folder(text)))
            continue
        run, own = split_name(where, text)
        known = pick(where, run, read_complete(where, run))
        chosen = [one for one in known if one.name == own]
        if not chosen:
            raise ValueError(f"{where}: that run has no model {own!r}, it has {', '.join(one.name for one in known)}")
        found += join_alike([replace(one, name=name) for one in chosen])
    for number, run in enumerate(members):
        own_models = pick(f"members: {run}", run, read_complete("members", run))
        found += [replace(one, member=number) for one in own_models]
    check_here(found)
    return found


def join_alike(models: Sequence[Model]) -> list[Model]:
    """One model without a fold where all folds have the same."""
    alike = {replace(model, fold=None) for model in models}
    return list(alike) if len(alike) == 1 else list(models)


def check_here(models: Sequence[Model]) -> None:
    for model in models:
        for folder in model.folders:
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"model {model.label}: {paths.relative(folder)} is not here: train that run here"
                )


def check_members(members: Sequence[str], competition: str) -> None:
    """Raises ValueError for a run that is named twice, and for one of another competition."""
    if twice := [run for place, run in enumerate(members) if run in members[:place]]:
        raise ValueError(f"members: {twice[0]} stands there twice: its weight says how much it counts")
    for run in members:
        other = read_complete("members", run).settings["config"]["competition"]["name"]
        if other != competition:
            raise ValueError(f"members: {run} is of {other}, not of {competition}")


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


def list_runs(borrowed: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Name and run of those that another run made."""
    for name, text in borrowed.items():
        if ":" in text:
            yield name, text.partition(":")[0]


def split_name(where: str, text: str) -> tuple[str, str]:
    run, _, model = text.partition(":")
    if not run or not model:
        raise ValueError(f"{where}: write <run>:<model>, or the path of a folder")
    return run, model


def read_complete(where: str, run: str) -> records.Record:
    record = records.read_record(paths.run_folder(run))
    if record is None:
        raise FileNotFoundError(f"{where}: {run} is no complete run: finish its train.py first")
    return record


def read_held_out(name: str, run: str) -> dict[int, set[str]]:
    """Fold → ids of the rows that the run predicted with a model that had not seen them."""
    import polars as pl

    read_complete(f"models.{name}", run)
    path = paths.run_folder(run) / "oof.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"models.{name}: {paths.relative(path)} is not here: train that run here")
    oof = pl.read_parquet(path, columns=["id", "fold"])
    return {fold: set(part["id"]) for (fold,), part in oof.group_by("fold")}
