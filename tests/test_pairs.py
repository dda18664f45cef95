"""Pairs of answers: what is asked of each row, equal answers are preferred alike, and no row goes missing."""

from __future__ import annotations

import math
from pathlib import Path

import polars as pl
import pytest

from kaggle_llm.competition.rankings import check_ranking, make_ranking, replace_rows
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.prompts import Prompter, PromptSettings
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.inference.budget import Budget
from kaggle_llm.tasks.choice import OrderSettings, rank_options
from kaggle_llm.tasks.pairs import make_pair_questions, rank_even

LABELS, ANSWERS = ("a", "b", "tie"), ("answer_a", "answer_b")


def rows_of(*pairs: tuple[str, str]) -> pl.DataFrame:
    rows = [(f"r{n}", "What is 3 x 5?", *pair) for n, pair in enumerate(pairs)]
    columns = ["id", "problem", *ANSWERS]
    return pl.DataFrame(rows, schema=columns, orient="row")


def test_a_row_is_asked_with_its_answers_and_learned_from_its_shares() -> None:
    rows = rows_of(("15", "16"))
    (asked,) = make_pair_questions(rows, LABELS, ANSWERS)
    assert asked.names == LABELS and asked.options == ({"text": "15"}, {"text": "16"}) and asked.target is None
    truth = pl.DataFrame({"id": ["r0"], "items": [["a", "b"]], "shares": [[0.3333, 0.6667]]})
    (learned,) = make_pair_questions(rows, LABELS, ANSWERS, truth)
    assert learned.target == pytest.approx((1 / 3, 2 / 3, 0), abs=1e-4) and sum(learned.target or ()) == 1.0


def test_pairs_that_say_little_are_reported_once(capsys: pytest.CaptureFixture[str]) -> None:
    make_pair_questions(rows_of(("15", "16"), ("15", "15"), ("", "15"), ("  ", "")), LABELS, ANSWERS)
    assert capsys.readouterr().out.splitlines() == [
        "1 row(s) with answers that are the same, first ['r1']",
        "2 row(s) with an empty answer, first ['r2', 'r3']",
    ]
    make_pair_questions(rows_of(("15", "16")), LABELS, ANSWERS)
    assert not capsys.readouterr().out


@pytest.mark.timeout(60)
def test_of_equal_answers_none_is_preferred_and_exchanged_answers_exchange_their_chances(pico_llm: Path) -> None:
    settings = PromptSettings(
        shared="Problem: {problem}\n",
        candidate="Answer {letter}: {text}\n",
        ending="Better:",
        labels=[" A", " B"],
        others=[" tie"],
        chat=False,
    )
    prompter, engine = Prompter(load_tokenizer(pico_llm), settings), make_engine(pico_llm, EngineSettings())
    asked = make_pair_questions(rows_of(("fifteen", "fifteen"), ("15", "no idea"), ("no idea", "15")), LABELS, ANSWERS)
    said = rank_options(asked, prompter, engine, OrderSettings(), Budget())
    engine.close()
    equal, given, exchanged = (
        dict(zip(items, scores, strict=True)) for items, scores in said.select("items", "scores").iter_rows()
    )
    assert equal["a"] == pytest.approx(equal["b"], abs=1e-6)
    for name, other in (("a", "b"), ("b", "a"), ("tie", "tie")):
        assert given[name] == pytest.approx(exchanged[other], abs=1e-5)


def test_rows_that_were_not_asked_have_all_labels_alike() -> None:
    rows = rows_of(("15", "16"), ("1", "2"), ("3", "4"))
    said = make_ranking(["r2"], [list(LABELS)], [[-2.0, -0.5, -3.0]])
    filled = replace_rows(rank_even(rows, LABELS), said)
    assert check_ranking(filled, ["r0", "r1", "r2"]).height == 3
    assert filled["items"].to_list()[2] == ["b", "a", "tie"]
    assert filled["scores"].to_list()[0] == pytest.approx([-math.log(3)] * 3)
    nothing = replace_rows(rank_even(rows.clear(), LABELS), said.clear())
    assert nothing.height == 0 and nothing.schema == said.schema
