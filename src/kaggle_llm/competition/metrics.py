"""Metrics of a ranking, bootstrap intervals, and the paired difference of two rankings.

A truth is a frame with the columns `id` and `items` (the right ones), or `values` where VALUES are scored; it may have
more rows than the ranking. Metrics of a single answer (a label, a level, a text) score the first item of a row.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

Rows = Callable[["pl.DataFrame", "pl.DataFrame"], "np.ndarray"]


@dataclass(frozen=True)
class Metric:
    """score(ranking, truth) → float; rows(ranking, truth) → one value for each row, whose mean is the score.

    rows is None where the metric is no mean over rows; the bootstrap then calls `score` for each draw.
    """

    name: str
    greater_is_better: bool
    score: Callable[[pl.DataFrame, pl.DataFrame], float]
    rows: Rows | None = None

    @property
    def sign(self) -> int:
        """1 or −1: the larger sign · score is, the better."""
        return 1 if self.greater_is_better else -1


def mean_average_precision(k: int) -> Metric:
    """MAP@k: mean over rows of (1/min(m, k)) Σ_{i≤k} precision(i)·relevant(i), m right items.

    Source: Manning, Raghavan, Schütze, Introduction to Information Retrieval, section 8.4, cut at k.
    """
    return _mean_metric(f"map@{k}", _by_row(partial(_average_precision, k=k)))


def recall(k: int) -> Metric:
    """recall@k: mean over rows of the share of right items among the first k."""
    return _mean_metric(f"recall@{k}", _by_row(partial(_recall, k=k)))


def accuracy() -> Metric:
    """Share of rows whose first item is right; a row without items is wrong."""
    return _mean_metric("accuracy", _by_row(lambda items, right: float(not right.isdisjoint(items[:1]))))


def log_loss(labels: Sequence[str]) -> Metric:
    """Mean of −log p(right label), or of −Σ share·log p where the truth has a column `shares` beside its items.

    Lower is better. Items are all of `labels`, scores their log-probabilities up to a constant: rows are normalised and
    p is clipped to 1e-15 … 1 − 1e-15, as Kaggle does. Raises ValueError for a row that scores other labels, and for one
    whose right labels have shares that do not sum to 1; without shares a row has one right label.
    """

    def rows(ranking: pl.DataFrame, truth: pl.DataFrame) -> np.ndarray:
        import numpy as np

        joined = _join_truth(ranking, truth)
        if "shares" in truth.columns:
            shares = _join_truth(ranking, truth.select("id", items="shares"))["right"].to_list()
        else:
            shares = [[1.0]] * ranking.height
        columns = [joined[name].to_list() for name in ("id", "items", "scores", "right")]
        return np.array([_log_loss(labels, *row) for row in zip(*columns, shares, strict=True)], dtype=float)

    return _mean_metric("log_loss", rows, greater_is_better=False)


def exact_match(normalise: Callable[[str], str] | None = None) -> Metric:
    """Share of rows whose first item equals one of the right ones, both normalised; without items: wrong.

    normalise: default normalise_answer, as SQuAD does. It takes −5 for 5 and 0.5 for 05: give str.strip for numbers.
    """
    same = normalise or normalise_answer
    return _mean_metric(
        "exact_match", _by_row(lambda items, right: float(bool(items) and same(items[0]) in map(same, right)))
    )


def normalise_answer(text: str) -> str:
    """Lower case without ASCII punctuation, the articles a, an, the, and white space beyond one blank.

    Source: normalize_answer of SQuAD's evaluate-v1.1.py.
    """
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def rouge(variant: str) -> Metric:
    """Mean F-measure of a row's first item, the best over the right texts; without items or right texts: 0.

    variant: rouge1 to rouge9, rougeL or rougeLsum (lines as sentences) of the rouge-score package, without its stemmer.
    The package sees only letters a to z and digits: a text in another script scores 0.
    """
    if not re.fullmatch(r"rouge([1-9]|L|Lsum)", variant):
        raise ValueError(f"rouge({variant!r}): there are rouge1 to rouge9, rougeL and rougeLsum")
    return _mean_metric(variant, _by_row(partial(_rouge, variant=variant)))


def words() -> Metric:
    """Mean number of words (separated by white space) of a row's first item; 0 for a row without items."""
    return _mean_metric(
        "words", _by_row(lambda items, right: float(len(_first(items).split()))), greater_is_better=False
    )


def repetition() -> Metric:
    """Mean share of a text's word trigrams that it has already used: 0 for a text that never repeats itself."""
    return _mean_metric("repetition", _by_row(lambda items, right: _repetition(_first(items))), greater_is_better=False)


def quadratic_weighted_kappa(levels: Sequence[str]) -> Metric:
    """Agreement beyond chance on ordered levels, errors weighted by their squared distance; see `quadratic_kappa`.

    levels: the labels from lowest to highest. Raises ValueError for a row with another answer.
    """
    return _whole_metric("qwk", lambda ranking, truth: quadratic_kappa(*_level_pairs(ranking, truth, levels)))


def quadratic_kappa(first: np.ndarray, second: np.ndarray) -> float:
    """1 − Σ(a−b)² / E Σ(a−b)², the expectation over all pairs of an a and a b; 0 where all have the same level.

    first, second: [n] levels as numbers. Source: Cohen, Weighted kappa, Psychological Bulletin 70 (1968), with
    weights (i−j)², whose sums over the confusion matrix are computed from means and variances.
    """
    first, second = first.astype(float), second.astype(float)
    expected = first.var() + second.var() + (first.mean() - second.mean()) ** 2
    return float(1 - ((first - second) ** 2).mean() / expected) if expected else 0.0


def root_mean_squared_error() -> Metric:
    """sqrt(mean((value − true value)²)) of VALUES, its mean over several targets; lower is better."""
    return _whole_metric("rmse", partial(_mean_of_targets, _rmse), greater_is_better=False)


def pearson() -> Metric:
    """Linear correlation of VALUES with the true ones, 0 where either is constant; its mean over targets."""
    return _whole_metric("pearson", partial(_mean_of_targets, _correlation))


def spearman() -> Metric:
    """Pearson correlation of the ranks, equal values with their mean rank; its mean over targets."""
    return _whole_metric("spearman", partial(_mean_of_targets, _rank_correlation))


def span_f_beta(beta: float) -> Metric:
    """Micro F-beta over the items of all rows, such as "start:end:TYPE": (1+β²)·hits / (β²·right + predicted).

    An item counts only if it is exactly right. 0 where nothing is right and nothing predicted, as in scikit-learn.
    """
    return _whole_metric(f"f{beta:g}", partial(_span_f_beta, beta=beta))


def _mean_metric(name: str, rows: Rows, greater_is_better: bool = True) -> Metric:
    metric = _whole_metric(name, lambda ranking, truth: float(rows(ranking, truth).mean()), greater_is_better)
    return replace(metric, rows=rows)


def _whole_metric(
    name: str, score: Callable[[pl.DataFrame, pl.DataFrame], float], greater_is_better: bool = True
) -> Metric:
    def checked(ranking: pl.DataFrame, truth: pl.DataFrame) -> float:
        if ranking.height == 0:
            raise ValueError(f"{name} of no rows is not defined: the ranking is empty")
        return score(ranking, truth)

    return Metric(name, greater_is_better, checked)


def _by_row(score_row: Callable[[list[str], set[str]], float]) -> Rows:
    """score_row(items, right) of every row."""

    def rows(ranking: pl.DataFrame, truth: pl.DataFrame) -> np.ndarray:
        import numpy as np

        pairs = _join_truth(ranking, truth).select("items", "right").iter_rows()
        return np.array([score_row(items, set(right)) for items, right in pairs], dtype=float)

    return rows


def _join_truth(ranking: pl.DataFrame, truth: pl.DataFrame, column: str = "items") -> pl.DataFrame:
    """The ranking with a column `right`, the truth's; a bootstrap's ranking may hold a row more than once."""
    if truth["id"].is_duplicated().any():
        raise ValueError(f"the truth has {truth['id'].is_duplicated().sum()} rows that share an id: give one for each")
    joined = ranking.join(truth.select("id", right=column), on="id", how="left", maintain_order="left")
    missing = joined.filter(joined["right"].is_null())["id"].to_list()
    if missing:
        raise ValueError(f"{len(missing)} ranked row(s) without truth, first {missing[:3]}")
    return joined


def _answers(frame: pl.DataFrame, column: str) -> pl.Series:
    """The first item of every row; `right` must have exactly one."""
    counts = frame[column].list.len()
    bad = frame.filter(counts != 1 if column == "right" else counts == 0)["id"].to_list()
    if bad:
        problem = "have not exactly one right answer" if column == "right" else "have no answer: every row needs one"
        raise ValueError(f"{len(bad)} row(s) {problem}, first {bad[:3]}")
    return frame[column].list.first()


def _level_pairs(ranking: pl.DataFrame, truth: pl.DataFrame, levels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    import polars as pl

    joined = _join_truth(ranking, truth)
    answers, right = _answers(joined, "items"), _answers(joined, "right")
    unknown = sorted({*answers.unique(), *right.unique()} - set(levels))
    if unknown:
        raise ValueError(f"{unknown[:3]} are no levels: there are {list(levels)}")
    places = {level: place for place, level in enumerate(levels)}
    first, second = (labels.replace_strict(places, return_dtype=pl.Int64).to_numpy() for labels in (answers, right))
    return first, second


def _mean_of_targets(
    score: Callable[[np.ndarray, np.ndarray], float], values: pl.DataFrame, truth: pl.DataFrame
) -> float:
    """The mean over targets of score(values, true values); raises ValueError where their numbers differ."""
    import numpy as np

    joined = _join_truth(values, truth, "values")
    both = [joined[column].to_list() for column in ("values", "right")]
    if len({len(row) for rows in both for row in rows}) != 1:
        raise ValueError(f"rows have {len(both[0][0])} values, the truth has {len(both[1][0])}: as many are needed")
    predicted, right = (np.array(rows, dtype=float) for rows in both)
    if (bad := ~np.isfinite(predicted + right).all(axis=1)).any():
        first = joined["id"][int(bad.argmax())]
        raise ValueError(f"{bad.sum()} row(s) whose answer is no finite number, first {first!r}")
    return float(np.mean([score(predicted[:, target], right[:, target]) for target in range(right.shape[1])]))


def _rmse(values: np.ndarray, right: np.ndarray) -> float:
    return math.sqrt(((values - right) ** 2).mean())


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    import numpy as np

    constant = np.ptp(first) == 0 or np.ptp(second) == 0
    return 0.0 if constant else float(np.corrcoef(first, second)[0, 1])


def _rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    from scipy.stats import rankdata

    return _correlation(rankdata(first), rankdata(second))


def _span_f_beta(ranking: pl.DataFrame, truth: pl.DataFrame, beta: float) -> float:
    joined = _join_truth(ranking, truth)
    hits = int(joined["items"].list.set_intersection(joined["right"]).list.len().sum())
    predicted, right = (int(joined[column].list.n_unique().sum()) for column in ("items", "right"))
    return (1 + beta**2) * hits / (beta**2 * right + predicted) if right + predicted else 0.0


def _log_loss(
    labels: Sequence[str], row: str, items: list[str], scores: list[float], right: list[str], shares: list[float]
) -> float:
    if sorted(items) != sorted(labels) or not set(right) <= set(labels):
        raise ValueError(f"row {row!r} scores {items}, right is {right}: give a score for each of {list(labels)}")
    if len(right) != len(shares) or abs(sum(shares) - 1) > 1e-3:
        raise ValueError(f"row {row!r} has the right labels {right} with the shares {shares}: they must sum to 1")
    peak = max(scores)
    weights = {item: math.exp(score - peak) for item, score in zip(items, scores, strict=True)}
    total = sum(weights.values())
    probabilities = [min(max(weights[label] / total, 1e-15), 1 - 1e-15) for label in right]
    return -sum(share * math.log(p) for share, p in zip(shares, probabilities, strict=True))


def _rouge(items: list[str], right: set[str], variant: str) -> float:
    if not items or not right:
        return 0.0
    return float(_rouge_scorer(variant).score_multi(sorted(right), items[0])[variant].fmeasure)


def _first(items: list[str]) -> str:
    return items[0] if items else ""


def _repetition(text: str) -> float:
    tokens = text.lower().split()
    trigrams = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1 - len(set(trigrams)) / len(trigrams) if trigrams else 0.0


@cache
def _rouge_scorer(variant: str) -> Any:
    """Made at the first use, because a competition names its metrics when it is imported."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([variant])


def _average_precision(items: list[str], right: set[str], k: int) -> float:
    if not right:
        return 0.0
    hits, total = 0, 0.0
    for rank, item in enumerate(items[:k], start=1):
        if item in right:
            hits += 1
            total += hits / rank
    return total / min(len(right), k)


def _recall(items: list[str], right: set[str], k: int) -> float:
    return len(right.intersection(items[:k])) / len(right) if right else 0.0


def bootstrap_interval(
    metric: Metric, ranking: pl.DataFrame, truth: pl.DataFrame, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile interval of metric.score over rows drawn with replacement (Efron's percentile method)."""
    return _percentiles(_resampled_scores(metric, ranking, truth, draws, seed))


def paired_difference(
    metric: Metric,
    ranking: pl.DataFrame,
    other: pl.DataFrame,
    truth: pl.DataFrame,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """score(ranking) − score(other), and the ends of its 95 % paired-bootstrap interval (the same draws for both).

    Raises ValueError where the two do not have the same ids in the same order.
    """
    if ranking["id"].to_list() != other["id"].to_list():
        raise ValueError(
            f"paired rows must be the same: {ranking.height} and {other.height} rows with different ids or order"
        )
    difference = metric.score(ranking, truth) - metric.score(other, truth)
    first = _resampled_scores(metric, ranking, truth, draws, seed)
    second = _resampled_scores(metric, other, truth, draws, seed)
    return (difference, *_percentiles(first - second))


def _resampled_scores(metric: Metric, ranking: pl.DataFrame, truth: pl.DataFrame, draws: int, seed: int) -> np.ndarray:
    import numpy as np

    if ranking.height == 0:
        raise ValueError(f"the interval of {metric.name} over no rows is not defined: the ranking is empty")
    drawn = np.random.default_rng(seed).integers(0, ranking.height, size=(draws, ranking.height))
    if metric.rows is not None:
        return metric.rows(ranking, truth)[drawn].mean(axis=1)
    return np.array([metric.score(ranking[rows], truth) for rows in drawn.tolist()])


def _percentiles(scores: np.ndarray) -> tuple[float, float]:
    import numpy as np

    low, high = np.percentile(scores, [2.5, 97.5])
    return float(low), float(high)
