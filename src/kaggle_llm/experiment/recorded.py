"""The out-of-fold answers of a complete run, and whether its prediction code is still the same."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths, records
from kaggle_llm.base.fingerprint import FROM_TEXTS, PACKAGE, hash_code
from kaggle_llm.competition.rankings import answer_columns, read_oof
from kaggle_llm.inference.answers import ENGINE_CODE

if TYPE_CHECKING:
    import polars as pl


def hash_prediction(exp: Path, config: Any) -> str:
    """Hash of the prediction code: predict.py with its imports, the competition's module, the engine.

    config: the dataclass, or the dict in a record.
    """
    competition = config["competition"]["name"] if isinstance(config, dict) else config.competition.name
    engine = config["engine"]["kind"] if isinstance(config, dict) else config.engine.kind
    module = PACKAGE / "competition" / f"{competition.replace('-', '_')}.py"
    predict = hash_code(exp / "predict.py", module, rooms=(*FROM_TEXTS, "decisions"))
    return records.hash_json([predict, hash_code(ENGINE_CODE[engine][0])])


def has_changed(run: str) -> bool:
    """Whether the prediction code has changed since the run was completed; False where it is not complete."""
    record = records.read_record(paths.run_folder(run))
    if record is None:
        return False
    return record.inputs["code"] != hash_prediction(paths.experiment_folder(run), record.settings["config"])


def read_answers(run: str) -> pl.DataFrame:
    """RANKING (or VALUES) and fold of every row that a complete run validated.

    Raises FileNotFoundError where the run is not complete, ValueError where its prediction code has changed since: then
    other answers would ship than those recorded.
    """
    oof, train = read_oof(run), f"python exp/{run.split('--')[0]}/train.py"
    if has_changed(run):
        raise ValueError(f"{run}: the prediction code has changed since: run {train}, which asks only what is new")
    return oof.select(*answer_columns(oof), "fold")
