"""A linear model of the words and characters of a text: TF-IDF, then ridge or logistic regression by scikit-learn.

It gives the answers of a head (tasks/heads.py) in seconds and without a GPU. Leaves linear.json (terms and task) and
linear.safetensors (their weights and the coefficients): nothing is pickled, so any version of scikit-learn reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kaggle_llm.base import records
from kaggle_llm.competition.competition import TEST, Competition
from kaggle_llm.competition.rankings import make_values
from kaggle_llm.tasks.heads import HeadKind, answer_logits, describe_head, list_targets

if TYPE_CHECKING:
    import polars as pl

TERMS, WEIGHTS = "linear.json", "linear.safetensors"
PARTS = ("words", "characters")
MOST_TERMS = 200_000  # of each part, those in the most rows
ITERATIONS = 1000  # of logistic regression, at most


@dataclass
class LinearSettings:
    words: int = 2
    """Longest sequence of words that counts as a term; 0: none."""
    characters: int = 5
    """Longest sequence of characters, of 2 and more within a word, that counts as a term; 0: none."""
    rows: int = 2
    """Rows in which a term stands, at least."""
    strength: float = 1.0
    """Of the penalty on coefficients: ridge's alpha, the inverse of logistic regression's C."""

    def __post_init__(self) -> None:
        if self.words < 0 or self.characters < 0 or self.words + self.characters == 0 or self.characters == 1:
            raise ValueError(
                f"words = {self.words}, characters = {self.characters}: one of them is 1 or more; characters 2 or more"
            )
        if self.rows < 1 or self.strength <= 0:
            raise ValueError(f"rows = {self.rows}, strength = {self.strength}: 1 or more, and more than 0")


@dataclass(frozen=True)
class LinearModel:
    """terms: part → its terms in order. idf: part → a weight of each. coefficients [outputs, terms], intercepts."""

    terms: dict[str, list[str]]
    idf: dict[str, np.ndarray]
    coefficients: np.ndarray
    intercepts: np.ndarray

    def logits(self, texts: Sequence[str]) -> np.ndarray:
        """[texts, outputs]."""
        from scipy.sparse import hstack

        parts = [self.vectorizer(part).transform(texts) for part in self.terms]
        return np.asarray(hstack(parts).tocsr() @ self.coefficients.T + self.intercepts)

    def vectorizer(self, part: str) -> Any:
        longest = max(measure_term(part, term) for term in self.terms[part])
        made = make_vectorizer(part, longest, vocabulary=self.terms[part])
        made.idf_ = self.idf[part]
        return made


def measure_term(part: str, term: str) -> int:
    """How many words or characters a term has."""
    return len(term if part == "characters" else term.split(" "))


def make_vectorizer(part: str, longest: int, **options: Any) -> Any:
    """scikit-learn's TF-IDF of words (whatever stands between blanks) or of characters within them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if part == "words":
        options |= {"token_pattern": r"\S+", "ngram_range": (1, longest)}
    else:
        options |= {"analyzer": "char_wb", "ngram_range": (2, longest)}
    return TfidfVectorizer(sublinear_tf=True, **options)


def fit_linear(
    rows: pl.DataFrame, competition: Competition, task: HeadKind, settings: LinearSettings, folder: Path
) -> None:
    """Fit on labelled rows and save into `folder`; raises ValueError where no term is in enough rows."""
    from scipy.sparse import hstack

    texts, head = join_texts(rows, competition), describe_head(task, competition)
    made = fit_vectorizers(texts, settings)
    features = hstack([vectorizer.transform(texts) for vectorizer in made.values()]).tocsr()
    targets = np.array(list_targets(head, competition.truth(rows)))
    coefficients, intercepts = fit_outputs(features, targets, task, settings.strength)
    save_linear(
        LinearModel(
            {part: vectorizer.get_feature_names_out().tolist() for part, vectorizer in made.items()},
            {part: vectorizer.idf_ for part, vectorizer in made.items()},
            coefficients,
            intercepts,
        ),
        folder,
    )


def fit_vectorizers(texts: Sequence[str], settings: LinearSettings) -> dict[str, Any]:
    """Part → a fitted vectorizer, of those parts that the settings ask for."""
    made = {}
    for part in PARTS:
        if longest := getattr(settings, part):
            least = min(settings.rows, len(texts))
            made[part] = make_vectorizer(part, longest, min_df=least, max_features=MOST_TERMS).fit(texts)
    return made


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


def save_linear(model: LinearModel, folder: Path) -> None:
    from safetensors.numpy import save_file

    arrays = {"coefficients": model.coefficients, "intercepts": model.intercepts}
    arrays |= {f"idf.{part}": weights for part, weights in model.idf.items()}
    arrays = {name: np.ascontiguousarray(array, dtype=np.float64) for name, array in arrays.items()}
    records.write_file(folder / WEIGHTS, lambda path: save_file(arrays, path))
    records.write_json(folder / TERMS, model.terms)


def load_linear(folder: Path) -> LinearModel:
    """What `fit_linear` left."""
    from safetensors.numpy import load_file

    terms, arrays = records.read_json(folder / TERMS), load_file(folder / WEIGHTS)
    idf = {part: arrays[f"idf.{part}"] for part in terms}
    return LinearModel(terms, idf, arrays["coefficients"], arrays["intercepts"])


def answer_linear(rows: pl.DataFrame, model: LinearModel, task: HeadKind, competition: Competition) -> pl.DataFrame:
    """What a head of this task would answer: RANKING of classes, VALUES of numbers, probabilities and levels."""
    ids, settings = rows["id"].to_list(), describe_head(task, competition)
    logits = list(model.logits(join_texts(rows, competition))) if ids else []
    if task == "ordinal":  # ridge gives the level, where a head answers "more than …?" for each
        return make_values(ids, np.reshape(logits, (len(ids), 1)))
    return answer_logits(ids, logits, settings)


def join_texts(rows: pl.DataFrame, competition: Competition) -> list[str]:
    """All texts of each row as one."""
    return ["\n".join(texts) for texts in rows.select(competition.tables[TEST].texts).iter_rows()]
