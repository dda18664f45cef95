"""The leak audit, before every training and of a complete run. Leaves output/<run>/leaks.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths, records
from kaggle_llm.competition.competition import TRAIN, Competition, CompetitionSettings, load_competition
from kaggle_llm.competition.folds import ALWAYS_TRAIN
from kaggle_llm.competition.leaks import (
    Leak,
    LeakLimits,
    LeakSettings,
    check_leaks,
    find_evaluated_training_rows,
    find_leaks,
    print_leaks,
    write_leaks,
)
from kaggle_llm.competition.rankings import read_oof

if TYPE_CHECKING:
    import polars as pl


def audit_folds(competition: Competition, fold: pl.Series, validated: Sequence[int], config: Any, folder: Path) -> None:
    """Audit before training: writes leaks.json in the run's folder; raises ValueError for a leak above its limit.

    fold: of every training row, all folds and rows, so that a smoke run finds what the real one would; null for rows
    that are neither trained on nor validated. validated: the folds whose leaks count.
    """
    teacher = config.distillation.teacher if hasattr(config, "distillation") else ""
    teacher_rows = read_teacher_rows(teacher) if teacher else None
    rows = read_training_rows(competition, config.leaks)
    rows, fold = rows.filter(fold.is_not_null()), fold.drop_nulls()
    leaks = find_leaks(rows, fold, config.leaks, competition.tables[TRAIN].texts, teacher_rows)
    leaks = [leak for leak in leaks if leak.fold is None or leak.fold in validated]
    report_leaks(leaks, config.leaks, folder)


def audit_run(run: str) -> list[Leak]:
    """The leaks of a complete run, from its config, its out-of-fold rows and its folds' models.

    Training rows that were not validated count as fold −1, in an ensemble not at all; rows that train.py added to the
    competition's are not in the run's files, so they are not audited. `evaluated` is judged by the folder of a fold's
    model: see `_trained_rows`. Raises FileNotFoundError where the run is not complete, ValueError where its training
    table has changed.
    """
    record, oof = records.read_complete(run), read_oof(run)
    config = record.settings["config"]
    settings = read_settings(config)
    competition = load_competition(CompetitionSettings(**config["competition"]))
    train = competition.file(TRAIN)
    if record.inputs.get(train.name) != records.hash_file(train):
        raise ValueError(
            f"{run} was trained on another {train.name} than the one in {competition.folder}: train it again"
        )
    rows = read_training_rows(competition, settings)
    fold = rows.select("id").join(oof.select("id", "fold"), on="id", how="left", maintain_order="left")["fold"]
    fold = fold if config.get("members") else fold.fill_null(ALWAYS_TRAIN)
    teacher = config.get("distillation", {}).get("teacher", "")
    teacher_rows = read_teacher_rows(teacher) if teacher else None
    used, folds = rows.filter(fold.is_not_null()), fold.drop_nulls()
    leaks = find_leaks(used, folds, settings, competition.tables[TRAIN].texts, teacher_rows)
    validated = {k: part["id"].to_list() for (k,), part in oof.group_by("fold", maintain_order=True)}
    trained = {
        int(k): _trained_rows([model["folder"] for model in models], rows["id"].to_list())
        for k, models in record.settings["fold_models"].items()
    }
    return leaks + find_evaluated_training_rows(trained, validated)


def report_run(run: str) -> None:
    """`kaggle-llm audit`: print and write the leaks; raises ValueError for one above its limit."""
    leaks = audit_run(run)
    report_leaks(leaks, read_settings(records.read_complete(run).settings["config"]), paths.run_folder(run))


def report_leaks(leaks: Sequence[Leak], settings: LeakSettings, folder: Path) -> None:
    print_leaks(leaks, settings, folder.name)
    write_leaks(leaks, folder / "leaks.json")
    check_leaks(leaks, settings)


def read_settings(config: Mapping[str, Any]) -> LeakSettings:
    """The section `leaks` of a recorded config; the defaults where it has none."""
    section = dict(config.get("leaks") or {})
    return LeakSettings(**section | {"limits": LeakLimits(**section.get("limits") or {})})


def read_training_rows(competition: Competition, settings: LeakSettings) -> pl.DataFrame:
    """The training table, with the column leaks.group of its file where the table lacks it."""
    rows = competition.table(TRAIN)
    if not settings.group or settings.group in rows.columns:
        return rows
    raw = competition.read(TRAIN)
    if settings.group not in raw.columns:
        raise ValueError(
            f"leaks.group = {settings.group!r}: {competition.file_name(TRAIN)} has the columns {raw.columns}"
        )
    return rows.with_columns(raw[settings.group])


def read_teacher_rows(teacher: str) -> pl.DataFrame:
    """The rows that a teacher scored: a run's oof.parquet, or a parquet file. Raises FileNotFoundError without it."""
    import polars as pl

    path = paths.absolute(teacher)
    if path.suffix != ".parquet":
        path = paths.run_folder(teacher) / "oof.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"distillation.teacher = {teacher!r}: {paths.relative(path)} does not exist")
    return pl.read_parquet(path)


def _trained_rows(models: Iterable[str], ids: Sequence[str]) -> set[str]:
    """The rows that models were trained on, by their folders in output/<run>/: fold<k>/ (all but that fold) or full/.

    A model in another folder counts as trained on none of the competition's rows.
    """
    trained: set[str] = set()
    for model in models:
        match = re.match(r"output/([^/]+)/(?:fold(\d+)|full)(?:/|$)", model)
        if match:
            run, fold = match.groups()
            oof = read_oof(run) if fold else None
            held_out = set(oof.filter(oof["fold"] == int(fold))["id"]) if oof is not None else set()
            trained |= set(ids) - held_out
    return trained
