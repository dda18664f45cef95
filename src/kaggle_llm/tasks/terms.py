"""The words and characters of a text as features: scikit-learn's TF-IDF, saved as plain terms and numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from kaggle_llm.competition.competition import TEST, Competition

if TYPE_CHECKING:
    import polars as pl

PARTS = ("words", "characters")
MOST_TERMS = 200_000  # of each part, those in the most rows


@dataclass(frozen=True)
class Terms:
    """terms: part → its terms in order. idf: part → a weight of each."""

    terms: dict[str, list[str]]
    idf: dict[str, np.ndarray]

    def features(self, texts: Sequence[str]) -> Any:
        """Sparse [texts, terms of all parts]; no column without parts."""
        from scipy.sparse import csr_matrix, hstack

        terms = [self.vectorizer(part).transform(texts) for part in self.terms]
        return hstack([csr_matrix((len(texts), 0)), *terms]).tocsr()

    def vectorizer(self, part: str) -> Any:
        longest = max(measure_term(part, term) for term in self.terms[part])
        made = make_vectorizer(part, longest, vocabulary=self.terms[part])
        made.idf_ = self.idf[part]
        return made


def measure_term(part: str, term: str) -> int:
    """How many words or characters a term has."""
    return len(term if part == "characters" else term.split(" "))


def make_vectorizer(part: str, longest: int, **options: Any) -> Any:
    """scikit-learn's TF-IDF of words (whatever stands between spaces) or of characters within them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    if part == "words":
        options |= {"token_pattern": r"\S+", "ngram_range": (1, longest)}
    else:
        options |= {"analyzer": "char_wb", "ngram_range": (2, longest)}
    return TfidfVectorizer(sublinear_tf=True, **options)


def fit_terms(texts: Sequence[str], lengths: dict[str, int], rows: int) -> Terms:
    """lengths: part → its longest term, 0 for none. Raises ValueError where no term is in `rows` texts."""
    made = {}
    for part in PARTS:
        if longest := lengths[part]:
            least = min(rows, len(texts))
            made[part] = make_vectorizer(part, longest, min_df=least, max_features=MOST_TERMS).fit(texts)
    names = {part: vectorizer.get_feature_names_out().tolist() for part, vectorizer in made.items()}
    return Terms(names, {part: vectorizer.idf_ for part, vectorizer in made.items()})


def join_texts(rows: pl.DataFrame, competition: Competition) -> list[str]:
    """All texts of each row as one."""
    return ["\n".join(texts) for texts in rows.select(competition.tables[TEST].texts).iter_rows()]
