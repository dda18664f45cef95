"""Decisions: fitted on out-of-fold scores, applied in prediction.

A decision is a frozen dataclass of plain values with `fit(scored, truth, metric)`, which returns a fitted one, and
`apply(scored)`, which returns the RANKING. scored: a frame, or a dataclass of frames, each with `id`. predict.py makes
the neutral decision, which stays where nothing can be fitted.

For CV the out-of-fold rows are split into parts, groups whole, and every row gets the decision fitted on the other
parts. What ships is fitted on all of them. Leaves decision/decision.json.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import records
from kaggle_llm.base.config import build_config
from kaggle_llm.competition.rankings import select_rows

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.competition.metrics import Metric

DECISION_MODEL = "decision"  # the name of the Model whose folder holds it
DECISION_FILE = "decision.json"
CROSS_FIT_PARTS = 5  # of the out-of-fold rows
MIN_GROUPS = 8  # for a fit


@dataclass(frozen=True)
class Decided:
    """The decision for all rows; in CV, for each row the one fitted without it."""

    value: Any
    parts: tuple[Any, ...] = ()
    rows: Mapping[str, int] = field(default_factory=dict)
    """Row id → index of its decision in `parts`; other rows have `value`."""

    def apply(self, scored: Any) -> pl.DataFrame:
        """The RANKING of all rows, in the order of the scores."""
        import polars as pl

        ids = list_ids(scored) if self.rows else []
        if not ids:
            ranking: pl.DataFrame = self.value.apply(scored)
            return ranking
        ids_of_part: dict[int | None, list[str]] = {}
        for row in ids:
            ids_of_part.setdefault(self.rows.get(row), []).append(row)
        rankings = [
            (self.value if part is None else self.parts[part]).apply(select_scored(scored, part_ids))
            for part, part_ids in ids_of_part.items()
        ]
        return select_rows(pl.concat(rankings), ids)

    def among(self, ids: Sequence[str]) -> Decided:
        """The same decisions, for these rows only."""
        return replace(self, rows={row: self.rows[row] for row in ids if row in self.rows})

    def save(self, folder: Path) -> None:
        described = {"value": asdict(self.value), "parts": [asdict(part) for part in self.parts], "rows": self.rows}
        records.write_json(folder / DECISION_FILE, described)


def load_decided(folder: Path, decision: type) -> Decided:
    """The inverse of `Decided.save`. decision: its class."""
    saved = records.read_json(folder / DECISION_FILE)
    parts: tuple[Any, ...] = tuple(build_config(part, decision) for part in saved["parts"])
    return Decided(build_config(saved["value"], decision), parts, saved["rows"])


def cross_fit(
    neutral: Any,
    scored: Any,
    truth: pl.DataFrame,
    groups: Mapping[str, str],
    metric: Metric,
    labels: Sequence[str] = (),
) -> tuple[Decided, Decided, list[str]]:
    """The decisions for CV, the one that ships, and messages that say which are neutral and why.

    groups: row id → its group. labels: those that every fit needs in its rows, as far as they occur in `truth`.
    """
    ids = list_ids(scored)
    part_of = {row: choose_part(groups[row]) for row in ids}
    required = set(labels) & list_items(truth, ids) if labels else set[str]()
    not_fitted: dict[str, list[str]] = {}

    def fit(name: str, fit_ids: Sequence[str]) -> Any:
        value, reason = fit_on(neutral, scored, truth, fit_ids, groups, metric, required)
        if reason:
            not_fitted.setdefault(reason, []).append(name)
        return value

    parts = [fit(f"part {part + 1}", [row for row in ids if part_of[row] != part]) for part in range(CROSS_FIT_PARTS)]
    shipped = fit("what ships", ids)
    notes = [f"{', '.join(names)}: {reason}" for reason, names in not_fitted.items()]
    return Decided(shipped, tuple(parts), part_of), Decided(shipped), notes


def fit_on(
    neutral: Any,
    scored: Any,
    truth: pl.DataFrame,
    ids: Sequence[str],
    groups: Mapping[str, str],
    metric: Metric,
    required: set[str],
) -> tuple[Any, str]:
    """The decision fitted on the rows `ids`, or the neutral one and the reason: too few groups, or a missing label."""
    if len({groups[row] for row in ids}) < MIN_GROUPS:
        return neutral, f"fewer than {MIN_GROUPS} groups to fit on"
    if missing := sorted(required - (list_items(truth, ids) if required else set())):
        return neutral, f"no row to fit on is {missing[0]!r}"
    return neutral.fit(select_scored(scored, ids), truth, metric), ""


def choose_part(group: str) -> int:
    """The part of a group, by its hash: the same in every run, also when rows are added."""
    return int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) % CROSS_FIT_PARTS


def list_items(truth: pl.DataFrame, ids: Sequence[str]) -> set[str]:
    return {item for items in truth.filter(truth["id"].is_in(list(ids)))["items"].to_list() for item in items}


def list_frames(scored: Any) -> dict[str, pl.DataFrame]:
    """The frames of `scored` by name; {"": scored} for a single frame."""
    if is_dataclass(scored) and not isinstance(scored, type):
        return {attribute.name: getattr(scored, attribute.name) for attribute in fields(scored)}
    return {"": scored}


def list_ids(scored: Any) -> list[str]:
    """The ids of the scored rows, each once, in the order of the first frame."""
    frames = list(list_frames(scored).values())
    ids: list[str] = frames[0]["id"].unique(maintain_order=True).to_list()
    return ids


def select_scored(scored: Any, ids: Sequence[str]) -> Any:
    """Every frame with the rows `ids` only."""
    selected = {name: frame.filter(frame["id"].is_in(list(ids))) for name, frame in list_frames(scored).items()}
    return selected[""] if "" in selected else replace(scored, **selected)


def join_scored(parts: Sequence[Any]) -> Any:
    """The scores of several folds as one."""
    import polars as pl

    frames = [list_frames(part) for part in parts]
    joined = {name: pl.concat([part[name] for part in frames]) for name in frames[0]}
    return joined[""] if "" in joined else replace(parts[0], **joined)
