"""Gradient boosted trees by LightGBM on any features: one booster for each number or label, one for all classes.

Leaves boosters in LightGBM's own text format and, in boosters.safetensors, which outputs each of them answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from kaggle_llm.base import records
from kaggle_llm.tasks.heads import HeadKind

OUTPUTS = "boosters.safetensors"
# One thread, so that a sum has one order: the same trees everywhere.
ALWAYS = {"num_threads": 1, "deterministic": True, "force_row_wise": True, "verbosity": -1}


@dataclass
class TreeSettings:
    rounds: int = 300
    """Trees of each output."""
    leaves: int = 15
    """Leaves of a tree, at most."""
    learning_rate: float = 0.05
    rows: int = 5
    """Training rows in a leaf, at least."""
    features: float = 0.3
    """Share of the features that a tree may ask about, drawn for each."""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.leaves < 2 or self.rows < 1:
            raise ValueError(f"rounds = {self.rounds}, leaves = {self.leaves}, rows = {self.rows}: at least 1, 2 and 1")
        if self.learning_rate <= 0 or not 0 < self.features <= 1:
            raise ValueError(
                f"learning_rate = {self.learning_rate}, features = {self.features}: more than 0, features at most 1"
            )


@dataclass(frozen=True)
class Booster:
    """outputs: those that its answers are."""

    outputs: np.ndarray
    booster: Any


@dataclass(frozen=True)
class BoostedTrees:
    """intercepts [outputs]: the answer of outputs without a booster."""

    boosters: list[Booster]
    intercepts: np.ndarray

    def logits(self, features: Any) -> np.ndarray:
        """[rows, outputs] of sparse features [rows, terms]."""
        logits = np.tile(self.intercepts, (features.shape[0], 1))
        for each in self.boosters:
            answers = each.booster.predict(features, raw_score=True, num_threads=1)
            logits[:, each.outputs] = answers.reshape(len(logits), -1)
        return logits


def import_lightgbm() -> Any:
    if not find_spec("lightgbm"):
        raise ImportError("linear.model = lightgbm needs LightGBM: pip install lightgbm")
    import lightgbm

    return lightgbm


def fit_trees(features: Any, targets: np.ndarray, task: HeadKind, settings: TreeSettings, seed: int) -> BoostedTrees:
    """Trees for classes or labels by cross-entropy, for levels and numbers by squared error. targets: list_targets'."""
    totals = np.maximum(targets.sum(axis=0), 0.5)
    if task == "classification":
        boosters, intercepts = fit_classes(features, targets, settings, seed), np.log(totals / len(targets))
    elif task == "multilabel":
        rest = np.maximum((1 - targets).sum(axis=0), 0.5)
        boosters, intercepts = list(fit_labels(features, targets, settings, seed)), np.log(totals / rest)
    else:
        numbers = targets.sum(axis=1, keepdims=True) if task == "ordinal" else targets
        boosters, intercepts = list(fit_numbers(features, numbers, settings, seed)), np.zeros(numbers.shape[1])
    return BoostedTrees(boosters, intercepts)


def fit_classes(features: Any, shares: np.ndarray, settings: TreeSettings, seed: int) -> list[Booster]:
    """One booster of the classes that rows have; each share of a row is a weighted row."""
    rows, classes = np.nonzero(shares)
    seen, labels = np.unique(classes, return_inverse=True)
    if len(seen) < 2:
        return []
    options = {"objective": "multiclass", "num_class": len(seen)}
    return [Booster(seen, boost(features[rows], labels, settings, seed, shares[rows, classes], **options))]


def fit_labels(features: Any, shares: np.ndarray, settings: TreeSettings, seed: int) -> Iterator[Booster]:
    """A booster of each label that some rows have and some have not."""
    for output, column in enumerate(shares.T):
        if 0 < column.mean() < 1:
            yield Booster(np.array([output]), boost(features, column, settings, seed, objective="cross_entropy"))


def fit_numbers(features: Any, numbers: np.ndarray, settings: TreeSettings, seed: int) -> Iterator[Booster]:
    for output, column in enumerate(numbers.T):
        yield Booster(np.array([output]), boost(features, column, settings, seed, objective="regression"))


def boost(
    features: Any, target: np.ndarray, settings: TreeSettings, seed: int, weights: Any = None, **options: Any
) -> Any:
    """LightGBM's booster."""
    lightgbm = import_lightgbm()
    options |= {"num_leaves": settings.leaves, "learning_rate": settings.learning_rate, "seed": seed, **ALWAYS}
    options |= {"min_data_in_leaf": settings.rows, "feature_fraction": settings.features}
    return lightgbm.train(options, lightgbm.Dataset(features, target, weight=weights), settings.rounds)


def save_trees(trees: BoostedTrees, folder: Path) -> None:
    from safetensors.numpy import save_file

    arrays = {"intercepts": trees.intercepts}
    for number, each in enumerate(trees.boosters):
        records.write_text(name_booster(folder, number), each.booster.model_to_string())
        arrays[f"outputs.{number}"] = each.outputs
    records.write_file(folder / OUTPUTS, lambda path: save_file(arrays, path))


def load_trees(folder: Path) -> BoostedTrees:
    """What `save_trees` left."""
    from safetensors.numpy import load_file

    lightgbm, arrays = import_lightgbm(), load_file(folder / OUTPUTS)
    texts = [name_booster(folder, number).read_text(encoding="utf-8") for number in range(len(arrays) - 1)]
    loaded = [lightgbm.Booster(model_str=text) for text in texts]
    boosters = [Booster(arrays[f"outputs.{number}"], booster) for number, booster in enumerate(loaded)]
    return BoostedTrees(boosters, arrays["intercepts"])


def name_booster(folder: Path, number: int) -> Path:
    return folder / f"booster{number}.txt"
