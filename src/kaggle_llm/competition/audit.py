"""The leak audit of an experiment: before every training, and of a complete run. Leaves output/<run>/leaks.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths, records
from kaggle_llm.competition.competition import TRAIN, Competition, CompetitionSettings, load_competition
from kaggle_llm.competition.folds import ALWAYS_TRAIN
from kaggle_llm.competition.leaks import (
    Finding,
    LeakLimits,
    LeakSettings,
    audit,
    check_leaks,
    find_evaluated_training_rows,
    print_findings,
    write_findings,
)

if TYPE_CHECKING:
    import polars as pl


def audit_folds(competition: Competition, fold: pl.Series, validated: Sequence[int], config: Any, folder: Path) -> None:
    """Before anything is trained: leaks.json in the run's folder; raises ValueError where a leak is above its limit.

    fold: of every training row, with all rows of all folds: a smoke run finds what the real one would. validated: the
    folds whose leaks count.
    """
    teacher = config.distillation.teacher if hasattr(config, "distillation") else ""
    scored = read_teacher_rows(teacher) if teacher else None
    rows = read_rows(competition, config.leaks)
    found = audit(rows, fold, config.leaks, competition.tables[TRAIN].texts, scored)
    findings = [one for one in found if one.fold is None or one.fold in validated]
    print_findings(findings, config.leaks, folder.name)
    write_findings(findings, folder / "leaks.json")
    check_leaks(findings, config.leaks)


def audit_run(run: str) -> list[Finding]:
    """The audit of a complete run, from its config, its out-of-fold rows and where its folds' models lie.

    A training row that was not validated counts as fold −1; rows that train.py added to the competition's are not
    in the run's files and so are not seen. `evaluated` goes by the folder of a fold's model: see `_trained_rows`.
    Raises FileNotFoundError where the run is not complete, ValueError where train.csv is not what it was.
    """
    record, oof = _read_run(run)
    config = record.settings["config"]
    settings = read_settings(config)
    competition = load_competition(CompetitionSettings(**config["competition"]))
    if record.inputs.get("train.csv") != records.hash_file(competition.folder / "train.csv"):
        raise ValueError(f"{run} was trained on another train.csv than {competition.folder} holds: train it again")
    rows = read_rows(competition, settings)
    fold = rows.select("id").join(oof.select("id", "fold"), on="id", how="left", maintain_order="left")["fold"]
    name = config.get("distillation", {}).get("teacher", "")
    teacher = read_teacher_rows(name) if name else None
    findings = audit(rows, fold.fill_null(ALWAYS_TRAIN), settings, competition.tables[TRAIN].texts, teacher)
    validated = {k: part["id"].to_list() for (k,), part in oof.group_by("fold", maintain_order=True)}
    models = record.settings["fold_models"]
    trained = {
        int(k): _trained_rows([one["folder"] for one in named], rows["id"].to_list()) for k, named in models.items()
    }
    return findings + find_evaluated_training_rows(trained, validated)


def report_run(run: str) -> None:
    """`kaggle-llm audit`: print and write what is found; raises ValueError where it is above a limit."""
    findings = audit_run(run)
    settings = read_settings(_read_run(run)[0].settings["config"])
    print_findings(findings, settings, run)
    write_findings(findings, paths.run_folder(run) / "leaks.json")
    check_leaks(findings, settings)


def read_settings(config: Mapping[str, Any]) -> LeakSettings:
    """The section `leaks` of a recorded config; the defaults where it has none."""
    section = dict(config.get("leaks") or {})
    return LeakSettings(**section | {"limits": LeakLimits(**section.get("limits") or {})})


def read_rows(competition: Competition, settings: LeakSettings) -> pl.DataFrame:
    """The training table, and the group's column of train.csv where the table leaves it out."""
    rows = competition.table(TRAIN)
    if not settings.group or settings.group in rows.columns:
        return rows
    raw = competition.read(TRAIN)
    if settings.group not in raw.columns:
        raise ValueError(f"leaks.group = {settings.group!r}: train.csv has the columns {raw.columns}")
    return rows.with_columns(raw[settings.group])


def read_teacher_rows(teacher: str) -> pl.DataFrame:
    """What a teacher scored: a run's oof.parquet, or a parquet file. Raises FileNotFoundError where there is none."""
    import polars as pl

    path = paths.absolute(teacher)
    if path.suffix != ".parquet":
        path = paths.run_folder(teacher) / "oof.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"distillation.teacher = {teacher!r}: {paths.relative(path)} does not exist")
    return pl.read_parquet(path)


def _read_run(run: str) -> tuple[records.Record, pl.DataFrame]:
    import polars as pl

    folder = paths.run_folder(run)
    record = records.read_record(folder)
    if record is None:
        raise FileNotFoundError(
            f"{run} is no complete run: train it with python exp/{run.split('--')[0]}/train.py, which audits first"
        )
    return record, pl.read_parquet(folder / "oof.parquet")


def _trained_rows(models: Iterable[str], ids: Sequence[str]) -> set[str]:
    """Rows that models in output/<run>/fold<k>/ (all but that run's fold k) or output/<run>/full/ were trained on.

    A model that lies elsewhere counts as trained on none of the competition's rows.
    """
    found: set[str] = set()
    for model in models:
        place = re.match(r"output/([^/]+)/(?:fold(\d+)|full)(?:/|$)", model)
        if place:
            run, fold = place.groups()
            found |= set(ids) - (_held_out(run, int(fold)) if fold else set())
    return found


def _held_out(run: str, fold: int) -> set[str]:
    oof = _read_run(run)[1]
    return set(oof.filter(oof["fold"] == fold)["id"])
