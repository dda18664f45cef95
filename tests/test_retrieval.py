"""BM25 against its literal formula, rank fusion against hand-made cases, and what hard negatives promise."""

import math
import random
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from kaggle_llm.competition.competition import CompetitionSettings, load_competition
from kaggle_llm.competition.metrics import mean_average_precision
from kaggle_llm.competition.rankings import check_ranking, make_ranking, top
from kaggle_llm.decisions.fusion_weights import FusionWeights
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.inference.model import Model
from kaggle_llm.inference.run import Run
from kaggle_llm.retrieval import retriever
from kaggle_llm.retrieval.fusion import Retrieved, fuse_by_rank, fuse_by_score
from kaggle_llm.retrieval.lexical import LexicalIndex, WordSettings
from kaggle_llm.retrieval.negatives import draw_groups
from kaggle_llm.retrieval.retriever import RetrievalSettings
from kaggle_llm.retrieval.top_k import find_top
from kaggle_llm_demo.misconceptions import build_competition

TEXTS = {  # no stop words and no punctuation, so that a split gives the words
    "d1": "adds numerators adds denominators",
    "d2": "forgets carrying digit",
    "d3": "believes multiplying always gives larger numbers",
    "d4": "adds digits ignoring place value",
    "d5": "digit digit digit confusion",
}
INDEX = LexicalIndex(list(TEXTS), list(TEXTS.values()))


def literal_bm25(query: str, k1: float = 1.5, b: float = 0.75) -> dict[str, float]:
    """Lucene's BM25 over TEXTS; a word that the query repeats counts as often."""
    documents = {name: text.split() for name, text in TEXTS.items()}
    average = sum(map(len, documents.values())) / len(documents)
    scores = dict.fromkeys(documents, 0.0)
    for word in query.lower().split():
        found = sum(word in words for words in documents.values())
        idf = math.log(1 + (len(documents) - found + 0.5) / (found + 0.5))
        for name, words in documents.items():
            tf = words.count(word)
            scores[name] += idf * tf / (tf + k1 * (1 - b + b * len(words) / average))
    return scores


def ranked(**rows: str) -> pl.DataFrame:
    """id="best next …" """
    items = [row.split() for row in rows.values()]
    return make_ranking(list(rows), items, [[-float(place) for place in range(len(row))] for row in items])


@pytest.mark.parametrize(
    "query", ["adds", "digit", "Adds DIGIT", "adds digit digit place", "numbers larger unheard", "value digits adds"]
)
def test_lexical_scores_follow_the_literal_formula(query: str) -> None:
    expected = literal_bm25(query)
    found = INDEX.search(["q"], [query], 5)
    assert found["items"][0].to_list() == sorted(expected, key=expected.__getitem__, reverse=True)
    scores = dict(zip(found["items"][0], found["scores"][0], strict=True))
    assert scores == pytest.approx(expected, rel=1e-5)  # bm25s computes in single precision


@pytest.mark.parametrize("query", ["unheard zebra", "the of and", "", "?!", "x"])
def test_a_query_without_known_words_gives_the_documents_in_their_own_order(query: str) -> None:
    found = INDEX.search(["q"], [query], 3)
    assert found.rows() == [("q", ["d1", "d2", "d3"], [0.0, 0.0, 0.0])]


def test_stop_words_of_a_query_change_nothing() -> None:
    assert INDEX.search(["q"], ["the digit of the"], 5).equals(INDEX.search(["q"], ["digit"], 5))


@pytest.mark.parametrize(("k", "expected"), [(1, ["d5"]), (2, ["d5", "d2"]), (99, ["d5", "d2", "d1", "d3", "d4"])])
def test_the_best_k_documents_are_found_at_most_all(k: int, expected: list[str]) -> None:
    found = check_ranking(INDEX.search(["p", "q"], ["digit", "digit"], k), ["p", "q"])
    assert found["items"].to_list() == [expected, expected]


def test_no_queries_give_no_rows() -> None:
    assert check_ranking(INDEX.search([], [], 3), []).height == 0


def test_fusion_adds_weight_over_smoothing_plus_place() -> None:
    fused = fuse_by_rank([ranked(p="a b c", q="x"), ranked(p="c d", q="")], [1.0, 2.0], 10.0, 4)
    assert check_ranking(fused, ["p", "q"])["items"].to_list() == [["c", "d", "a", "b"], ["x"]]
    # c: 1/(10 + 3) + 2/(10 + 1), d: 2/(10 + 2), a: 1/(10 + 1), b: 1/(10 + 2)
    assert fused["scores"][0].to_list() == pytest.approx([1 / 13 + 2 / 11, 2 / 12, 1 / 11, 1 / 12], abs=1e-12)
    assert fused["scores"][1].to_list() == pytest.approx([1 / 11])


def test_items_that_tie_keep_the_order_of_the_first_ranking_that_names_them() -> None:
    assert fuse_by_rank([ranked(q="a b"), ranked(q="b a")], [1.0, 1.0], 60.0, 2)["items"].to_list() == [["a", "b"]]
    assert fuse_by_rank([ranked(q="z"), ranked(q="a")], [1.0, 1.0], 60.0, 2)["items"].to_list() == [["z", "a"]]


@pytest.mark.parametrize(("weights", "best"), [((3.0, 1.0), "a"), ((1.0, 3.0), "b"), ((0.0, 1.0), "b")])
def test_the_heavier_ranking_decides(weights: tuple[float, float], best: str) -> None:
    fused = fuse_by_rank([ranked(q="a b"), ranked(q="b a")], weights, 60.0, 1)
    assert fused["items"].to_list() == [[best]] and fused["scores"][0].len() == 1


def test_rankings_that_do_not_fit_each_other_are_not_fused() -> None:
    pair = [ranked(p="a", q="b"), ranked(q="b", p="a")]
    with pytest.raises(ValueError, match="rankings of different ids"):
        fuse_by_rank(pair, [1.0, 1.0], 60.0, 5)
    with pytest.raises(ValueError, match="2 rankings with 1 weights"):
        fuse_by_rank(pair, [1.0], 60.0, 5)


def many(count: int = 200) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows with 0 to 8 candidates, the right items among them or not; one to three items are right."""
    rng = random.Random(0)
    rows = {f"r{i}": " ".join(rng.sample("abcdefghij", rng.randint(0, 8))) for i in range(count)}
    right = [rng.sample("abcdefghij", rng.randint(1, 3)) for _ in rows]
    return ranked(**rows), pl.DataFrame({"id": list(rows), "items": right})


@pytest.mark.parametrize(("size", "depth"), [(2, 8), (4, 8), (20, 8), (4, 3), (20, 1)])
def test_a_group_is_one_right_item_with_wrong_ones_of_the_first_candidates_of_its_row(size: int, depth: int) -> None:
    candidates, truth = many()
    items, right = dict(top(candidates, depth).select("id", "items").rows()), dict(truth.rows())
    groups = draw_groups(candidates, truth, size, depth, seed=0)
    for group in groups:
        wrong = [item for place, item in enumerate(group.items) if not group.target[place]]
        possible = set(items[group.id]) - set(right[group.id])
        assert group.items[group.target.index(1.0)] in right[group.id] and sum(group.target) == 1.0
        assert set(wrong) <= possible and len(set(group.items)) == len(group.items)
        assert len(wrong) == min(size - 1, len(possible))
    kept = {row for row, found in items.items() if set(found) - set(right[row])}
    assert sorted(group.id for group in groups) == sorted(kept) and len(kept) < len(items)


@pytest.mark.parametrize("found", ["a b", "a b z"], ids=["missed", "behind the first"])
def test_a_right_item_that_the_first_candidates_miss_is_put_in(found: str) -> None:
    truth = pl.DataFrame({"id": ["q"], "items": [["z"]]})
    (group,) = draw_groups(ranked(q=found), truth, 3, depth=2, seed=0)
    assert sorted(group.items) == ["a", "b", "z"] and group.items[group.target.index(1.0)] == "z"


@pytest.mark.parametrize("found", ["", "z", "z y", "y z a"])
def test_a_row_without_a_wrong_one_among_the_first_candidates_is_left_out(found: str) -> None:
    truth = pl.DataFrame({"id": ["q"], "items": [["y", "z"]]})
    assert draw_groups(ranked(q=found), truth, 3, depth=2, seed=0) == []


def test_draws_repeat_for_a_seed_and_are_shuffled() -> None:
    candidates, truth = many()
    groups = draw_groups(candidates, truth, 3, depth=8, seed=1)
    assert groups == draw_groups(candidates, truth, 3, depth=8, seed=1)
    assert groups != draw_groups(candidates, truth, 3, depth=8, seed=2)
    assert {group.target.index(1.0) for group in groups} == {0, 1, 2}
    assert [group.id for group in groups] != sorted((group.id for group in groups), key=lambda i: int(i[1:]))


def test_documents_without_a_word_are_refused() -> None:
    with pytest.raises(ValueError, match="none of 2 documents holds a word"):
        LexicalIndex(["a", "b"], ["the of", "?"])


def test_rows_are_searched_for_some_at_a_time_and_found_as_if_all_at_once(
    pico_encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The long rankings that are fused are those of a part of the rows: memory does not grow with the test set."""
    build_competition(tmp_path, tmp_path / "hidden", train_rows=20, hidden_rows=3)
    competition = load_competition(CompetitionSettings("demo-misconceptions"), tmp_path)
    settings = RetrievalSettings(query="{question} {wrong_answer}", k=5)
    sizes: list[int] = []
    real = retriever.fuse_by_rank

    def note(rankings: list[pl.DataFrame], *more: Any) -> pl.DataFrame:
        sizes.append(rankings[0].height)
        return real(rankings, *more)

    monkeypatch.setattr(retriever, "fuse_by_rank", note)
    rows = competition.unlabelled(competition.table("train"))
    config = SimpleNamespace(retrieval=settings, engine=EngineSettings())
    with Run(config, competition, [Model("encoder", pico_encoder)]) as run:
        index = retriever.Retriever(run, competition.table("misconceptions"))
        whole = index.search(rows)
        monkeypatch.setattr(retriever, "ROWS_A_SEARCH", 8)
        assert index.search(rows).equals(whole) and whole["id"].to_list() == rows["id"].to_list()
        assert index.search(rows.head(0)).height == 0
    assert sizes == [20, 8, 8, 4]


@pytest.mark.parametrize("k", [1, 7, 40, 41, 100])
@pytest.mark.parametrize("levels", [1, 3, 10**6], ids=["all equal", "many ties", "hardly any tie"])
def test_the_top_is_the_beginning_of_a_stable_sort(k: int, levels: int) -> None:
    rng = np.random.default_rng(levels)
    for _ in range(20):
        scores = rng.integers(0, levels, 41).astype(np.float32)
        assert find_top(scores, k).tolist() == np.argsort(-scores, kind="stable")[:k].tolist()


def test_a_row_without_a_right_item_teaches_nothing() -> None:
    truth = pl.DataFrame({"id": ["p", "q"], "items": pl.Series([["a"], []], dtype=pl.List(pl.String))})
    (group,) = draw_groups(ranked(p="a b", q="a b"), truth, 2, depth=2, seed=0)
    assert group.id == "p"


@pytest.mark.parametrize(("language", "left"), [("english", ["der", "hund"]), ("german", ["the", "hund"])])
def test_stop_words_are_those_of_the_language(language: str, left: list[str]) -> None:
    index = LexicalIndex(["d"], ["Hund"], WordSettings(stop_words=language))
    assert index._tokens(["the der Hund"]) == [left]
    assert LexicalIndex(["d"], ["Hund"], WordSettings(stop_words=""))._tokens(["the der"]) == [["the", "der"]]


def test_an_unknown_language_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"stop_words = 'elvish': bm25s has .*english.*german"):
        LexicalIndex(["d"], ["Hund"], WordSettings(stop_words="elvish"))


@pytest.mark.skipif(not find_spec("Stemmer"), reason="PyStemmer is not installed")
def test_a_stemmer_finds_other_forms_of_a_word() -> None:
    stemmed = LexicalIndex(["a", "b"], ["adding digits", "wheel"], WordSettings(stemmer="english"))
    assert stemmed.search(["q"], ["added digit"], 1)["items"].to_list() == [["a"]]


@pytest.mark.skipif(find_spec("Stemmer") is not None, reason="PyStemmer is installed")
def test_a_stemmer_that_is_not_installed_is_named() -> None:
    with pytest.raises(ImportError, match="pip install PyStemmer"):
        LexicalIndex(["d"], ["Hund"], WordSettings(stemmer="english"))


def scored(**rows: dict[str, float]) -> pl.DataFrame:
    """id={item: score, …}"""
    return make_ranking(list(rows), [list(row) for row in rows.values()], [list(row.values()) for row in rows.values()])


def test_scores_are_scaled_in_each_row_and_a_missing_item_counts_as_the_last() -> None:
    lexical, dense = scored(p={"a": 12.0, "b": 9.0, "c": 6.0}, q={}), scored(p={"d": 0.9, "b": 0.5}, q={"x": 0.3})
    fused = fuse_by_score([lexical, dense], [1.0, 2.0], 3)
    # a: 1, b: 1/2 + 2 · 0, c: 0, d: 2 · 1; one score alone says nothing
    assert fused.rows() == [("p", ["d", "a", "b"], [2.0, 1.0, 0.5]), ("q", ["x"], [0.0])]
    with pytest.raises(ValueError, match="2 rankings with 1 weights"):
        fuse_by_score([lexical, dense], [1.0], 3)


def draw_retrieved(trusted: str, rows: int = 60) -> tuple[Retrieved, pl.DataFrame]:
    """Two retrievals of the same items; the right item is the first of the trusted one in four of five rows."""
    rng, ids, items = random.Random(0), [f"r{n}" for n in range(rows)], list("abcdef")
    draw = lambda: make_ranking(ids, [items] * rows, [[rng.random() for _ in items] for _ in ids])  # noqa: E731
    found = Retrieved(draw(), draw())
    first = getattr(found, trusted)["items"].list.first().to_list()
    right = [[item if n % 5 else "a"] for n, item in enumerate(first)]
    return found, pl.DataFrame({"id": ids, "items": right})


@pytest.mark.parametrize(("trusted", "other"), [("lexical", "dense"), ("dense", "lexical")])
def test_fitted_weights_trust_the_retrieval_that_is_right(trusted: str, other: str) -> None:
    found, truth = draw_retrieved(trusted)
    fitted = FusionWeights(k=3).fit(found, truth, mean_average_precision(3))
    assert getattr(fitted, trusted) > 2 * getattr(fitted, other) >= 0 and fitted.k == 3
    metric = mean_average_precision(3)
    assert metric.score(fitted.apply(found), truth) > metric.score(FusionWeights(k=3).apply(found), truth)


def test_weights_stay_where_no_right_item_was_found() -> None:
    found, truth = draw_retrieved("dense")
    missed = truth.with_columns(items=pl.lit(["z"]))
    assert FusionWeights(k=3).fit(found, missed, mean_average_precision(3)) == FusionWeights(k=3)
