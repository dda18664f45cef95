"""Lexical retrieval: BM25 by bm25s, whose index is kept as bm25s saves it, and memory-mapped."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import records
from kaggle_llm.base.fingerprint import FROM_TEXTS, hash_code
from kaggle_llm.base.words import fold_text, split_words
from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.engines.texts import hash_texts
from kaggle_llm.inference.vectors import ABOUT
from kaggle_llm.retrieval.top_k import find_top

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.inference.run import Run


@dataclass
class WordSettings:
    stop_words: str = "english"
    """Language of bm25s' list of words that are left out (english, german, french, …), or "": none."""
    stemmer: str = ""
    """Language of PyStemmer, such as english: words of one stem are the same word; "": no stemming. PyStemmer has to be
    installed, on Kaggle too: add it to the wheels."""


def list_stop_words(language: str) -> frozenset[str]:
    """The words of bm25s' list; raises ValueError for a language without one."""
    from bm25s import stopwords

    lists = {name.removeprefix("STOPWORDS_").lower(): name for name in dir(stopwords) if name.startswith("STOPWORDS_")}
    lists["english"] = lists.pop("en")
    if not language:
        return frozenset()
    if language not in lists:
        raise ValueError(f"retrieval.words.stop_words = {language!r}: bm25s has {', '.join(sorted(lists))}")
    return frozenset(map(fold_text, getattr(stopwords, lists[language])))


def load_stemmer(language: str) -> Callable[[list[str]], list[str]]:
    """Words → stems. Raises ImportError where PyStemmer is not installed, ValueError for an unknown language."""
    if not find_spec("Stemmer"):
        raise ImportError(f"retrieval.words.stemmer = {language} needs PyStemmer: pip install PyStemmer")
    import Stemmer

    if language not in Stemmer.algorithms():
        raise ValueError(f"retrieval.words.stemmer = {language!r}: PyStemmer has {', '.join(Stemmer.algorithms())}")
    stem: Callable[[list[str]], list[str]] = Stemmer.Stemmer(language).stemWords
    return stem


def open_lexical(run: Run, ids: Sequence[str], texts: Sequence[str], words: WordSettings) -> LexicalIndex:
    """The index of the documents: the run's kept or shipped one, else a new one."""
    about = describe_index(texts, words)
    folder = run.artefact("lexical", about, lambda path: LexicalIndex(ids, texts, words).save(path, about))
    return LexicalIndex(ids, texts, words, folder)


def describe_index(texts: Sequence[str], words: WordSettings) -> dict[str, Any]:
    """All that an index depends on: texts, settings, versions, and the code that splits words."""
    packages = ["bm25s", *(["PyStemmer"] if words.stemmer else [])]
    return {
        "documents": hash_texts(texts),
        "words": asdict(words),
        "versions": {name: version(name) for name in packages},
        "code": hash_code(__name__, rooms=FROM_TEXTS),
    }


class LexicalIndex:
    """BM25 (Lucene's variant, k1 1.5, b 0.75) of `split_words`, without stop words and stemmed as the settings say.

    folder: of an index of the same texts that `save` wrote, which is read instead of made.
    """

    def __init__(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        words: WordSettings | None = None,
        folder: Path | None = None,
    ) -> None:
        import bm25s

        self.ids, words = list(ids), words or WordSettings()
        self._stop_words = list_stop_words(words.stop_words)
        self._stem = load_stemmer(words.stemmer) if words.stemmer else None
        self._index = bm25s.BM25.load(folder, mmap=True) if folder else self._make_index(texts)

    def _make_index(self, texts: Sequence[str]) -> Any:
        import bm25s
        from bm25s.tokenization import Tokenized

        vocabulary: defaultdict[str, int] = defaultdict()
        vocabulary.default_factory = vocabulary.__len__  # a new word gets the next number
        numbers = [[vocabulary[word] for word in self._tokens([text])[0]] for text in texts]
        if not vocabulary:
            raise ValueError(f"none of {len(self.ids)} documents holds a word that can be searched for")
        index = bm25s.BM25(
            method="lucene", int_dtype="int64"
        )  # numpy adds at places of its own type in 3/4 of the time
        index.index(Tokenized(numbers, dict(vocabulary)), show_progress=False)
        return index

    def save(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Into a folder; `about` beside it."""
        self._index.save(folder, show_progress=False)
        records.write_json(folder / ABOUT, dict(about))

    def search(self, ids: Sequence[str], queries: Sequence[str], k: int) -> pl.DataFrame:
        """RANKING of the k best documents for each query; ties, and queries without a known word, keep the documents'
        order."""
        items, scores = [], []
        for words in self._tokens(queries):
            best, best_scores = self._search(words, k)
            items.append([self.ids[number] for number in best])
            scores.append(best_scores)
        return make_ranking(ids, items, scores)

    def _search(self, words: list[str], k: int) -> tuple[list[int], list[float]]:
        """Indices and scores of the k best documents."""
        if not words:
            places = range(min(k, len(self.ids)))
            return list(places), [0.0 for _ in places]
        row = self._index.get_scores(words)
        best = find_top(row, k)
        return best.tolist(), row[best].tolist()

    def _tokens(self, texts: Sequence[str]) -> list[list[str]]:
        kept = [[word for word in split_words(text) if word not in self._stop_words] for text in texts]
        return kept if self._stem is None else [self._stem(words) for words in kept]
