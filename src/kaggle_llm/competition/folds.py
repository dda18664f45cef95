"""Folds: stratified by class; groups stay whole where a hidden test has new ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.competition.competition import Competition

ALWAYS_TRAIN = -1  # the fold of rows that are always trained on, never validated


@dataclass
class FoldSettings:
    count: int = 5
    validate: list[int] | None = None
    """The folds that are validated; null: all. Rows of other folds become fold −1."""
    rows: int | None = None
    """Rows of a fold that are validated at most; null: all. The others become fold −1 and are trained on, which splits
    groups. For smoke runs."""
    unseen: float | None = None
    """Share of the groups that stay whole in one fold, so that its training never sees them; null: as the competition
    says, which is 1 where its training table names a group, else `new_targets`."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 2:
            raise ValueError(f"count = {self.count}: two folds or more are needed")
        if self.unseen is not None and not 0 <= self.unseen <= 1:
            raise ValueError(f"unseen = {self.unseen}: must lie between 0 and 1")
        if self.validate is not None and not set() < set(self.validate) <= set(range(self.count)):
            raise ValueError(f"validate = {self.validate}: name one or more of the folds 0 to {self.count - 1}")
        if self.rows is not None and self.rows < 1:
            raise ValueError(f"rows = {self.rows}: must be 1 or more, or null for all")


def split_rows(competition: Competition, train: pl.DataFrame, settings: FoldSettings) -> pl.Series:
    """`assign_folds` of the training rows by the competition's group; without one by the target, no group whole, which
    is sklearn's StratifiedKFold.

    Raises ValueError where folds.unseen asks for whole groups and there are none.
    """
    unseen = competition.unseen if settings.unseen is None else settings.unseen
    if unseen and not competition.group:
        raise ValueError(
            f"folds.unseen = {unseen}, but {competition.settings.name} has no groups: name a column as the training "
            f"Table's group, set new_targets if a hidden test has targets that training lacks, or leave unseen out"
        )
    column = competition.group or competition.target or "id"
    return assign_folds(train[column], replace(settings, unseen=unseen))


def describe_missing_classes(competition: Competition, train: pl.DataFrame, fold: pl.Series) -> list[str]:
    """A line for each fold whose validation rows have classes that its training rows lack.

    None where a competition has no target or new ones, and where most targets occur once, as texts and spans do.
    """
    if not competition.target or competition.new_targets:
        return []
    targets, lines = train[competition.target], list[str]()
    if 2 * targets.is_unique().sum() > targets.n_unique():
        return []
    for k in sorted(set(fold) - {ALWAYS_TRAIN}):
        valid = targets.filter(fold == k)
        missing = sorted(set(valid) - set(targets.filter(fold != k)))
        if missing:
            rows = valid.is_in(missing).sum()
            lines.append(f"fold {k}: {rows} row(s) of {len(missing)} class(es) without a training row: {missing[:3]}")
    return lines


def assign_folds(groups: pl.Series, settings: FoldSettings) -> pl.Series:
    """The fold of every row, [rows] Int64; ALWAYS_TRAIN for rows that are never validated.

    groups: of every row (its target, prompt or document). A share `unseen` of the groups goes whole to one fold; the
    rows of the other groups are spread over the folds. Raises ValueError where a group is null or a fold stays empty.
    """
    import polars as pl

    if groups.null_count():
        raise ValueError(f"{groups.null_count()} row(s) have no {groups.name or 'group'}: every row needs one")
    fold = _deal(groups.to_list(), settings)
    kept: dict[int, int] = {}
    validated = set(range(settings.count) if settings.validate is None else settings.validate)
    for row, k in enumerate(fold):
        kept[k] = kept.get(k, 0) + 1
        if k not in validated or (settings.rows is not None and kept[k] > settings.rows):
            fold[row] = ALWAYS_TRAIN
    empty = sorted(validated - set(fold))
    if empty and groups.len():
        raise ValueError(f"fold(s) {empty} of {settings.count} got none of {groups.len()} rows: lower folds.count")
    return pl.Series("fold", fold, dtype=pl.Int64)


def _deal(groups: list[str], settings: FoldSettings) -> list[int]:
    """The fold of every row, before `validate` and `rows` take rows out."""
    import numpy as np

    rng = np.random.default_rng(settings.seed)
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    names = sorted(members)
    rng.shuffle(names)
    whole = round(len(names) * (settings.unseen or 0))
    fold = [ALWAYS_TRAIN] * len(groups)
    sizes = [0] * settings.count
    for name in names[:whole]:
        k = sizes.index(min(sizes))
        sizes[k] += len(members[name])
        for row in members[name]:
            fold[row] = k
    for name in names[whole:]:
        for row in rng.permutation(members[name]).tolist():
            k = sizes.index(min(sizes))
            sizes[k] += 1
            fold[row] = k
    return fold


def find_common_fold(train: pl.DataFrame, recorded: Mapping[str, pl.DataFrame]) -> pl.Series:
    """The fold of every training row that all ensemble members validated, else −1.

    recorded: member → its out-of-fold answers. Raises ValueError where two members validated a row in different folds,
    and where they have no row in common.
    """
    import polars as pl

    folds = train.select("id")
    for number, answers in enumerate(recorded.values()):
        column = answers.select("id", pl.col("fold").alias(f"{number}"))
        folds = folds.join(column, on="id", how="left", maintain_order="left")
    members = pl.exclude("id")
    different = folds.filter(pl.max_horizontal(members) != pl.min_horizontal(members))
    if different.height:
        raise ValueError(
            f"{', '.join(recorded)} validated {different.height} row(s) in different folds, "
            f"first {different['id'][0]!r}: give all members the same folds"
        )
    validated = ~pl.any_horizontal(members.is_null())
    fold = folds.select(pl.when(validated).then(pl.col("0")).otherwise(ALWAYS_TRAIN).alias("fold")).to_series()
    if (fold == ALWAYS_TRAIN).all():
        raise ValueError(f"{', '.join(recorded)} validated no row in common: give all members the same folds")
    return fold
