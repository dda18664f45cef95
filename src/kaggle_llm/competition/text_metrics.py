"""Metrics of texts and of numbers that a text holds: a row's first item against the right ones."""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths
from kaggle_llm.competition.metric import Metric, by_row, join_truth, mean_metric, whole_metric

if TYPE_CHECKING:
    import numpy as np
    import polars as pl


def exact_match(normalise: Callable[[str], str] | None = None) -> Metric:
    """Share of rows whose first item equals one of the right ones, both normalised; without items: wrong.

    normalise: default normalise_answer, as SQuAD does. It takes −5 for 5 and 0.5 for 05: give str.strip for numbers.
    """
    same = normalise or normalise_answer
    return mean_metric(
        "exact_match", by_row(lambda items, right: float(bool(items) and same(items[0]) in map(same, right)))
    )


def normalise_answer(text: str) -> str:
    """Lower case without ASCII punctuation, the articles a, an, the, and repeated white space.

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
    return mean_metric(variant, by_row(partial(_rouge, variant=variant)))


def bleu() -> Metric:
    """BLEU of all first items as one corpus, 0 to 100, by sacrebleu with its defaults; right texts are references."""
    return whole_metric("bleu", partial(_corpus_score, name="BLEU"))


def chrf() -> Metric:
    """chrF2 of all first items as one corpus, 0 to 100, by sacrebleu with its defaults; for every script."""
    return whole_metric("chrf", partial(_corpus_score, name="CHRF"))


def numeric_match(tolerance: float = 0.0, relative: float = 0.0) -> Metric:
    """Share of rows whose first item is a number within `tolerance`, or `relative` of the larger one, of a right one.

    Commas between digits are left out; a text that is no number is wrong.
    """
    return mean_metric("numeric_match", by_row(partial(_is_near, tolerance=tolerance, relative=relative)))


def sharpened_cosine(encoder: str, exponent: int = 3) -> Metric:
    """Mean over rows of cos(first item, right text)^exponent, the best over right texts; without items: 0.

    encoder: a sentence-transformers folder, from the repository's root. An odd exponent keeps the sign.
    """
    return mean_metric(f"cosine^{exponent}", by_row(partial(_cosine, encoder=encoder, exponent=exponent)))


def words() -> Metric:
    """Mean number of words (separated by white space) of a row's first item; 0 for a row without items."""
    return mean_metric("words", by_row(lambda items, right: float(len(_first(items).split()))), greater_is_better=False)


def repetition() -> Metric:
    """Mean share of a text's word trigrams that it has already used: 0 for a text that never repeats itself."""
    return mean_metric("repetition", by_row(lambda items, right: _repetition(_first(items))), greater_is_better=False)


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


def _corpus_score(ranking: pl.DataFrame, truth: pl.DataFrame, name: str) -> float:
    """From the statistics of each row, which are kept: an interval asks for the same rows a thousand times."""
    joined = join_truth(ranking, truth)
    rows = joined.select("items", "right").iter_rows()
    statistics = [_corpus_statistics(name, _first(items), tuple(right)) for items, right in rows]
    return float(_corpus_metric(name)._aggregate_and_compute(statistics).score)


@cache
def _corpus_metric(name: str) -> Any:
    import sacrebleu.metrics

    return getattr(sacrebleu.metrics, name)()


@lru_cache(maxsize=1_000_000)
def _corpus_statistics(name: str, text: str, right: tuple[str, ...]) -> Any:
    return _corpus_metric(name)._extract_corpus_statistics([text], [[reference] for reference in right])[0]


def _is_near(items: list[str], right: set[str], tolerance: float, relative: float) -> float:
    answer = _read_number(_first(items))
    near = (math.isclose(answer, _read_number(text), rel_tol=relative, abs_tol=tolerance) for text in right)
    return float(any(near))


def _read_number(text: str) -> float:
    """NaN, which is near nothing, for a text that is no number."""
    try:
        return float(re.sub(r"(?<=\d),(?=\d)", "", text))
    except ValueError:
        return math.nan


def _cosine(items: list[str], right: set[str], encoder: str, exponent: int) -> float:
    if not items or not right:
        return 0.0
    return max(float(_embed(encoder, items[0]) @ _embed(encoder, text)) for text in right) ** exponent


@lru_cache(maxsize=1_000_000)
def _embed(encoder: str, text: str) -> np.ndarray:
    """[d], unit length."""
    vector: np.ndarray = _load_encoder(encoder).encode(text, normalize_embeddings=True, show_progress_bar=False)
    return vector


@cache
def _load_encoder(encoder: str) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(paths.absolute(encoder)), local_files_only=True)
