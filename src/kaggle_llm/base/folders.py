"""A competitor's own code: experiments and competitions' modules. Standard library only."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

from kaggle_llm.base import paths, records

COMPETITIONS = Path(__file__).parents[1] / "competition"


def read_idea(experiment: Path) -> str:
    """The idea of an experiment: the first line of its train.py's docstring; "" where there is none."""
    train = experiment / "train.py"
    if not train.is_file():
        return ""
    return (ast.get_docstring(ast.parse(train.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def list_competitions() -> list[str]:
    """Kaggle's names of the competitions that have a module."""
    modules = sorted(path for path in COMPETITIONS.glob("*.py") if is_competition(path))
    return [module.stem.replace("_", "-") for module in modules]


def is_competition(path: Path) -> bool:
    """Whether a file of competition/ is one competition's module, and not shared by all."""
    return path.parent == COMPETITIONS and "\nCOMPETITION = " in path.read_text(encoding="utf-8")


def copy_experiment(source: str, target: str) -> Path:
    """exp/<source> → exp/<target>, without bytecode; output/<target>/parent.json names the source.

    Raises FileExistsError where the target exists, ValueError where the name is no experiment's name.
    """
    if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", target):
        raise ValueError(
            f"experiment name {target!r}: lower case, digits and single underscores, like exp014_negatives"
        )
    folder = paths.root() / "exp" / target
    if folder.exists():
        raise FileExistsError(f"{paths.relative(folder)} exists: choose another name")
    shutil.copytree(paths.experiment_folder(source), folder, ignore=shutil.ignore_patterns("__pycache__"))
    records.write_json(paths.run_folder(target) / "parent.json", {"parent": source})
    return folder
