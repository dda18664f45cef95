"""Metrics of labels, levels and probabilities; of spans, which are right or wrong as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from kaggle_llm.competition.metric import (
    Metric,
    UndefinedScore,
    by_row,
    count_metric,
    first_items,
    join_truth,
    mean_metric,
    whole_metric,
)
from kaggle_llm.competition.rankings import is_values
from kaggle_llm.competition.spans import label_tokens, parse_item
from kaggle_llm.competition.value_metrics import read_targets

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


def accuracy() -> Metric:
    """Share of rows whose first item is right; a row without items is wrong."""
    return mean_metric("accuracy", by_row(lambda items, right: float(not right.isdisjoint(items[:1]))))


def f_beta(beta: float, labels: Sequence[str], average: str = "macro") -> Metric:
    """F-beta of the first items; macro: the mean over `labels`, a label that nobody has or predicts counting 0.

    average: macro, micro or weighted, as in scikit-learn's fbeta_score, which computes it.
    """

    def score(ranking: pl.DataFrame, truth: pl.DataFrame) -> float:
        from sklearn.metrics import fbeta_score

        predicted, right = _label_pairs(ranking, truth)
        return float(fbeta_score(right, predicted, beta=beta, labels=list(labels), average=average, zero_division=0))

    return whole_metric(f"{average}-f{beta:g}", score)


def matthews_correlation() -> Metric:
    """Matthews' correlation coefficient of the first items, for any number of labels; by scikit-learn."""

    def score(ranking: pl.DataFrame, truth: pl.DataFrame) -> float:
        from sklearn.metrics import matthews_corrcoef

        predicted, right = _label_pairs(ranking, truth)
        return float(matthews_corrcoef(right, predicted))

    return whole_metric("mcc", score)


def roc_auc(positive: str = "1", by: str = "") -> Metric:
    """Area under the ROC curve over all rows; the share of pairs that are in the right order, equal ones count ½.

    Of RANKINGs: the probability of the label `positive` (the softmax of the row's scores). Of VALUES, each 0 or 1 in
    the truth: the mean over targets. by: a column of the truth; the mean over its groups of rows. Groups and targets
    whose rows are all of one class are left out; raises UndefinedScore where none is left.
    """

    def score(answer: pl.DataFrame, truth: pl.DataFrame) -> float:
        import numpy as np

        if is_values(answer):
            predicted, right = read_targets(answer, truth)
        else:
            predicted, right = _odds_of(answer, truth, positive)
        groups = join_truth(answer, truth, by)["right"].to_numpy() if by else np.zeros(len(right))
        scores = [
            _area(predicted[rows, target], right[rows, target])
            for rows in (groups == group for group in np.unique(groups))
            for target in range(right.shape[1])
            if 0 < right[rows, target].mean() < 1
        ]
        if not scores:
            rows = f"{len(right)} row(s) of one class"
            raise UndefinedScore(f"auc of {rows} is not defined: score rows of both classes, with a larger folds.rows")
        return float(np.mean(scores))

    return whole_metric("auc", score)


def log_loss(labels: Sequence[str], weights: Mapping[str, float] | None = None) -> Metric:
    """Mean of −log p(right label), or of −Σ share·log p where the truth has a column `shares` beside its items.

    Lower is better. Items are all of `labels`, scores their log-probabilities up to a constant: rows are normalised and
    p is clipped to 1e-15 … 1 − 1e-15, as Kaggle does. weights: of each label; the mean is then weighted by those of the
    right labels. Raises ValueError for a row that scores other labels, and for one whose right labels have shares that
    do not sum to 1; without shares a row has one right label.
    """
    if weights is None:
        even = dict.fromkeys(labels, 1.0)
        return mean_metric(
            "log_loss", lambda ranking, truth: _log_losses(labels, even, ranking, truth)[:, 0], greater_is_better=False
        )

    def score(ranking: pl.DataFrame, truth: pl.DataFrame) -> float:
        total, weight = _log_losses(labels, weights, ranking, truth).sum(axis=0)
        return float(total / weight)

    return whole_metric("weighted_log_loss", score, greater_is_better=False)


def quadratic_weighted_kappa(levels: Sequence[str]) -> Metric:
    """Agreement beyond chance on ordered levels, errors weighted by their squared distance; see `quadratic_kappa`.

    levels: the labels from lowest to highest. Raises ValueError for a row with another answer.
    """
    return whole_metric("qwk", lambda ranking, truth: quadratic_kappa(*_level_pairs(ranking, truth, levels)))


def quadratic_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """1 − Σ(a−b)² / E Σ(a−b)², the expectation over all pairs of an a and a b; 0 where all have the same level.

    first, second: [n] levels as numbers. Source: Cohen, Weighted kappa, Psychological Bulletin 70 (1968), with
    weights (i−j)², whose sums over the confusion matrix are computed from means and variances.
    """
    first, second = first.astype(float), second.astype(float)
    expected = first.var() + second.var() + (first.mean() - second.mean()) ** 2
    return float(1 - ((first - second) ** 2).mean() / expected) if expected else 0.0


def span_f_beta(beta: float) -> Metric:
    """Micro F-beta over the items of all rows, such as "start:end:TYPE": (1+β²)·hits / (β²·right + predicted).

    An item counts only if it is exactly right. 0 where nothing is right and nothing predicted, as in scikit-learn.
    """
    return count_metric(f"f{beta:g}", _count_spans, partial(combine_f_beta, beta=beta))


def token_f_beta(beta: float) -> Metric:
    """Micro F-beta over the labelled tokens of all rows: a token counts if it has the right B-TYPE or I-TYPE.

    Answers and truth are spans; the truth has a column `tokens`, "start:end" of each, as TokenSpans makes it.
    """
    return count_metric(f"f{beta:g}", _count_tokens, partial(combine_f_beta, beta=beta))


def combine_f_beta(counts: np.ndarray, beta: float) -> np.ndarray:
    """(1+β²)·hits / (β²·right + predicted) of counts [..., (hits, predicted, right)]; 0 where there is nothing."""
    import numpy as np

    hits, predicted, right = np.moveaxis(np.asarray(counts, dtype=float), -1, 0)
    below = beta**2 * right + predicted
    return np.divide((1 + beta**2) * hits, below, out=np.zeros_like(below), where=below > 0)


def _count_spans(ranking: pl.DataFrame, truth: pl.DataFrame) -> np.ndarray:
    """[rows, 3]: hits, predicted and right items of every row."""
    joined = join_truth(ranking, truth)
    items, right = joined["items"].list, joined["right"].list
    return joined.select(
        items.set_intersection(joined["right"]).list.len(), items.n_unique().alias("predicted"), right.n_unique()
    ).to_numpy()


def _count_tokens(ranking: pl.DataFrame, truth: pl.DataFrame) -> np.ndarray:
    """[rows, 3]: hits, predicted and right labels of tokens of every row."""
    import numpy as np

    joined = join_truth(ranking, truth).with_columns(tokens=join_truth(ranking, truth, "tokens")["right"])
    counts = []
    for items, right, tokens in joined.select("items", "right", "tokens").iter_rows():
        offsets = [(int(start), int(end)) for start, _, end in (token.partition(":") for token in tokens)]
        given, asked = (set(label_tokens(offsets, [parse_item(item) for item in row])) for row in (items, right))
        counts.append([len(given & asked), len(given), len(asked)])
    return np.array(counts).reshape(-1, 3)


def _level_pairs(ranking: pl.DataFrame, truth: pl.DataFrame, levels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    import polars as pl

    joined = join_truth(ranking, truth)
    answers, right = first_items(joined, "items"), first_items(joined, "right")
    unknown = sorted({*answers.unique(), *right.unique()} - set(levels))
    if unknown:
        raise ValueError(f"{unknown[:3]} are no levels: there are {list(levels)}")
    numbers = {level: number for number, level in enumerate(levels)}
    first, second = (labels.replace_strict(numbers, return_dtype=pl.Int64).to_numpy() for labels in (answers, right))
    return first, second


def _log_losses(
    labels: Sequence[str], weights: Mapping[str, float], ranking: pl.DataFrame, truth: pl.DataFrame
) -> np.ndarray:
    """[rows, 2]: −Σ weight·share·log p, and Σ weight·share, over the right labels of a row."""
    import numpy as np

    joined = join_truth(ranking, truth)
    if "shares" in truth.columns:
        shares = join_truth(ranking, truth, "shares")["right"].to_list()
    else:
        shares = [[1.0]] * ranking.height
    columns = [joined[name].to_list() for name in ("id", "items", "scores", "right")]
    return np.array([_log_loss(labels, weights, *row) for row in zip(*columns, shares, strict=True)], dtype=float)


def _log_loss(
    labels: Sequence[str],
    weights: Mapping[str, float],
    row: str,
    items: list[str],
    scores: list[float],
    right: list[str],
    shares: list[float],
) -> tuple[float, float]:
    if sorted(items) != sorted(labels) or not set(right) <= set(labels):
        raise ValueError(f"row {row!r} scores {items}, right is {right}: give a score for each of {list(labels)}")
    if len(right) != len(shares) or abs(sum(shares) - 1) > 1e-3:
        raise ValueError(f"row {row!r} has the right labels {right} with the shares {shares}: they must sum to 1")
    peak = max(scores)
    odds = {item: math.exp(score - peak) for item, score in zip(items, scores, strict=True)}
    total = sum(odds.values())
    probabilities = [min(max(odds[label] / total, 1e-15), 1 - 1e-15) for label in right]
    weighted = [weights[label] * share for label, share in zip(right, shares, strict=True)]
    return -sum(w * math.log(p) for w, p in zip(weighted, probabilities, strict=True)), sum(weighted)


def _label_pairs(ranking: pl.DataFrame, truth: pl.DataFrame) -> tuple[list[str], list[str]]:
    """The first items and the right ones."""
    joined = join_truth(ranking, truth)
    return first_items(joined, "items").to_list(), first_items(joined, "right").to_list()


def _odds_of(ranking: pl.DataFrame, truth: pl.DataFrame, label: str) -> tuple[np.ndarray, np.ndarray]:
    """[rows, 1] each: the label's log-odds, and 1 where it is the right one."""
    import numpy as np

    joined = join_truth(ranking, truth)
    rows = joined.select("id", "items", "scores").iter_rows()
    predicted = [_log_odds(dict(zip(items, scores, strict=True)), label, row) for row, items, scores in rows]
    return np.array(predicted)[:, None], joined["right"].list.contains(label).to_numpy().astype(float)[:, None]


def _log_odds(scores: dict[str, float], label: str, row: str) -> float:
    """log p/(1−p) of the label: in the order of p, and different where p is 1 to the last digit."""
    if label not in scores or len(scores) < 2:
        raise ValueError(f"row {row!r} scores {list(scores)}: give {label!r} and every other label a score")
    others = [score for item, score in scores.items() if item != label]
    peak = max(others)
    return scores[label] - peak - math.log(sum(math.exp(score - peak) for score in others))


def _area(predicted: np.ndarray, right: np.ndarray) -> float:
    """(Σ ranks of the positive rows − p(p+1)/2) / (p·n): Mann and Whitney's U over all pairs."""
    from scipy.stats import rankdata

    positive = int(right.sum())
    rank_sum = rankdata(predicted)[right > 0].sum()
    return float((rank_sum - positive * (positive + 1) / 2) / (positive * (len(right) - positive)))
