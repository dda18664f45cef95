"""A linear model of the words and characters of a text: TF-IDF, then ridge or logistic regression by scikit-learn.

Other runs' answers can be columns beside the terms (tasks/stacking.py).
It gives the answers of a head (tasks/heads.py) in seconds and without a GPU. Leaves linear.json (the terms) and
linear.safetensors (their weights and the coefficients): nothing is pickled, so any version of scikit-learn reads it.
With `model: lightgbm` boosted trees take the coefficients' place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kaggle_llm.base import records
from kaggle_llm.competition.competition import Competition
from kaggle_llm.competition.rankings import make_values
from kaggle_llm.tasks.boosted_trees import BoostedTrees, TreeSettings, fit_trees, load_trees, save_trees
from kaggle_llm.tasks.heads import HeadKind, answer_logits, describe_head, list_targets
from kaggle_llm.tasks.stacking import ColumnScales, fit_scales
from kaggle_llm.tasks.terms import Terms, fit_terms, join_texts

if TYPE_CHECKING:
    import polars as pl

TERMS, WEIGHTS = "linear.json", "linear.safetensors"
ITERATIONS = 1000  # of logistic regression, at most


@dataclass
class LinearSettings:
    model: Literal["linear", "lightgbm"] = "linear"
    """linear: ridge for levels and numbers, logistic regression for labels. lightgbm: boosted trees on the same terms;
    LightGBM has to be installed."""
    words: int = 2
    """Longest sequence of words that counts as a term; 0: none."""
    characters: int = 5
    """Longest sequence of characters, of 2 and more within a word, that counts as a term; 0: none."""
    rows: int = 2
    """Rows in which a term stands, at least."""
    strength: float = 1.0
    """Strength of the penalty on coefficients: ridge's alpha, the inverse of logistic regression's C."""
    trees: TreeSettings = field(default_factory=TreeSettings)
    """The settings of lightgbm."""

    def __post_init__(self) -> None:
        if self.words < 0 or self.characters < 0 or self.characters == 1:
            raise ValueError(
                f"words = {self.words}, characters = {self.characters}: words 0 or more, characters 0 or 2 or more"
            )
        if self.rows < 1 or self.strength <= 0:
            raise ValueError(f"rows = {self.rows}, strength = {self.strength}: 1 or more, and more than 0")


@dataclass(frozen=True)
class Coefficients:
    """coefficients [outputs, terms], intercepts [outputs]."""

    coefficients: np.ndarray
    intercepts: np.ndarray

    def logits(self, features: Any) -> np.ndarray:
        return np.asarray(features @ self.coefficients.T + self.intercepts)


@dataclass(frozen=True)
class LinearModel:
    terms: Terms
    outputs: Coefficients | BoostedTrees
    scales: ColumnScales | None = None
    """Scales of the columns that hold other runs' answers; None without them."""

    def logits(self, features: Any, columns: np.ndarray | None) -> np.ndarray:
        """[texts, outputs]. features: of the terms. columns: other runs' answers, where it was fitted with them."""
        return self.outputs.logits(add_columns(features, self.scales, columns))


def fit_linear(
    rows: pl.DataFrame,
    competition: Competition,
    task: HeadKind,
    settings: LinearSettings,
    seed: int,
    folder: Path,
    columns: np.ndarray | None = None,
) -> None:
    """Fit on labelled rows and save into `folder`. columns: other runs' out-of-fold answers to these rows.

    Raises ValueError where no term is in enough rows, and where neither terms nor columns are asked for.
    """
    texts, head = join_texts(rows, competition), describe_head(task, competition)
    if columns is None and not settings.words + settings.characters:
        raise ValueError("linear.words = 0, linear.characters = 0 and no members: give one of them")
    terms = fit_terms(texts, {"words": settings.words, "characters": settings.characters}, settings.rows)
    scales = None if columns is None else fit_scales(columns)
    features = add_columns(terms.features(texts), scales, columns)
    targets = np.array(list_targets(head, competition.truth(rows)))
    arrays = {} if scales is None else {"columns.means": scales.means, "columns.scales": scales.scales}
    if settings.model == "lightgbm":
        save_arrays(terms, arrays, folder)
        save_trees(fit_trees(features, targets, task, settings.trees, seed), folder)
        return
    coefficients, intercepts = fit_outputs(features, targets, task, settings.strength)
    save_arrays(terms, arrays | {"coefficients": coefficients, "intercepts": intercepts}, folder)


def add_columns(features: Any, scales: ColumnScales | None, columns: np.ndarray | None) -> Any:
    """Sparse [rows, features and standardised columns]; raises ValueError where only scales or columns are given."""
    if scales is None and columns is None:
        return features
    if scales is None or columns is None:
        raise ValueError(
            "a linear model is fitted and asked with the same members, or both times without: train it again"
        )
    from scipy.sparse import csr_matrix, hstack

    return hstack([features, csr_matrix(scales.standardise(columns))]).tocsr()


def fit_outputs(features: Any, targets: np.ndarray, task: HeadKind, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients [outputs, terms] and intercepts [outputs]: logistic for labels, ridge for levels and numbers."""
    if task == "classification":
        return fit_classes(features, targets, strength)
    if task == "multilabel":
        fitted = [fit_classes(features, np.stack([1 - column, column], 1), strength) for column in targets.T]
        return np.stack([pair[1] - pair[0] for pair, _ in fitted]), np.array([own[1] - own[0] for _, own in fitted])
    from sklearn.linear_model import Ridge

    model = Ridge(alpha=strength).fit(features, targets.sum(axis=1, keepdims=True) if task == "ordinal" else targets)
    return np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)


def fit_classes(features: Any, shares: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression on the shares of the classes [rows, classes], each share a weighted row.

    A class that no row has gets the intercept of half a row, and no coefficients.
    """
    from sklearn.linear_model import LogisticRegression

    rows, classes = np.nonzero(shares)
    totals = shares.sum(axis=0)
    coefficients = np.zeros((shares.shape[1], features.shape[1]))
    intercepts = np.log(np.maximum(totals, 0.5) / len(shares))
    if len(set(classes)) > 1:
        model = LogisticRegression(C=1 / strength, max_iter=ITERATIONS)
        model.fit(features[rows], classes, sample_weight=shares[rows, classes])
        seen, own, levels = model.classes_, model.coef_, model.intercept_
        if len(seen) == 2:  # scikit-learn gives the second one's odds
            own, levels = np.vstack([-own, own]) / 2, np.concatenate([-levels, levels]) / 2
        coefficients[seen], intercepts[seen] = own, levels
    return coefficients, intercepts


def save_arrays(terms: Terms, arrays: dict[str, np.ndarray], folder: Path) -> None:
    from safetensors.numpy import save_file

    arrays = arrays | {f"idf.{part}": weights for part, weights in terms.idf.items()}
    arrays = {name: np.ascontiguousarray(array, dtype=np.float64) for name, array in arrays.items()}
    records.write_file(folder / WEIGHTS, lambda path: save_file(arrays, path))
    records.write_json(folder / TERMS, terms.terms)


def load_linear(folder: Path) -> LinearModel:
    """What `fit_linear` left."""
    from safetensors.numpy import load_file

    names, arrays = records.read_json(folder / TERMS), load_file(folder / WEIGHTS)
    terms = Terms(names, {part: arrays[f"idf.{part}"] for part in names})
    scales = ColumnScales(arrays["columns.means"], arrays["columns.scales"]) if "columns.means" in arrays else None
    if "coefficients" not in arrays:
        return LinearModel(terms, load_trees(folder), scales)
    return LinearModel(terms, Coefficients(arrays["coefficients"], arrays["intercepts"]), scales)


def make_answer(
    rows: pl.DataFrame, model: LinearModel, task: HeadKind, competition: Competition
) -> Callable[[np.ndarray | None], pl.DataFrame]:
    """A function: other runs' columns, or None → what a head of this task would answer to `rows`.

    RANKING of classes, VALUES of numbers, probabilities and levels. The texts are read once for all calls.
    """
    ids, settings = rows["id"].to_list(), describe_head(task, competition)
    features = model.terms.features(join_texts(rows, competition)) if ids else None

    def answer(columns: np.ndarray | None) -> pl.DataFrame:
        logits = list(model.logits(features, columns)) if ids else []
        if task == "ordinal":  # the level itself, where a head answers "more than …?" for each
            return make_values(ids, np.reshape(logits, (len(ids), 1)))
        return answer_logits(ids, logits, settings)

    return answer
