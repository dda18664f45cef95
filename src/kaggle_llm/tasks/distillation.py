"""Distillation: a teacher's saved out-of-fold scores as soft labels beside the hard ones.

Rows that the teacher was trained on are refused, for their scores show its memory, not its judgement; the config can
allow them, and teacher.json records them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.base import records
from kaggle_llm.competition.audit import read_teacher_rows
from kaggle_llm.competition.folds import ALWAYS_TRAIN
from kaggle_llm.engines.prompts import Group

if TYPE_CHECKING:
    import torch


@dataclass
class DistillationSettings:
    teacher: str = ""
    """A run with an oof.parquet, or a parquet file with id, items, scores (log-probabilities up to a constant) and
    fold; empty: hard labels only."""
    weight: float = 0.5
    """Weight of the soft loss; the hard loss has 1 − weight."""
    temperature: float = 1.0
    cosine: float = 0.0
    """Weight of 1 − cos(teacher's probabilities, student's), added to the loss."""
    allow_in_sample: bool = False
    """Also use scores of rows that the teacher was trained on (fold −1, or no fold known)."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight = {self.weight}: is a share, between 0 and 1")
        if self.temperature <= 0 or self.cosine < 0:
            raise ValueError(f"temperature = {self.temperature}, cosine = {self.cosine}: more than 0, 0 or more")


@dataclass(frozen=True)
class Teacher:
    scores: dict[str, dict[str, float]]
    """id → item → score."""
    in_sample: list[str]
    """Ids of rows that the teacher was trained on."""


def load_teacher(settings: DistillationSettings) -> Teacher:
    """The teacher's scores; raises FileNotFoundError without such a run or file, ValueError for in-sample rows."""
    import polars as pl

    frame = read_teacher_rows(settings.teacher)
    folds = frame["fold"] if "fold" in frame.columns else pl.Series([None] * frame.height, dtype=pl.Int64())
    in_sample = frame.filter(folds.fill_null(ALWAYS_TRAIN) == ALWAYS_TRAIN)["id"].to_list()
    if in_sample and not settings.allow_in_sample:
        raise ValueError(
            f"teacher {settings.teacher}: it was trained on {len(in_sample)} of its {frame.height} rows (fold −1, or "
            f"no fold known), first {in_sample[:3]}: use out-of-fold scores, or set distillation.allow_in_sample=true"
        )
    rows = frame.select("id", "items", "scores").iter_rows()
    return Teacher({row: dict(zip(items, scores, strict=True)) for row, items, scores in rows}, in_sample)


def attach_teacher(groups: Sequence[Group], teacher: Teacher) -> list[Group]:
    """The groups with the teacher's scores; a group with an item that it did not score keeps hard labels only.

    Raises ValueError for a row without any scores: the file belongs to other rows.
    """
    unscored = [group.id for group in groups if group.id not in teacher.scores]
    if unscored:
        raise ValueError(f"the teacher has no scores for {len(unscored)} of {len(groups)} rows, first {unscored[:3]}")
    taught, hard = [], 0
    for group in groups:
        scores = teacher.scores[group.id]
        complete = all(item in scores for item in group.items)
        hard += not complete
        taught.append(replace(group, teacher=tuple(scores[item] for item in group.items) if complete else None))
    if hard:
        print(f"{hard} of {len(groups)} groups have an item without a teacher's score: hard labels", flush=True)
    return taught


def record_teacher(settings: DistillationSettings, teacher: Teacher, groups: Sequence[Group], folder: Path) -> None:
    """Write teacher.json: the teacher, and which training rows it was trained on itself."""
    trained = {group.id for group in groups}
    in_sample = sorted(trained & set(teacher.in_sample))
    records.write_json(folder / "teacher.json", {"teacher": settings.teacher, "in_sample": in_sample})


def soft_choice_loss(
    scores: torch.Tensor,
    target: Sequence[float],
    teacher: Sequence[float] | None,
    settings: DistillationSettings,
) -> torch.Tensor:
    """Loss of one row over k options; scores [k].

    (1 − w)·CE(target, softmax(s)) + w·T²·KL(softmax(t/T) ‖ softmax(s/T)) + c·(1 − cos(softmax(t/T), softmax(s/T))).
    Source: Hinton, Vinyals, Dean, Distilling the Knowledge in a Neural Network, 2015, section 2 (there without cosine).
    """
    from torch.nn.functional import cosine_similarity, kl_div

    hard = -(scores.new_tensor(target) * scores.log_softmax(0)).sum()
    if teacher is None:
        return hard
    temperature = settings.temperature
    taught = (scores.new_tensor(teacher) / temperature).softmax(0)
    student = (scores / temperature).log_softmax(0)
    soft = temperature**2 * kl_div(student, taught, reduction="sum")
    distance: torch.Tensor = 1 - cosine_similarity(student.exp(), taught, dim=0)
    return (1 - settings.weight) * hard + settings.weight * soft + settings.cosine * distance
