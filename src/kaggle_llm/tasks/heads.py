"""A sequence head over the rows of a competition: prompts, logits as RANKING or VALUES, and what it has to beat.

A new head starts at random, so its score before training is that of `answer_without_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from kaggle_llm.base import records
from kaggle_llm.competition.competition import TRAIN, Competition
from kaggle_llm.competition.forms import NumberColumns, ProbabilityColumns
from kaggle_llm.competition.rankings import is_values, make_ranking, make_values, share_labels
from kaggle_llm.engines.engine import Engine
from kaggle_llm.engines.prompts import Prompter, PromptSettings
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.progress import answer_rows

if TYPE_CHECKING:
    import polars as pl
    import torch

ROWS_A_CHUNK = 64  # at most so many where time is short: the budget is checked between chunks
HeadKind = Literal["classification", "ordinal", "regression", "multilabel"]
Pooling = Literal["model", "mean", "last", "attention"]


@dataclass
class HeadTaskSettings:
    """The config section `head`: labels and targets are the competition's."""

    task: HeadKind
    """classification: all labels by their probability. ordinal: labels from lowest to highest, a question "more than
    this one?" for each; thresholds make a label of the answers. regression: the numbers of NumberColumns, or the level
    of such a label. multilabel: the probabilities of ProbabilityColumns, a question "this one?" for each."""


@dataclass
class PooledHeadSettings(HeadTaskSettings):
    pooling: Pooling = "model"
    """What the head reads of a text's hidden states. model: what transformers' own class reads, the first token of an
    encoder, the last of a causal model. mean, last: of all tokens. attention: their mean by learned weights."""


@dataclass
class HeadSettings:
    task: HeadKind
    labels: list[str] = field(default_factory=list)
    """Classes, or levels from lowest to highest; none for the regression of numbers and for multilabel."""
    targets: list[str] = field(default_factory=lambda: ["value"])
    """Regression and multilabel: a name for each number or label."""
    scales: list[list[float]] = field(default_factory=list)
    """Regression: mean and scale of each target, for a head that answers (target − mean) / scale; []: 0 and 1."""
    pooling: Pooling = "model"

    def __post_init__(self) -> None:
        few = len(self.labels) < 2 or len(set(self.labels)) < len(self.labels)
        if few and (self.labels or self.task in ("classification", "ordinal")):
            raise ValueError(f"labels = {self.labels}: {self.task} needs two or more different ones")
        if self.scales and len(self.scales) != len(self.targets):
            raise ValueError(f"scales = {self.scales} of the targets {self.targets}: give one for each")

    @property
    def levels(self) -> list[str]:
        """The labels, where the head answers with a number from 0, the lowest one, on."""
        return [] if self.task == "classification" else self.labels


def describe_head(task: HeadKind, competition: Competition) -> HeadSettings:
    """The head for a competition; raises ValueError where its answers are not what such a head gives."""
    name = competition.settings.name
    if isinstance(competition, NumberColumns):
        is_answered = isinstance(competition, ProbabilityColumns)
        fitting, asked = ("multilabel", "probabilities") if is_answered else ("regression", "numbers")
        if task != fitting:
            raise ValueError(f"head.task = {task}, but {name} asks for {asked}: set head.task={fitting}")
        return HeadSettings(task, targets=list(competition.columns))
    labels = list(competition.legal_items() or [])
    if task == "multilabel":
        raise ValueError(f"head.task = multilabel, but {name} is no ProbabilityColumns: set head.task=classification")
    if not labels:
        raise ValueError(f"{name} names no labels for a head: take a form with labels or NumberColumns")
    if task != "classification" and competition.every_label:
        raise ValueError(
            f"head.task = {task} gives one label a row, but {name} asks for a score of every label: set "
            f"head.task=classification"
        )
    return HeadSettings(task, labels, ["level"] if task == "regression" else ["value"])


def read_scales(folder: Path) -> list[list[float]]:
    """HeadSettings.scales of a trained head; [] of one that has none, or that is no head yet."""
    scales: list[list[float]] = records.read_json(folder / "config.json").get(records.TARGET_SCALES, [])
    return scales


@dataclass(frozen=True)
class Head:
    """Makes prompts of rows, in the same way for training and prediction, and answers of logits."""

    settings: HeadSettings
    prompter: Prompter

    def prompts(self, rows: pl.DataFrame) -> list[list[int]]:
        """The prompt of every row."""
        prompts = [self.prompter.enclosed(row) for row in rows.iter_rows(named=True)]
        self.prompter.report_cuts()
        return prompts

    def answer(self, rows: pl.DataFrame, engine: Engine) -> pl.DataFrame:
        """RANKING of classes; VALUES of numbers, of probabilities, and of levels before thresholds."""
        prompts = self.prompts(rows)
        logits = engine.logits(prompts) if prompts else []
        if self.settings.pooling != "model":
            logits = [pool_tokens(row, self.settings.pooling) for row in logits]
        return answer_logits(rows["id"].to_list(), logits, self.settings)


def pool_tokens(tokens: np.ndarray, pooling: Pooling) -> np.ndarray:
    """`pool` of an engine's logits, in double precision; raises ValueError where they are not those of tokens."""
    import torch

    if tokens.ndim != 2:
        raise ValueError(f"logits of shape {tokens.shape}, but head.pooling = {pooling} reads tokens; another model's?")
    pooled: np.ndarray = pool(torch.from_numpy(tokens).double(), pooling).numpy()
    return pooled


def pool(tokens: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """[outputs] pooled from the answers [tokens, outputs] of a linear head, alike in training and prediction.

    As the head is linear, this is what it answers to the pooled hidden states. attention: Σᵢ softmax(a)ᵢ·zᵢ, where a,
    the scores of the tokens, is the last output.
    """
    if pooling == "attention":
        return tokens[:, -1].softmax(0) @ tokens[:, :-1]
    return tokens[-1] if pooling == "last" else tokens.mean(0)


def answer_logits(ids: Sequence[str], logits: Sequence[np.ndarray], settings: HeadSettings) -> pl.DataFrame:
    """RANKING of classes; VALUES of numbers, of probabilities, and of levels before thresholds."""
    if settings.task == "classification":
        return rank_classes(ids, logits, settings.labels)
    if settings.task == "ordinal":
        return predict_levels(ids, logits, len(settings.labels))
    if settings.task == "multilabel":
        return predict_probabilities(ids, logits, len(settings.targets))
    return predict_values(ids, logits, len(settings.targets), settings.scales)


def load_head(
    folder: Path, task: HeadKind, competition: Competition, prompt: PromptSettings, pooling: Pooling = "model"
) -> Head:
    """The head of a model's folder, trained or not."""
    settings = replace(describe_head(task, competition), scales=read_scales(folder), pooling=pooling)
    return Head(settings, Prompter(load_tokenizer(folder), prompt))


def ask_head(
    rows: pl.DataFrame,
    head: Head,
    engine: Engine,
    budget: Budget,
    on_progress: Callable[[pl.DataFrame], None] | None = None,
) -> pl.DataFrame:
    """`Head.answer`, a chunk of rows at a time; rows that the budget cut are missing.

    on_progress: called with the rows so far, every minute.
    """
    chunks = budget.split(range(rows.height), ROWS_A_CHUNK)
    no_rows = head.answer(rows.clear(), engine)
    return answer_rows(
        chunks, no_rows, budget, "head", lambda chunk: head.answer(rows[list(chunk)], engine), on_progress
    )


def list_targets(settings: HeadSettings, truth: pl.DataFrame) -> list[tuple[float, ...]]:
    """The target of every row: its numbers; the share of each label; its level, or the answers to "more than …?".

    truth: of the competition. Several right labels without shares share equally.
    """
    if is_values(truth):
        return [tuple(row) for row in truth["values"].to_list()]
    labels = settings.labels
    if settings.task == "classification":
        return list(share_labels(truth, labels).values())
    levels = [labels.index(row[0]) for row in truth["items"].to_list()]
    if settings.task == "ordinal":
        return [ordinal_target(level, len(labels)) for level in levels]
    return [(float(level),) for level in levels]


def ordinal_target(level: int, levels: int) -> tuple[float, ...]:
    """[levels − 1] answers: level > 0, level > 1, …; raises ValueError outside 0 … levels − 1."""
    if not 0 <= level < levels:
        raise ValueError(f"level {level}: there are {levels}, counted from 0")
    return tuple(float(level > j) for j in range(levels - 1))


def answer_without_model(rows: pl.DataFrame, task: HeadKind, competition: Competition) -> pl.DataFrame:
    """The same answer for all rows: the labels' shares, the mean numbers, or the label nearest to the mean level.

    Computed from the training rows that are not asked themselves: in CV, those of the other folds.
    """
    settings, ids, train = describe_head(task, competition), rows["id"].to_list(), competition.table(TRAIN)
    targets = list_targets(settings, competition.truth(train.filter(~train["id"].is_in(ids))))
    if task == "classification":
        return rank_prior(ids, settings.labels, targets)
    if not settings.levels:
        return predict_mean(ids, targets)
    level = round(float(np.sum(targets, axis=1).mean()))
    return make_ranking(ids, [[settings.levels[level]]] * len(ids), [[0.0]] * len(ids))


def rank_classes(ids: Sequence[str], logits: Sequence[np.ndarray], labels: Sequence[str]) -> pl.DataFrame:
    """RANKING of all labels; scores are log-probabilities. logits: [labels] a row."""
    scores = [row - np.logaddexp.reduce(row) for row in _as_rows(logits, len(labels))]
    return make_ranking(ids, [list(labels)] * len(scores), scores)


def predict_values(
    ids: Sequence[str], logits: Sequence[np.ndarray], targets: int = 1, scales: Sequence[Sequence[float]] = ()
) -> pl.DataFrame:
    """VALUES: logit · scale + mean of each target. logits: [targets] a row; scales: see HeadSettings."""
    means, sizes = np.array(scales or [(0.0, 1.0)] * targets).T
    return make_values(ids, _as_rows(logits, targets) * sizes + means)


def predict_levels(ids: Sequence[str], logits: Sequence[np.ndarray], levels: int) -> pl.DataFrame:
    """VALUES: the expected level, from 0 on; thresholds.py rounds it to levels. logits: [levels − 1] a row."""
    return make_values(ids, expected_level(_as_rows(logits, levels - 1))[:, None])


def predict_probabilities(ids: Sequence[str], logits: Sequence[np.ndarray], labels: int) -> pl.DataFrame:
    """VALUES: σ(z) of each label. logits: [labels] a row."""
    return make_values(ids, sigmoid(_as_rows(logits, labels)))


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -logits))


def expected_level(logits: np.ndarray) -> np.ndarray:
    """[n]: Σⱼ P(level > j) = Σⱼ σ(zⱼ), of logits [n, levels − 1]."""
    return sigmoid(logits).sum(axis=1)


def rank_prior(ids: Sequence[str], labels: Sequence[str], targets: Sequence[Sequence[float]]) -> pl.DataFrame:
    """RANKING of every row by the labels' shares in training; targets: [training rows, labels].

    One is added to every count (Laplace), so that a label without rows has a finite score.
    """
    counts = np.asarray(targets, dtype=np.float64).reshape(-1, len(labels)).sum(axis=0) + 1
    return make_ranking(ids, [list(labels)] * len(ids), [np.log(counts / counts.sum())] * len(ids))


def predict_mean(ids: Sequence[str], targets: Sequence[Sequence[float]]) -> pl.DataFrame:
    """VALUES of every row: the mean of each target in training; targets: [training rows, targets]."""
    return make_values(ids, [np.mean(targets, axis=0).tolist()] * len(ids))


def _as_rows(logits: Sequence[np.ndarray], width: int) -> np.ndarray:
    """[n, width] in fp64; raises ValueError for a head of another width."""
    wrong = {np.shape(row) for row in logits} - {(width,)}
    if wrong:
        raise ValueError(f"logits of shape {sorted(wrong)}: this head has {width} a row; another model's?")
    return np.asarray(logits, dtype=np.float64).reshape(-1, width)
