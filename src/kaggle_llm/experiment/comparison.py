"""Is one run better than another, or is it noise?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kaggle_llm.base import paths, records
from kaggle_llm.base.tables import print_table
from kaggle_llm.competition.competition import TRAIN, Competition, CompetitionSettings, load_competition
from kaggle_llm.competition.metrics import paired_difference

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Comparison:
    """Scores of two runs on one group of rows that both validated; the difference with its paired 95 % interval."""

    group: str
    rows: int
    score: float
    other_score: float
    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.low <= 0 <= self.high:
            return "not resolvable"
        return "higher" if self.low > 0 else "lower"


def compare_runs(run: str, other: str) -> list[Comparison]:
    """On all common rows, and on each group: what was seen or unseen to the model of `run` that predicted it.

    Raises ValueError where the two validated no row in common or were trained on different data.
    """
    record, frame = _read(run)
    other_record, other_frame = _read(other)
    data, other_data = (
        {name: value for name, value in one.inputs.items() if name.endswith(".csv")} for one in (record, other_record)
    )
    if data != other_data:
        changed = sorted(name for name in {*data, *other_data} if data.get(name) != other_data.get(name))
        raise ValueError(f"{run} and {other} were trained on different data: {', '.join(changed)}")
    competition = load_competition(CompetitionSettings(**record.settings["config"]["competition"]))
    groups = _groups(competition, frame)
    common = groups.join(other_frame.select("id"), on="id", how="semi")
    if common.height == 0:
        raise ValueError(f"{run} and {other} have no validated row in common")
    parts = {"all": common["id"]}
    parts |= {str(name): rows["id"] for (name,), rows in common.sort("group").group_by("group", maintain_order=True)}
    return [_compare(competition, name, ids, frame, other_frame) for name, ids in parts.items()]


def _compare(
    competition: Competition, group: str, ids: pl.Series, frame: pl.DataFrame, other: pl.DataFrame
) -> Comparison:
    mine, theirs = (part.join(ids.to_frame(), on="id", how="semi").sort("id") for part in (frame, other))
    truth = competition.truth(competition.table(TRAIN))
    metric = competition.metric
    difference, low, high = paired_difference(metric, mine, theirs, truth)
    return Comparison(group, ids.len(), metric.score(mine, truth), metric.score(theirs, truth), difference, low, high)


def _groups(competition: Competition, frame: pl.DataFrame) -> pl.DataFrame:
    """id and group of every validated row."""
    import polars as pl

    train = competition.table(TRAIN)
    parts = []
    for _, rows in frame.group_by("fold", maintain_order=True):
        valid = train.join(rows.select("id"), on="id", how="semi")
        rest = train.join(rows.select("id"), on="id", how="anti")
        parts.append(valid.select("id").with_columns(group=competition.groups(rest, valid)))
    return pl.concat(parts)


def _read(run: str) -> tuple[records.Record, pl.DataFrame]:
    """The record and the out-of-fold rows of a complete run."""
    import polars as pl

    folder = paths.run_folder(run)
    record = records.read_record(folder)
    if record is None:
        raise FileNotFoundError(f"{run} is no complete run: train it with python exp/{run.split('--')[0]}/train.py")
    return record, pl.read_parquet(folder / "oof.parquet")


def print_comparison(run: str, other: str, found: list[Comparison]) -> None:
    columns = ("rows", "n", run, other, "difference", "paired 95 % interval", "")
    rows = [
        [
            *(row.group, str(row.rows), f"{row.score:.4f}", f"{row.other_score:.4f}", f"{row.difference:+.4f}"),
            *(f"[{row.low:+.4f}, {row.high:+.4f}]", row.verdict),
        ]
        for row in found
    ]
    print_table(f"{run} − {other}", columns, rows)
