"""Passages cover their document, contexts hold what was found, and forms of a question are averaged within the time."""

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from kaggle_llm.competition.rankings import check_ranking, make_ranking
from kaggle_llm.engines.prompts import ItemPrompts
from kaggle_llm.inference.budget import Budget
from kaggle_llm.retrieval import rerank
from kaggle_llm.retrieval.passages import (
    ContextSettings,
    PassageSettings,
    add_context,
    answer_in_turn,
    cut_documents,
    cut_text,
    rank_alike,
    report_recall,
)
from kaggle_llm.retrieval.retriever import RetrievalSettings, Retriever

LETTERS = ["A", "B", "C"]
FOUND = make_ranking(["p", "q"], [["d1:1", "d1:0", "d2:0"], ["d2:0", "d1:0"]], [[3.0, 2.0, 1.0], [2.0, 1.0]])
PASSAGES = pl.DataFrame(
    {"id": ["d1:0", "d1:1", "d2:0"], "document": ["d1", "d1", "d2"], "text": ["first", "second", "other"]}
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a b c d e f g h i j", ["a b c d", "d e f g", "g h i j"]),
        ("a b c d e f g h", ["a b c d", "d e f g", "e f g h"]),
        ("a b c d e", ["a b c d", "b c d e"]),
        ("a b c d", ["a b c d"]),
        ("  a \n\t b  ", ["a \n\t b"]),
        ("镭元素是什么 gold", ["镭元素是", "是什么 gold"]),
        ("", [""]),
        (" \n ", [""]),
    ],
)
def test_a_text_is_cut_into_stretches_that_overlap(text: str, expected: list[str]) -> None:
    assert cut_text(text, words=4, overlap=1) == expected


@pytest.mark.parametrize(("words", "overlap"), [(1, 0), (5, 0), (5, 4), (60, 20)])
@pytest.mark.parametrize("count", [1, 4, 5, 6, 59, 61, 200])
def test_every_word_is_in_a_passage_and_neighbours_share_the_overlap(words: int, overlap: int, count: int) -> None:
    text = " ".join(f"w{number}" for number in range(count))
    parts = [part.split() for part in cut_text(text, words, overlap)]
    assert {word for part in parts for word in part} == set(text.split())
    assert all(len(part) == min(words, count) for part in parts)
    assert all(len(set(one) & set(other)) >= overlap for one, other in pairwise(parts))
    assert all(one != other for one, other in pairwise(parts))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("text", "count"), [(" ".join(["word"] * 50_000), 1250), ("x" * 2_000_000, 1250), ("語" * 2_000_000, 50_000)]
)
def test_a_huge_document_with_or_without_spaces_becomes_many_short_passages(text: str, count: int) -> None:
    parts = cut_text(text, words=60, overlap=20)
    assert len(parts) == count
    assert max(map(len, parts)) <= 60 * 40 and all(part in text for part in parts[::100])


def test_passages_know_their_document_and_are_written_as_the_template_says() -> None:
    documents = pl.DataFrame({"id": ["d1", "d2"], "title": ["One", "{Two}"], "text": ["a b c", ""]})
    found = cut_documents(documents, PassageSettings(words=2, overlap=1, template="{title}: {text}"))
    assert found.rows() == [("d1:0", "d1", "One: a b"), ("d1:1", "d1", "One: b c"), ("d2:0", "d2", "{Two}: ")]
    assert cut_documents(documents.head(0), PassageSettings()).rows() == []


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"overlap = 5, words = 5: 0 ≤ overlap < words"):
        PassageSettings(words=5, overlap=5)
    for depths in ([], [1, -1]):
        with pytest.raises(ValueError, match="name one or more, each 0 or more"):
            ContextSettings(depths=depths)


@pytest.mark.parametrize(
    ("depth", "contexts"),
    [
        (0, ["", ""]),
        (1, ["second", "other"]),
        (2, ["second\nfirst", "other\nfirst"]),
        (9, ["second\nfirst\nother", "other\nfirst"]),
    ],
)
def test_a_context_is_the_first_passages_of_its_row(depth: int, contexts: list[str]) -> None:
    rows = pl.DataFrame({"id": ["p", "q"], "question": ["?", "!"]})
    shown = add_context(rows, FOUND, PASSAGES, depth)
    assert shown.drop("context").equals(rows) and shown["context"].to_list() == contexts
    assert add_context(rows.head(0), FOUND.head(0), PASSAGES, depth)["context"].to_list() == []


def test_recall_counts_rows_whose_right_document_is_among_the_first_passages(
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = pl.DataFrame({"id": ["p", "q"], "document": ["d2", "d2"]})
    found = report_recall(FOUND, PASSAGES, right, [1, 2, 3])
    assert list(found.values()) == [0.5, 0.5, 1.0]  # d2 comes third in p, behind two passages of d1
    assert list(found) == [f"document in the first {depth}" for depth in (1, 2, 3)]
    assert "document in the first 1: 0.5000; document in the first 2: 0.5000; document" in capsys.readouterr().out


class PlainPrompts(ItemPrompts):
    """A prompt is the row's number, its form and its option."""

    def __init__(self) -> None:
        self.prompter: Any = SimpleNamespace(labels=[[0], [1]], shared=self.shared, report_cuts=lambda: None)

    def shared(self, row: Mapping[str, Any]) -> list[int]:
        return [int(row["id"]), int(row["context"])]

    def candidate(self, row: Mapping[str, Any], item: str) -> list[int]:
        return [LETTERS.index(item)]


class OddEngine:
    """Log-odds drawn for each prompt; a row takes a second."""

    def __init__(self) -> None:
        self.now, self.asked = 0.0, list[tuple[int, ...]]()

    def choices(self, prompts: Sequence[Sequence[int]], labels: Any) -> np.ndarray:
        self.now += len(prompts) / len(LETTERS)
        self.asked += [tuple(prompt) for prompt in prompts]
        return np.array([[log_odds(*prompt), 0.0] for prompt in prompts]).reshape(-1, 2)


def log_odds(*prompt: int) -> float:
    return random.Random(repr(prompt)).gauss(0, 1)


def make_forms(count: int) -> list[pl.DataFrame]:
    rows = pl.DataFrame({"id": [str(number) for number in range(count)]}, schema={"id": pl.String()})
    return [rows.with_columns(context=pl.lit(form)) for form in range(3)]


def ask(count: int, limit: float = float("inf")) -> tuple[pl.DataFrame, OddEngine, list[pl.DataFrame]]:
    engine, offers = OddEngine(), list[pl.DataFrame]()
    budget = Budget(limit, clock=lambda: engine.now)
    forms, prompts = make_forms(count), PlainPrompts()
    found = answer_in_turn(forms, LETTERS, prompts, engine, budget, offers.append)
    return check_ranking(found, forms[0]["id"].to_list()), engine, offers


def literal(row: int, forms: int) -> dict[str, float]:
    return {
        letter: sum(log_odds(row, form, place) for form in range(forms)) / forms for place, letter in enumerate(LETTERS)
    }


def scores_of(row: Mapping[str, Any]) -> dict[str, float]:
    return dict(zip(row["items"], row["scores"], strict=True))


def test_an_answer_is_the_mean_of_the_log_odds_over_the_forms() -> None:
    found, engine, offers = ask(40)
    for row in found.iter_rows(named=True):
        assert scores_of(row) == pytest.approx(literal(int(row["id"]), 3))
    assert len(engine.asked) == len(set(engine.asked)) == 40 * 3 * 3
    assert [one["id"].to_list() for one in offers] == [found["id"].to_list()] * 3 and offers[-1].equals(found)


@pytest.mark.parametrize("count", [0, 1])
def test_no_row_and_one_row_are_answered(count: int) -> None:
    found, _, offers = ask(count)
    assert found.height == count and offers[-1].equals(found)


def test_where_the_time_ends_the_most_uncertain_rows_have_the_second_form_and_the_others_keep_the_first() -> None:
    found, engine, _ = ask(40, limit=60)  # the second form's first chunk ends at 56 s
    again = {row for row, form, _ in engine.asked if form == 1}
    assert len(again) == rerank.ROWS_A_CHUNK and not any(form == 2 for _, form, _ in engine.asked)
    for row in found.iter_rows(named=True):
        assert scores_of(row) == pytest.approx(literal(int(row["id"]), 2 if int(row["id"]) in again else 1))
    margins = {row: float(np.diff(sorted(literal(row, 1).values()))[-1]) for row in range(40)}
    assert max(margins[row] for row in again) <= min(margins[row] for row in margins.keys() - again)


def test_a_row_that_nobody_was_asked_about_has_the_options_in_the_order_given() -> None:
    found, engine, _ = ask(40, limit=20)
    known = {row for row, _, _ in engine.asked}
    assert len(known) == rerank.ROWS_A_CHUNK
    late = found.filter(~pl.col("id").is_in([str(row) for row in known]))
    assert late["items"].to_list() == [LETTERS] * 24
    assert rank_alike(late, LETTERS).equals(late)


@pytest.mark.release
@pytest.mark.timeout(120)
def test_an_article_of_50_000_words_is_searched_beside_a_short_one(pico_encoder: Path) -> None:
    from kaggle_llm.engines.engine import EngineSettings
    from kaggle_llm.inference.model import Model
    from kaggle_llm.inference.run import Run

    words = ["fraction", "digit", "value", "tens"]
    long = " ".join(random.Random(0).choices(words, k=50_000))
    middle = len(long) // 2
    text = f"{long[:middle]} zebra {long[middle:]}"
    documents = pl.DataFrame({"id": ["long", "short"], "title": ["All", "Area"], "text": [text, "length times width"]})
    passages = cut_documents(documents, PassageSettings(words=60, overlap=20))
    settings, nothing = RetrievalSettings(query="{question}", k=3, dense_weight=0.0), None
    config, competition = SimpleNamespace(retrieval=settings, engine=EngineSettings()), nothing
    rows = pl.DataFrame({"id": ["a", "b"], "question": ["zebra", "width"]})
    with Run(config, competition, [Model("encoder", pico_encoder)]) as run:
        found = Retriever(run, passages).search(rows)
    texts = dict(passages.select("id", "text").iter_rows())
    first, second = (items[0] for items in found["items"].to_list())
    assert "zebra" in texts[first] and len(texts[first].split()) <= 61 and second == "short:0"
