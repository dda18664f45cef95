"""`kaggle-llm check`: it says in seconds what a training or a rehearsal would stumble over."""

from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest

from kaggle_llm.base import paths
from kaggle_llm.competition import competition as competitions
from kaggle_llm.competition.competition import Competition, CompetitionSettings
from kaggle_llm.competition.forms import NumberColumns, OneProbability, RankedItems
from kaggle_llm.competition.metrics import mean_average_precision, roc_auc, root_mean_squared_error
from kaggle_llm.competition.table import Table
from kaggle_llm.rehearsal import check_competition as checking
from kaggle_llm.rehearsal import stage
from kaggle_llm.rehearsal.check_competition import check_competition

ROWS = 20


class Pick(RankedItems):
    tables: ClassVar = {"train": Table("id", ("text",), target="target"), "test": Table("id", ("text",))}
    labels, cut, metric = ("A", "B"), 1, mean_average_precision(1)


class Lossy(Pick):
    def items_in(self, cell: str) -> list[str]:
        return [cell.lower()]

    def legal_items(self) -> None:
        return None


class Chance(OneProbability):
    tables: ClassVar = Pick.tables
    labels, metric = ("A", "B"), roc_auc("B")


class Numbers(NumberColumns):
    tables: ClassVar = {"train": Table("id", ("text",), numbers=("x", "y")), "test": Table("id", ("text",))}
    metric = root_mean_squared_error()


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """check(competition's class) → the checks by name, on generated files that tests change before."""
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    folder = tmp_path / "input" / "made"
    folder.mkdir(parents=True)
    frame = pl.DataFrame(
        {"id": [f"r{i}" for i in range(ROWS)], "text": [f"row {i} of {i * 7919}" for i in range(ROWS)]}
    )
    train = frame.with_columns(
        target=pl.Series(["A", "B"] * (ROWS // 2)), x=pl.Series([i / 3 for i in range(ROWS)]), y=pl.lit("-1e-9")
    )
    train.write_csv(folder / "train.csv")
    test = frame[:3].with_columns(id="t" + pl.col("id"))
    test.write_csv(folder / "test.csv")
    test.select("id", answer=pl.lit("0.5")).write_csv(folder / "sample_submission.csv")

    def run(kind: type[Competition]) -> dict[str, Any]:
        def load(settings: CompetitionSettings, folder: Path | None = None) -> Competition:
            return kind(settings, folder)

        for module in (competitions, checking, stage):
            monkeypatch.setattr(module, "load_competition", load)
        if kind is Numbers:
            test.select("id", x=pl.lit("0"), y=pl.lit("0")).write_csv(folder / "sample_submission.csv")
        return {check.name: check for check in check_competition(CompetitionSettings("made"))}

    return run


@pytest.mark.parametrize(
    ("kind", "best"), [(Pick, "right answers score 1.0000"), (Chance, "score 1.0000"), (Numbers, "score 0.0000")]
)
def test_a_module_that_fits_passes_and_its_right_answers_score_best(check: Any, kind: type, best: str) -> None:
    checks = check(kind)
    assert list(checks) == ["tables", "cells", "metric", "folds", "leaks", "hidden test"]
    assert all(answer.ok for answer in checks.values()), checks
    assert best in checks["metric"].detail and "5 folds of 4, 4, 4, 4, 4 rows" in checks["folds"].detail
    assert "20 rows, all with a label, from the training table, as no hidden test" in checks["hidden test"].detail


def test_cells_that_are_read_as_other_answers_are_named(check: Any) -> None:
    checks = check(Lossy)
    assert not checks["cells"].ok and "20 of 20 right answers change when written and read, first 'r0': ['A']" in (
        checks["cells"].detail
    )


def test_a_broken_table_is_said_and_nothing_is_asked_of_it(check: Any, tmp_path: Path) -> None:
    path = tmp_path / "input" / "made" / "train.csv"
    path.write_text(path.read_text().replace("r1,", "r0,", 1))
    (found,) = check(Pick).values()
    assert (found.name, found.ok) == ("tables", False) and "occur more than once, first ['r0']" in found.detail


def test_a_leak_stops(check: Any, tmp_path: Path) -> None:
    path = tmp_path / "input" / "made" / "train.csv"
    rows = pl.read_csv(path)
    rows.with_columns(text=pl.lit("the same text in every row")).write_csv(path)
    assert "exact_fold" in check(Pick)["leaks"].detail


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"id": ["tr0", "h1"]}, "1 id(s) are in the public test set too, first 'tr0'"),
        ({"id": ["r3", "h1"]}, "1 id(s) are in train.csv too, first 'r3'"),
        ({"extra": ["1", "2"]}, "test.csv has the columns ['id', 'text', 'extra'], the public one ['id', 'text']"),
        ({}, ""),
    ],
)
def test_a_hidden_test_is_looked_at(check: Any, tmp_path: Path, change: dict[str, list[str]], problem: str) -> None:
    """Its solution lacks the label of one row."""
    folder = paths.hidden_folder("made")
    folder.mkdir(parents=True)
    test = pl.DataFrame({"id": ["h0", "h1"], "text": ["some", "more"], **change})
    test.write_csv(folder / "test.csv")
    test.select("id", target=pl.Series(["A", None])).write_csv(folder / "solution.csv")
    answer = check(Pick)["hidden test"]
    assert answer.ok == (not problem) and problem in answer.detail
    if not problem:
        assert answer.detail == "2 rows, 1 of them with a label, from output/hidden/made"


def test_a_sample_with_other_ids_than_the_test_set_is_said(check: Any, tmp_path: Path) -> None:
    sample = tmp_path / "input" / "made" / "sample_submission.csv"
    sample.write_text(sample.read_text().replace("tr0,", "tr9,", 1))
    detail = check(Pick)["tables"].detail
    assert "test.csv does not fit the sample: 1 id(s) of the sample are missing, first ['tr9']" in detail
