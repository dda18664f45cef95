"""What a complete run answered, and whether the code that answered is still the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths, records
from kaggle_llm.base.fingerprint import FROM_TEXTS, PACKAGE, hash_code
from kaggle_llm.competition.rankings import answer_columns
from kaggle_llm.inference.answers import ENGINES

if TYPE_CHECKING:
    import polars as pl


def hash_prediction(exp: Path, config: Any) -> str:
    """Of the code between a row and its answer: predict.py with what it imports, the competition, the engine.

    config: resolved, or as a record has it.
    """
    competition = config["competition"]["name"] if isinstance(config, dict) else config.competition.name
    engine = config["engine"]["kind"] if isinstance(config, dict) else config.engine.kind
    module = PACKAGE / "competition" / f"{competition.replace('-', '_')}.py"
    answering = hash_code(exp / "predict.py", module, rooms=(*FROM_TEXTS, "decisions"))
    return records.hash_json([answering, hash_code(ENGINES[engine][0])])


def has_changed(run: str) -> bool:
    """Whether a complete run's answers come from other code than today's."""
    record = records.read_record(paths.run_folder(run))
    if record is None:
        return False
    return record.inputs["code"] != hash_prediction(paths.experiment_folder(run), record.settings["config"])


def read_answers(run: str) -> pl.DataFrame:
    """The RANKING and fold of every row that a complete run validated.

    Raises FileNotFoundError where the run is not complete here, and ValueError where the code that answered has changed
    since: what would ship is not what was recorded.
    """
    import polars as pl

    path, train = paths.run_folder(run) / "oof.parquet", f"python exp/{run.split('--')[0]}/train.py with its words"
    if records.read_record(path.parent) is None or not path.is_file():
        raise FileNotFoundError(f"{run} is no complete run here: finish {train} first")
    if has_changed(run):
        raise ValueError(f"{run}: the code that answers has changed since: run {train}, which asks only what is new")
    oof = pl.read_parquet(path)
    return oof.select(*answer_columns(oof), "fold")
