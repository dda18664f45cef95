"""Where an experiment's models come from: its config's `models`, and the runs of its `members`.

`name: <folder>` is a downloaded model, the same in every fold; train.py may fine-tune it.
`name: <run>:<model>` is a model that another run ships; in CV fold k uses the one that the run trained for its fold k.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.competition.rankings import read_oof
from kaggle_llm.inference.model import Model, read_models

Pick = Callable[[str, str, records.Record], list[Model]]  # config key (for messages), run, its record → its models


def list_borrowed_runs(config: Mapping[str, Any]) -> list[str]:
    """The runs whose models a recorded config uses, in `models` or as `members`."""
    return list(dict.fromkeys([run for _, run in list_runs(config.get("models", {}))] + config.get("members", [])))


def find_shipped(models: Mapping[str, str], members: Sequence[str] = ()) -> list[Model]:
    """The models that ship; where a run ships its folds, the models of all of them."""

    def pick(key: str, run: str, record: records.Record) -> list[Model]:
        return read_models(record.settings["ship"])

    return collect_models(models, members, pick)


def find_fold(models: Mapping[str, str], members: Sequence[str], fold: int) -> list[Model]:
    """The models that predict fold `fold` in CV: of another run those that it trained for the same fold."""

    def pick(key: str, run: str, record: records.Record) -> list[Model]:
        by_fold = record.settings["fold_models"]
        if str(fold) not in by_fold:
            raise ValueError(f"{key}: {run} validated fold {', '.join(by_fold)} and not fold {fold}")
        return read_models(by_fold[str(fold)])

    return collect_models(models, members, pick)


def collect_models(models: Mapping[str, str], members: Sequence[str], pick: Pick) -> list[Model]:
    """Model folders as they are, and what `pick` takes of other runs; raises FileNotFoundError for missing folders."""
    collected: list[Model] = []
    for name, text in models.items():
        key = f"models.{name} = {text!r}"
        if ":" not in text:
            collected.append(Model(name, paths.model_folder(text)))
            continue
        run, own_name = split_name(key, text)
        run_models = pick(key, run, records.read_complete(run, key))
        matches = [model for model in run_models if model.name == own_name and model.member is None]
        if not matches:
            names = ", ".join(model.name for model in run_models if model.member is None)
            raise ValueError(f"{key}: that run has no model {own_name!r}, it has {names}")
        collected += merge_equal_folds([replace(model, name=name) for model in matches])
    for number, run in enumerate(members):
        run_models = pick(f"members: {run}", run, records.read_complete(run, "members"))
        collected += [replace(model, member=number) for model in run_models]
    check_folders_exist(collected)
    return collected


def merge_equal_folds(models: Sequence[Model]) -> list[Model]:
    """One model without a fold where all folds have the same, else `models`."""
    different = {replace(model, fold=None) for model in models}
    return list(different) if len(different) == 1 else list(models)


def check_folders_exist(models: Sequence[Model]) -> None:
    for model in models:
        for folder in model.folders:
            if not folder.is_dir():
                raise FileNotFoundError(
                    f"model {model.label}: {paths.relative(folder)} is not here: train that run here"
                )


def check_member_runs(members: Sequence[str], competition: str) -> None:
    """Raises ValueError for a run that is listed twice, one of another competition, and one with members of its own."""
    if repeated := [run for i, run in enumerate(members) if run in members[:i]]:
        raise ValueError(f"members: {repeated[0]} is listed twice: its weight says how much it counts")
    for run in members:
        config = records.read_complete(run, "members").settings["config"]
        if (other := config["competition"]["name"]) != competition:
            raise ValueError(f"members: {run} is of {other}, not of {competition}")
        if own := config.get("members"):
            raise ValueError(f"members: {run} has members of its own: name these in its place: {', '.join(own)}")


def check_not_itself(run: str, config: Mapping[str, Any]) -> None:
    """Raises ValueError where a run would take its members or models from itself: its training replaces them."""
    if run in list_borrowed_runs(config):
        raise ValueError(f"{run} is named in its own members or models: give this training another name, run=NAME")


def check_held_out(borrowed: Mapping[str, str], validated: Mapping[int, Sequence[str]]) -> None:
    """Raises ValueError where a model of another run was trained on rows that it will be scored on: a leak.

    validated: fold → ids of its scored rows. Model folders without a run cannot be checked.
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
    """Name and run of the models that come from another run."""
    for name, text in borrowed.items():
        if ":" in text:
            yield name, text.partition(":")[0]


def split_name(key: str, text: str) -> tuple[str, str]:
    run, _, model = text.partition(":")
    if not run or not model:
        raise ValueError(f"{key}: write <run>:<model>, or the path of a folder")
    return run, model


def read_held_out(name: str, run: str) -> dict[int, set[str]]:
    """Fold → ids of the rows that the run predicted out of fold."""
    oof = read_oof(run, f"models.{name}")
    return {fold: set(rows["id"]) for (fold,), rows in oof.group_by("fold")}
