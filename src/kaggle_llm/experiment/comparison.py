"""Is one run better than another, or is it noise?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kaggle_llm.base import records
from kaggle_llm.base.tables import print_table
from kaggle_llm.competition.competition import TRAIN, Competition, CompetitionSettings, load_competition
from kaggle_llm.competition.data_files import ENDINGS
from kaggle_llm.competition.metrics import paired_difference
from kaggle_llm.competition.rankings import read_oof

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Comparison:
    """Scores of two runs on a group of rows that both validated, and their difference with its paired 95 % interval."""

    group: str
    rows: int
    score: float
    other_score: float
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """higher or lower than the other run, or not resolvable: the interval holds 0."""
        if self.low <= 0 <= self.high:
            return "not resolvable"
        return "higher" if self.low > 0 else "lower"


def compare_runs(run: str, other: str) -> list[Comparison]:
    """On all common rows, and on each group: seen or unseen by the model of `run` that predicted the row.

    Raises ValueError where the two runs validated no row in common or were trained on different data.
    """
    record, frame = records.read_complete(run), read_oof(run)
    other_record, other_frame = records.read_complete(other), read_oof(other)
    data, other_data = (
        {name: digest for name, digest in inputs.items() if name.endswith(ENDINGS)}
        for inputs in (record.inputs, other_record.inputs)
    )
    if data != other_data:
        changed = sorted(name for name in {*data, *other_data} if data.get(name) != other_data.get(name))
        raise ValueError(f"{run} and {other} were trained on different data: {', '.join(changed)}")
    competition = load_competition(CompetitionSettings(**record.settings["config"]["competition"]))
    groups = _list_groups(competition, frame)
    common = groups.join(other_frame.select("id"), on="id", how="semi")
    if common.height == 0:
        raise ValueError(f"{run} and {other} have no validated row in common")
    parts = {"all": common["id"]}
    parts |= {str(name): rows["id"] for (name,), rows in common.sort("group").group_by("group", maintain_order=True)}
    return [_compare_rows(competition, name, ids, frame, other_frame) for name, ids in parts.items()]


def _compare_rows(
    competition: Competition, group: str, ids: pl.Series, frame: pl.DataFrame, other: pl.DataFrame
) -> Comparison:
    first, second = (answers.join(ids.to_frame(), on="id", how="semi").sort("id") for answers in (frame, other))
    truth, metric = competition.truth(competition.table(TRAIN)), competition.metric
    scores = metric.score(first, truth), metric.score(second, truth)
    return Comparison(group, ids.len(), *scores, *paired_difference(metric, first, second, truth))


def _list_groups(competition: Competition, frame: pl.DataFrame) -> pl.DataFrame:
    """id and group of every validated row."""
    import polars as pl

    train = competition.table(TRAIN)
    parts = []
    for _, rows in frame.group_by("fold", maintain_order=True):
        valid = train.join(rows.select("id"), on="id", how="semi")
        rest = train.join(rows.select("id"), on="id", how="anti")
        parts.append(valid.select("id").with_columns(group=competition.groups(rest, valid)))
    return pl.concat(parts)


def print_comparison(run: str, other: str, comparisons: list[Comparison]) -> None:
    columns = ("rows", "n", run, other, "difference", "paired 95 % interval", "")
    rows = [
        [
            *(row.group, str(row.rows), f"{row.score:.4f}", f"{row.other_score:.4f}", f"{row.difference:+.4f}"),
            *(f"[{row.low:+.4f}, {row.high:+.4f}]", row.verdict),
        ]
        for row in comparisons
    ]
    print_table(f"{run} − {other}", columns, rows)
