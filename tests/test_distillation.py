"""A teacher's out-of-fold scores as soft labels: what is refused, what is attached, what is recorded."""

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest

from kaggle_llm.engines.prompts import Group
from kaggle_llm.tasks.distillation import (
    DistillationSettings,
    Teacher,
    attach_teacher,
    load_teacher,
    record_teacher,
)

GROUPS = [Group("r0", ("b", "a"), (0.0, 1.0)), Group("r1", ("a", "c"), (1.0, 0.0))]


def save(folder: Path, folds: Sequence[int | None] | None) -> DistillationSettings:
    frame = pl.DataFrame(
        {"id": ["r0", "r1"], "items": [["a", "b"], ["a", "b"]], "scores": [[2.0, 1.0], [4.0, 3.0]]},
        schema={"id": pl.String(), "items": pl.List(pl.String()), "scores": pl.List(pl.Float64())},
    )
    if folds is not None:
        frame = frame.with_columns(fold=pl.Series(list(folds), dtype=pl.Int64()))
    frame.write_parquet(folder / "oof.parquet")
    return DistillationSettings(teacher=str(folder / "oof.parquet"))


def test_out_of_fold_scores_are_taken_item_by_item(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = load_teacher(save(tmp_path, [0, 1]))
    first, second = attach_teacher(GROUPS, teacher)
    assert first.teacher == (1.0, 2.0), "in the order of the group's items"
    assert second.teacher is None, "c was not scored: hard labels"
    assert "1 of 2 groups have an item without a teacher's score" in capsys.readouterr().out


@pytest.mark.parametrize(("folds", "first"), [([-1, 0], "r0"), ([0, None], "r1"), (None, "r0")])
def test_rows_that_the_teacher_was_trained_on_are_refused(
    tmp_path: Path, folds: Sequence[int | None] | None, first: str
) -> None:
    with pytest.raises(ValueError, match=rf"of its 2 rows .*first \['{first}'.*distillation.allow_in_sample=true"):
        load_teacher(save(tmp_path, folds))


def test_allowed_in_sample_rows_are_recorded(tmp_path: Path) -> None:
    settings = save(tmp_path, [-1, 0])
    settings.allow_in_sample = True
    teacher = load_teacher(settings)
    record_teacher(settings, teacher, GROUPS, tmp_path)
    assert json.loads((tmp_path / "teacher.json").read_text())["in_sample"] == ["r0"]


def test_a_teacher_of_other_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"no scores for 1 of 2 rows, first \['r1'\]"):
        attach_teacher(GROUPS, Teacher({"r0": {"a": 1.0, "b": 2.0}}, []))


def test_a_teacher_that_is_not_there_is_named() -> None:
    with pytest.raises(FileNotFoundError, match=r"output/exp9/oof.parquet does not exist"):
        load_teacher(DistillationSettings(teacher="exp9"))


@pytest.mark.parametrize("words", [{"weight": 1.5}, {"temperature": 0.0}, {"cosine": -1.0}])
def test_settings_out_of_range_are_refused(words: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(words))):
        DistillationSettings(**words)
