"""Folds: every row is placed, some groups stay whole, sizes are even, and switches move no other row."""

import random
from typing import Any

import polars as pl
import pytest

from kaggle_llm.competition.folds import ALWAYS_TRAIN, FoldSettings, assign_folds


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


def test_rows_that_are_always_trained_on_are_never_validated_and_move_no_other_row() -> None:
    groups = uneven()
    extra = pl.Series(["g00", "new", "g01"])
    fold = assign_folds(pl.concat([extra, groups]), FoldSettings(), always_train=[True] * 3 + [False] * groups.len())
    assert fold[:3].to_list() == [ALWAYS_TRAIN] * 3
    assert fold[3:].to_list() == assign_folds(groups, FoldSettings()).to_list()


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


def test_rows_without_a_group_and_a_mask_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"1 row\(s\) have no target"):
        assign_folds(pl.Series("target", ["a", None]), FoldSettings())
    with pytest.raises(ValueError, match="always_train has 1 rows, groups 2"):
        assign_folds(pl.Series("target", ["a", "b"]), FoldSettings(), [True])


def test_a_fold_that_stays_empty_is_refused() -> None:
    groups = pl.Series("target", ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"fold\(s\) \[3, 4\] of 5 hold none of 3 rows: lower folds.count"):
        assign_folds(groups, FoldSettings())
    assert sorted(assign_folds(groups, FoldSettings(validate=[0]))) == [-1, -1, 0]
