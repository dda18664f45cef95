"""What an experiment ships: one fold's weights, all folds as an ensemble, their average, or a refit on all rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kaggle_llm import paths, records
from kaggle_llm.borrowed import list_lenders
from kaggle_llm.weights.soup import untrained_rows

if TYPE_CHECKING:
    import polars as pl

Ship = Literal["fold0", "folds", "average", "full"]
Models = Mapping[str, Path]


def choose_models(
    how: Ship,
    fold: pl.Series,
    models: Callable[[int], Models],
    average: Callable[[Sequence[int]], Models],
    full: Callable[[], Models],
) -> dict[str, Path]:
    """The models by name that `experiment.ship` takes.

    how: fold0, the first validated fold's; folds, those of every validated fold, as fold<k>.<name> where they differ
    (`run.answer` averages their rankings); average, one model made of theirs; full, one trained on all rows.
    fold: of every training row, -1 for one that is not validated. models, average, full: make and return them.
    Raises ValueError for an average or an ensemble of fewer than two validated folds.
    """
    folds = sorted(set(fold.to_list()) - {-1})
    if how == "full":
        return dict(full())
    if how == "fold0":
        return dict(models(folds[0]))
    if len(folds) < 2:
        raise ValueError(f"ship = {how}, but only fold {folds} is validated: set folds.validate to two or more folds")
    if how == "folds":
        return name_members({k: models(k) for k in folds})
    held_out = [[str(row) for row, k in enumerate(fold) if k == one] for one in folds]
    print(f"average of folds {folds}: {untrained_rows(held_out)[1]}", flush=True)
    return dict(average(folds))


def name_members(models: Mapping[int, Models]) -> dict[str, Path]:
    """fold<k>.<name> of each fold; the plain name of what all folds share."""
    first = next(iter(models.values()))
    shared = {name: path for name, path in first.items() if all(own.get(name) == path for own in models.values())}
    own = {f"fold{k}.{name}": path for k, found in models.items() for name, path in found.items() if name not in shared}
    return shared | own


def describe_cv(config: Mapping[str, Any]) -> str:
    """What the CV of a run says about what it ships; "" where it is the score of just that.

    config: as its record has it. Models that it takes from other runs count too, as far as those runs are here.
    """
    how = config.get("ship", "fold0")
    note = {
        "average": "no CV of its own: the average of folds saw every row in training",
        "full": "no CV of its own: the refit saw every row in training",
    }.get(how, "")
    for run in list_lenders(config):
        record = records.read_record(paths.run_folder(run))
        if not note and record and (theirs := describe_cv(record.settings["config"])):
            note = f"{run} has {theirs}"
    return note
