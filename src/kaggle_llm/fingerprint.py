"""Content hashes of what a step is made from: files, rows, values, and the code that a prediction runs through."""

from __future__ import annotations

import ast
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from kaggle_llm import records

# Rooms whose code a prediction runs through: a change there makes predictions again.
PREDICTION_ROOMS = (
    "competition.py",
    "competitions",
    "prompts.py",
    "rankings.py",
    "borrowed.py",
    "run.py",
    "member.py",
    "inference",
    "retrieval",
    "cv/decisions.py",
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


def hash_code() -> str:
    """Hash of the source that a prediction runs through."""
    package = Path(__file__).parent
    files: list[Path] = []
    for room in PREDICTION_ROOMS:
        files += sorted((package / room).glob("*.py")) if (package / room).is_dir() else [package / room]
    return records.hash_json({path.relative_to(package).as_posix(): hash_source(path) for path in files})
