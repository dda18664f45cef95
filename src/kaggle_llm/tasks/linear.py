"""What a head has to beat: linear models of a text's length or words, fitted in seconds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from kaggle_llm.competition.competition import Competition
from kaggle_llm.competition.rankings import make_ranking, make_values
from kaggle_llm.tasks.heads import HeadKind, HeadSettings, describe_head, list_targets
from kaggle_llm.tasks.terms import join_texts, make_vectorizer

if TYPE_CHECKING:
    import polars as pl

LEAST_SHARE = 1e-3  # smallest share of a label, for which a linear model may predict less than 0
Rule = Callable[[Sequence[str], np.ndarray, Sequence[str]], np.ndarray]
"""(training texts, their targets [n, targets], texts) → [rows, targets]."""


def predict_by_words(train: Sequence[str], targets: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Ridge regression on the TF-IDF of words and pairs of words."""
    from sklearn.linear_model import Ridge

    words = make_vectorizer("words", 2)
    model = Ridge().fit(words.fit_transform(train), targets)
    return np.asarray(model.predict(words.transform(texts)))


def predict_by_length(train: Sequence[str], targets: np.ndarray, texts: Sequence[str]) -> np.ndarray:
    """Linear regression on the number of characters and its logarithm."""
    from sklearn.linear_model import LinearRegression

    def measure(some: Sequence[str]) -> np.ndarray:
        lengths = np.array([[len(text)] for text in some], dtype=float)
        return np.hstack([lengths, np.log1p(lengths)])

    return np.asarray(LinearRegression().fit(measure(train), targets).predict(measure(texts)))


def answer_by_rule(
    rule: Rule, task: HeadKind, competition: Competition, train: pl.DataFrame, rows: pl.DataFrame
) -> pl.DataFrame:
    """What a head of this task would answer to `rows`, by a rule fitted on the labelled rows `train`."""
    settings = describe_head(task, competition)
    targets = np.array(list_targets(settings, competition.truth(train)))
    texts, asked = (join_texts(frame, competition) for frame in (train, rows))
    return answer_predicted(settings, rows["id"].to_list(), rule(texts, targets, asked).reshape(len(asked), -1))


def answer_predicted(settings: HeadSettings, ids: Sequence[str], predicted: np.ndarray) -> pl.DataFrame:
    """RANKING of classes, VALUES of numbers and levels, of the predicted targets [rows, targets]."""
    if settings.task == "classification":
        shares = np.maximum(predicted, LEAST_SHARE)
        logs = np.log(shares / shares.sum(axis=1, keepdims=True))
        return make_ranking(ids, [settings.labels] * len(ids), logs.tolist())
    if settings.task == "multilabel":
        return make_values(ids, squash(predicted))
    return make_values(ids, predicted.sum(axis=1, keepdims=True) if settings.task == "ordinal" else predicted)


def squash(predicted: np.ndarray, margin: float = 0.01) -> np.ndarray:
    """Numbers → probabilities, in the same order: only what is below `margin` or above 1 − margin changes."""
    low = margin * np.exp(np.minimum(predicted / margin - 1, 0))
    high = 1 - margin * np.exp(np.minimum((1 - predicted) / margin - 1, 0))
    return np.where(predicted < margin, low, np.where(predicted > 1 - margin, high, predicted))
