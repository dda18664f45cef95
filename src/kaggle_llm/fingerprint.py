"""Content hashes of what a step is made from: files, rows, values, and the code that a prediction runs through."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm import paths, records

if TYPE_CHECKING:
    import polars as pl

# Rooms whose code a prediction runs through: a change there makes predictions again.
PREDICTION_ROOMS = (
    "competition.py",
    "prompts.py",
    "rankings.py",
    "borrowed.py",
    "run.py",
    "member.py",
    "inference",
    "retrieval",
    "spans.py",
    "cv/blends.py",
    "cv/decisions.py",
    "cv/outside.py",
    "cv/temperature.py",
    "cv/thresholds.py",
)


def hash_input(value: Any) -> str:
    """Content hash of a step's input: a path, a polars frame or series, a dataclass, or a value of JSON."""
    import polars as pl

    if isinstance(value, Path):
        return records.hash_content(value)
    if isinstance(value, pl.Series):
        value = value.to_frame()
    if isinstance(value, pl.DataFrame):
        return records.hash_json([value.columns, value.rows()])
    return records.hash_json(asdict(value) if is_dataclass(value) and not isinstance(value, type) else value)


def hash_source(path: Path) -> str:
    """Hash of what a Python file does: comments and layout do not count."""
    return records.hash_json(ast.dump(ast.parse(path.read_text(encoding="utf-8"))))


def hash_code(competition: str) -> str:
    """Hash of the source that a prediction of this competition runs through."""
    package = Path(__file__).parent
    files: list[Path] = []
    for room in PREDICTION_ROOMS:
        files += sorted((package / room).glob("*.py")) if (package / room).is_dir() else [package / room]
    files.append(package / "competitions" / f"{competition.replace('-', '_')}.py")
    return records.hash_json({path.relative_to(package).as_posix(): hash_source(path) for path in files})


def list_changed_code(run: str) -> Iterator[tuple[Path, list[str]]]:
    """The out-of-fold steps of a run that other code than today's made, and what has changed since."""
    run_record = records.read_record(paths.run_folder(run))
    if run_record is None:
        return
    code = hash_code(run_record.settings["config"]["competition"]["name"])
    now = {"predict.py": hash_source(paths.experiment_folder(run) / "predict.py"), "prediction code": code}
    for path in sorted(paths.run_folder(run).glob("fold*/oof")):
        record = records.read_record(path)
        changed = [name for name, value in now.items() if record and record.inputs.get(name) != hash_input(value)]
        if changed:
            yield path, changed


def read_answers(run: str) -> pl.DataFrame:
    """The RANKING and fold of every row that a complete run validated.

    Raises FileNotFoundError where the run is not complete here, and ValueError where the code that answered has changed
    since: what would ship is not what was recorded.
    """
    import polars as pl

    path = paths.run_folder(run) / "oof.parquet"
    if records.read_record(path.parent) is None or not path.is_file():
        raise FileNotFoundError(
            f"{run} is no complete run here: finish python exp/{run.split('--')[0]}/train.py with its words first"
        )
    for step, changed in list_changed_code(run):
        raise ValueError(f"{paths.relative(step)}: {', '.join(changed)} changed since: train {run} again")
    return pl.read_parquet(path, columns=["id", "items", "scores", "fold"])
