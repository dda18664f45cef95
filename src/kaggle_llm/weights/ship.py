"""What an experiment ships: one fold's weights, all folds as an ensemble, their average, or a refit on all rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from kaggle_llm.base import paths, records
from kaggle_llm.inference.borrowed import list_borrowed_runs

Ship = Literal["fold0", "folds", "average", "full"]


def describe_cv(config: Mapping[str, Any]) -> str:
    """Why the CV of a run is not the score of what it ships; "" where it is.

    config: the one in its record. Also looks at the runs that it takes models from, where they are on this machine.
    """
    how = config.get("ship", "fold0")
    note = {
        "average": "no CV of its own: the average of folds saw every row in training",
        "full": "no CV of its own: the refit saw every row in training",
    }.get(how, "")
    for run in list_borrowed_runs(config):
        record = records.read_record(paths.run_folder(run))
        if not note and record and (theirs := describe_cv(record.settings["config"])):
            note = f"{run} has {theirs}"
    return note
