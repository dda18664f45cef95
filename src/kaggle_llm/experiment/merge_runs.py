"""A run whose models are merged from those of other runs: `kaggle-llm merge RUN RUN… --method ties`.

Fold k's model is merged from the runs' models of fold k, and the model that ships from those that they ship, so CV,
`compare`, `bundle` and `rehearse` work as for any run. Leaves output/<experiment>--<name>/.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from kaggle_llm.base import paths, records
from kaggle_llm.base.arguments import parse_arguments, run_name
from kaggle_llm.base.config import load_config
from kaggle_llm.experiment.experiment import Experiment
from kaggle_llm.experiment.part import Part
from kaggle_llm.inference.borrowed import check_held_out, find_fold, find_shipped
from kaggle_llm.inference.cross_fit import DECISION_MODEL
from kaggle_llm.inference.model import read_models
from kaggle_llm.inference.run import import_predict
from kaggle_llm.weights.soup import SoupSettings


def merge_runs(runs: Sequence[str], settings: SoupSettings, name: str) -> str:
    """Merge, score and complete the run; returns its name.

    ties and dare merge the runs' differences to the config's model of the same name.
    Raises FileNotFoundError for a run that is not complete, ValueError where runs validated different rows, trained no
    model, did not merge their adapter or have a quantised model.
    """
    record = records.read_complete(runs[0])
    exp = paths.experiment_folder(runs[0])
    config = load_config(paths.run_folder(runs[0]) / "config.yaml", import_predict(exp).Config)
    if config.ship == "average":
        raise ValueError(f"{runs[0]} has ship = average: merge runs that ship fold0, folds or full")
    trained = list_trained(runs[0], record)
    smoke = bool(records.read_json(paths.run_folder(runs[0]) / "metrics.json")["smoke"])
    merged = run_name(exp.name, parse_arguments([f"run={name}", *["--smoke"] * smoke]))
    check_name(merged)
    command = ["kaggle-llm", "merge", *runs, *describe_options(settings), "--name", name]
    experiment = Experiment(exp, merged, config, smoke, command, runs)
    validated = {fold: experiment.rows_of(fold)["id"].to_list() for fold in experiment.folds}
    for run in runs:
        check_held_out({model: f"{run}:{model}" for model in trained}, validated)
    for part in experiment.parts():
        for model in trained:
            part.merge(model, {run: find_weights(run, model, part) for run in runs}, settings)
    experiment.score()
    experiment.ship()
    return experiment.name


def check_name(run: str) -> None:
    """Raises FileExistsError where the run of that name was trained: its scores would be overwritten."""
    folder = paths.run_folder(run)
    if any(folder.glob("**/adapter")) or any(folder.glob("**/trained")):
        raise FileExistsError(f"{paths.relative(folder)} is a trained run: choose another --name")


def describe_options(settings: SoupSettings) -> list[str]:
    """The command's options that are not the defaults."""
    changed = {key: value for key, value in asdict(settings).items() if value != asdict(SoupSettings())[key]}
    return [word for key, value in changed.items() for word in (f"--{key}", write_option(value))]


def write_option(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def list_trained(run: str, record: records.Record) -> list[str]:
    """Names of the models that a run trained itself: their weights lie in its folder."""
    models = read_models(next(iter(record.settings["fold_models"].values())))
    own = [model for model in models if model.folder.is_relative_to(paths.run_folder(run)) and model.member is None]
    trained = [model.name for model in own if model.name != DECISION_MODEL]
    if not trained:
        raise ValueError(f"{run} trained no model: there is nothing to merge")
    return trained


def find_weights(run: str, name: str, part: Part) -> Path:
    """The folder of model `name` that predicts the part's rows in `run`."""
    lent = {name: f"{run}:{name}"}
    models = find_shipped(lent) if part.fold is None else find_fold(lent, [], part.fold)
    if len(models) > 1:
        raise ValueError(f"{run} ships {len(models)} models {name!r}, one of each fold: merge runs that ship one")
    (model,) = models
    if model.base is not None:
        raise ValueError(f"{run}: {name} is an adapter beside its base: train it with merge.into=original")
    return model.folder
