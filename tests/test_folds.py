"""Folds: every row is placed, some groups stay whole, sizes are even, and switches move no other row."""

import random
from pathlib import Path
from typing import Any, ClassVar

import polars as pl
import pytest

from kaggle_llm.competition.competition import Competition, CompetitionSettings
from kaggle_llm.competition.folds import ALWAYS_TRAIN, FoldSettings, assign_folds, describe_missing_classes, split_rows
from kaggle_llm.competition.table import Table


def even(groups: int, rows: int) -> pl.Series:
    """`groups` groups of `rows` rows each, mixed."""
    names = [f"g{i % groups:02d}" for i in range(groups * rows)]
    random.Random(0).shuffle(names)
    return pl.Series(names)


def uneven(seed: int = 0) -> pl.Series:
    rng = random.Random(seed)
    names = [f"g{i:02d}" for i in range(30) for _ in range(rng.randint(1, 12))]
    rng.shuffle(names)
    return pl.Series(names)


def folds_of_groups(groups: pl.Series, fold: pl.Series) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for name, k in zip(groups, fold, strict=True):
        found.setdefault(name, set()).add(k)
    return found


def unseen_rows(groups: pl.Series, fold: pl.Series, k: int) -> int:
    """Validation rows of fold k whose group occurs in no training row."""
    return int((~groups.filter(fold == k).is_in(groups.filter(fold != k).unique().to_list())).sum())


@pytest.mark.parametrize("count", [2, 3, 5])
def test_every_row_gets_a_fold_and_every_fold_gets_rows(count: int) -> None:
    groups = uneven()
    fold = assign_folds(groups, FoldSettings(count=count))
    assert fold.len() == groups.len() and fold.dtype == pl.Int64()
    assert set(fold) == set(range(count))


def test_a_seed_repeats_its_folds_and_another_seed_gives_others() -> None:
    groups = uneven()
    first = assign_folds(groups, FoldSettings(seed=1))
    assert first.equals(assign_folds(groups, FoldSettings(seed=1)))
    assert not first.equals(assign_folds(groups, FoldSettings(seed=2)))


@pytest.mark.parametrize(("unseen", "whole"), [(0.0, 0), (0.25, 5), (0.5, 10), (1.0, 20)])
def test_the_share_of_groups_that_stay_whole_is_as_asked(unseen: float, whole: int) -> None:
    groups = even(20, 10)  # sizes are even after the whole groups, so a dealt group reaches all five folds
    spread = folds_of_groups(groups, assign_folds(groups, FoldSettings(count=5, unseen=unseen)))
    assert sorted(map(len, spread.values())) == [1] * whole + [5] * (20 - whole)


@pytest.mark.parametrize(("unseen", "expected"), [(0.0, 0), (0.5, 20), (1.0, 40)])
def test_validation_has_rows_of_groups_that_training_never_saw(unseen: float, expected: int) -> None:
    groups = even(20, 10)
    fold = assign_folds(groups, FoldSettings(count=5, unseen=unseen))
    assert [unseen_rows(groups, fold, k) for k in range(5)] == [expected] * 5


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("unseen", [0.0, 0.3, 1.0])
def test_fold_sizes_differ_by_no_more_than_the_largest_group(seed: int, unseen: float) -> None:
    groups = uneven(seed)
    sizes = assign_folds(groups, FoldSettings(unseen=unseen, seed=seed)).value_counts()["count"]
    largest = groups.value_counts()["count"].max()
    assert sizes.max() - sizes.min() <= (1 if unseen == 0 else largest)
    assert sizes.sum() == groups.len()


@pytest.mark.parametrize("validate", [[0], [1, 3]])
def test_folds_that_are_not_validated_become_training_and_the_others_keep_their_rows(validate: list[int]) -> None:
    groups = uneven()
    all_folds = assign_folds(groups, FoldSettings()).to_list()
    fold = assign_folds(groups, FoldSettings(validate=validate)).to_list()
    assert fold == [k if k in validate else ALWAYS_TRAIN for k in all_folds]


@pytest.mark.parametrize("rows", [1, 7, 10_000])
def test_a_limit_of_rows_keeps_the_first_rows_of_each_fold_where_they_were(rows: int) -> None:
    groups = uneven()
    all_folds = assign_folds(groups, FoldSettings()).to_list()
    expected = [k if all_folds[:row].count(k) < rows else ALWAYS_TRAIN for row, k in enumerate(all_folds)]
    assert assign_folds(groups, FoldSettings(rows=rows)).to_list() == expected


def test_no_rows_give_no_folds() -> None:
    assert assign_folds(pl.Series([], dtype=pl.String), FoldSettings()).len() == 0


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"count": 1}, "count = 1"),
        ({"unseen": -0.1}, "unseen = -0.1"),
        ({"unseen": 1.1}, "unseen = 1.1"),
        ({"unseen": float("nan")}, "unseen = nan"),
        ({"validate": [0, 5]}, "one or more of the folds 0 to 4"),
        ({"validate": [-1]}, "one or more of the folds 0 to 4"),
        ({"validate": []}, "one or more of the folds 0 to 4"),
        ({"rows": 0}, "rows = 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        FoldSettings(**settings)


def test_rows_without_a_group_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 row\(s\) have no target"):
        assign_folds(pl.Series("target", ["a", None]), FoldSettings())


def test_a_fold_that_stays_empty_is_refused() -> None:
    groups = pl.Series("target", ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"fold\(s\) \[3, 4\] of 5 got none of 3 rows: lower folds.count"):
        assign_folds(groups, FoldSettings())
    assert sorted(assign_folds(groups, FoldSettings(validate=[0]))) == [-1, -1, 0]


def make_competition(folder: Path, target: str = "label", group: str = "", new_targets: float = 0.0) -> Competition:
    class Plain(Competition):
        tables: ClassVar = {"train": Table("id", ("text",), target=target, group=group), "test": Table("id", ("text",))}

    Plain.new_targets = new_targets
    return Plain(CompetitionSettings("plain"), folder)


def make_train(labels: list[str]) -> pl.DataFrame:
    ids = [str(number) for number in range(len(labels))]
    return pl.DataFrame({"id": ids, "label": labels, "writer": [f"w{int(i) % 20}" for i in ids]})


@pytest.mark.parametrize(
    "shares", [{"yes": 50, "no": 50}, {"yes": 95, "no": 5}, {"1": 60, "2": 150, "3": 200, "4": 70, "5": 20}], ids=str
)
def test_the_rows_of_a_class_are_spread_over_the_folds(tmp_path: Path, shares: dict[str, int]) -> None:
    labels = [label for label, rows in shares.items() for _ in range(rows)]
    random.Random(0).shuffle(labels)
    train = make_train(labels)
    fold = split_rows(make_competition(tmp_path), train, FoldSettings())
    counts = train.with_columns(fold=fold).group_by("label", "fold").len()
    assert {(label, rows) for label, _, rows in counts.iter_rows()} == {
        (label, rows // 5) for label, rows in shares.items()
    }
    assert describe_missing_classes(make_competition(tmp_path), train, fold) == []


def test_new_targets_stay_whole_in_the_share_that_the_competition_names(tmp_path: Path) -> None:
    train = make_train([f"m{number % 20}" for number in range(200)])
    fold = split_rows(make_competition(tmp_path, new_targets=0.3), train, FoldSettings())
    assert fold.equals(assign_folds(train["label"], FoldSettings(unseen=0.3)))
    assert sorted(map(len, folds_of_groups(train["label"], fold).values())).count(1) == 6


def test_rows_of_a_group_stay_together_unless_the_config_says_otherwise(tmp_path: Path) -> None:
    train, competition = make_train(["a", "b"] * 100), make_competition(tmp_path, group="writer")
    assert set(map(len, folds_of_groups(train["writer"], split_rows(competition, train, FoldSettings())).values())) == {
        1
    }
    fold = split_rows(competition, train, FoldSettings(unseen=0.0))
    assert set(map(len, folds_of_groups(train["writer"], fold).values())) == {5}


def test_rows_without_target_and_group_are_dealt_one_by_one(tmp_path: Path) -> None:
    fold = split_rows(make_competition(tmp_path, target=""), make_train(["a"] * 103), FoldSettings())
    assert sorted(fold.value_counts()["count"]) == [20, 20, 21, 21, 21]


def test_whole_groups_are_refused_where_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folds\.unseen = 0\.3, but plain has no groups: name a column"):
        split_rows(make_competition(tmp_path), make_train(["a", "b"] * 10), FoldSettings(unseen=0.3))


def test_a_class_that_a_training_part_lacks_is_said(tmp_path: Path) -> None:
    train, fold = make_train(["a", "a", "b", "b", "c", "a"]), pl.Series([0, 1, 0, 0, 1, -1])
    assert describe_missing_classes(make_competition(tmp_path), train, fold) == [
        "fold 0: 2 row(s) of 1 class(es) without a training row: ['b']",
        "fold 1: 1 row(s) of 1 class(es) without a training row: ['c']",
    ]
    assert describe_missing_classes(make_competition(tmp_path, new_targets=0.3), train, fold) == []
    assert describe_missing_classes(make_competition(tmp_path, target=""), train, fold) == []
    texts = make_train([f"summary {number}" for number in range(6)])
    assert describe_missing_classes(make_competition(tmp_path), texts, pl.Series([0, 1] * 3)) == []
    spans = ["-", "-", "-", "-", "0:3:NAME", "4:7:NAME"]
    train = train.with_columns(label=pl.Series(spans))
    assert describe_missing_classes(make_competition(tmp_path), train, fold) == [], "spans are no classes"
