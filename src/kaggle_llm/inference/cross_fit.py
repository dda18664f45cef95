"""What is fitted on scores of rows that the models were not trained on, and applied in prediction.

A decision is a frozen dataclass of plain values with `fit(scored, truth, metric)`, which gives another one of its
class, and `apply(scored)`, which gives the RANKING. scored: a frame, or a dataclass of frames, each with `id`. As
predict.py makes it, before a fit, it is neutral: what stands where nothing can be fitted.

Fitted on out-of-fold rows in parts, groups whole: a row's score comes from a decision that it did not help to fit. What
ships is fitted on all of them. Leaves decision/decision.json.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

from kaggle_llm.base import records
from kaggle_llm.base.config import build_config
from kaggle_llm.competition.rankings import select_rows

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.competition.metrics import Metric

FOLDER = "decision"  # the name of the model that holds it
FILE = "decision.json"
PARTS = 5  # of the out-of-fold rows
ENOUGH = 8  # groups that a fit needs


class Decision(Protocol):
    """What is fitted; see above."""

    def fit(self, scored: Any, truth: pl.DataFrame, metric: Metric) -> Self: ...

    def apply(self, scored: Any) -> pl.DataFrame: ...


@dataclass(frozen=True)
class Decided:
    """One decision for all rows; in CV, rows have the one that they did not help to fit."""

    value: Any
    parts: tuple[Any, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    """Row id → its decision among `parts`; others have `value`."""

    def apply(self, scored: Any) -> pl.DataFrame:
        """The RANKING of every row, in the order of the scores."""
        import polars as pl

        ids = list_ids(scored) if self.rows else []
        if not ids:
            ranking: pl.DataFrame = self.value.apply(scored)
            return ranking
        placed: dict[int | None, list[str]] = {}
        for row in ids:
            placed.setdefault(self.rows.get(row), []).append(row)
        found = [
            (self.value if place is None else self.parts[place]).apply(select_scored(scored, own))
            for place, own in placed.items()
        ]
        return select_rows(pl.concat(found), ids)

    def among(self, ids: Sequence[str]) -> Decided:
        """The same for these rows alone."""
        return replace(self, rows={row: self.rows[row] for row in ids if row in self.rows})

    def save(self, folder: Path) -> None:
        described = {"value": asdict(self.value), "parts": [asdict(part) for part in self.parts], "rows": self.rows}
        records.write_json(folder / FILE, described)


def load_decided(folder: Path, kind: type) -> Decided:
    """The inverse of `Decided.save`. kind: the decision's class."""
    saved = records.read_json(folder / FILE)
    parts: tuple[Any, ...] = tuple(build_config(part, kind) for part in saved["parts"])
    return Decided(build_config(saved["value"], kind), parts, saved["rows"])


def cross_fit(
    neutral: Any,
    scored: Any,
    truth: pl.DataFrame,
    groups: Mapping[str, str],
    metric: Metric,
    labels: Sequence[str] = (),
) -> tuple[Decided, Decided, list[str]]:
    """For CV, for what ships, and where they are neutral, with the reason.

    groups: row id → its group. labels: those that must all occur where something is fitted, as far as truth has them.
    """
    ids = list_ids(scored)
    part_of = {row: choose_part(groups[row]) for row in ids}
    wanted = set(labels) & list_items(truth, ids) if labels else set[str]()
    lacking: dict[str, list[str]] = {}

    def fit(where: str, own: Sequence[str]) -> Any:
        value, why = fit_on(neutral, scored, truth, own, groups, metric, wanted)
        if why:
            lacking.setdefault(why, []).append(where)
        return value

    parts = [fit(f"part {part + 1}", [row for row in ids if part_of[row] != part]) for part in range(PARTS)]
    shipped = fit("what ships", ids)
    notes = [f"{', '.join(where)}: {why}" for why, where in lacking.items()]
    return Decided(shipped, tuple(parts), part_of), Decided(shipped), notes


def fit_on(
    neutral: Any,
    scored: Any,
    truth: pl.DataFrame,
    ids: Sequence[str],
    groups: Mapping[str, str],
    metric: Metric,
    wanted: set[str],
) -> tuple[Any, str]:
    """The decision fitted on the rows `ids`; the neutral one and the reason where they are too few or lack a label."""
    if len({groups[row] for row in ids}) < ENOUGH:
        return neutral, f"fewer than {ENOUGH} groups to fit on"
    if missing := sorted(wanted - (list_items(truth, ids) if wanted else set())):
        return neutral, f"no row to fit on is {missing[0]!r}"
    return neutral.fit(select_scored(scored, ids), truth, metric), ""


def choose_part(group: str) -> int:
    """By the group's hash: the same in every run, and for every row that is added later."""
    return int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) % PARTS


def list_items(truth: pl.DataFrame, ids: Sequence[str]) -> set[str]:
    return {item for items in truth.filter(truth["id"].is_in(list(ids)))["items"].to_list() for item in items}


def list_frames(scored: Any) -> dict[str, pl.DataFrame]:
    """The frames of what was scored by their names."""
    if is_dataclass(scored) and not isinstance(scored, type):
        return {one.name: getattr(scored, one.name) for one in fields(scored)}
    return {"": scored}


def list_ids(scored: Any) -> list[str]:
    """The rows that were scored, each once, in the order of the first frame."""
    frames = list(list_frames(scored).values())
    ids: list[str] = frames[0]["id"].unique(maintain_order=True).to_list()
    return ids


def select_scored(scored: Any, ids: Sequence[str]) -> Any:
    """The rows of `ids` of every frame."""
    return map_frames(scored, lambda frame: frame.filter(frame["id"].is_in(list(ids))))


def join_scored(parts: Sequence[Any]) -> Any:
    """What was scored of several folds as one."""
    import polars as pl

    frames = [list_frames(part) for part in parts]
    joined = {name: pl.concat([own[name] for own in frames]) for name in frames[0]}
    return joined[""] if "" in joined else replace(parts[0], **joined)


def map_frames(scored: Any, change: Any) -> Any:
    changed = {name: change(frame) for name, frame in list_frames(scored).items()}
    return changed[""] if "" in changed else replace(scored, **changed)
