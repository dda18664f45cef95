"""What a head has to beat: linear rules are those of scikit-learn by hand, for every kind of target."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_head_kinds import KINDS, Flags, Level, Marks, open_competition

from kaggle_llm.competition.competition import Competition
from kaggle_llm.competition.rankings import check_answer, is_values
from kaggle_llm.tasks.linear import answer_by_rule, predict_by_length, predict_by_words, squash

TEXTS = ["a good plan", "a bad plan", "good", "bad bad bad"]


def test_words_tell_and_length_does_not_where_it_is_the_same() -> None:
    targets = np.array([[1.0], [0.0], [1.0], [0.0]])
    good, bad = predict_by_words(TEXTS, targets, ["good thing", "bad thing"]).ravel()
    assert good > 0.5 > bad
    same = predict_by_length(["aa", "bb", "aaaa", "bbbb"], targets, ["cc", "cccc"]).ravel()
    np.testing.assert_allclose(same, [0.5, 0.5], atol=1e-9)


def test_length_is_a_straight_line_and_its_logarithm() -> None:
    texts = ["x" * length for length in (1, 4, 9, 30, 55)]
    targets = np.array([[2.0 * len(text) - 3.0 * np.log1p(len(text))] for text in texts])
    found = predict_by_length(texts, targets, ["y" * 20]).ravel()
    np.testing.assert_allclose(found, [40.0 - 3.0 * np.log1p(20)], rtol=1e-6)


@pytest.mark.parametrize(("form", "task"), KINDS, ids=lambda kind: getattr(kind, "__name__", kind))
@pytest.mark.parametrize("rule", [predict_by_length, predict_by_words])
def test_a_rule_answers_in_the_form_of_the_head(form: type[Competition], task: Any, rule: Any, tmp_path: Path) -> None:
    competition = open_competition(form, tmp_path)
    rows = competition.table("train")
    answer = check_answer(answer_by_rule(rule, task, competition, rows[6:], rows[:6]), rows["id"].to_list()[:6])
    assert is_values(answer) == (form in (Marks, Flags) or (form is Level and task != "classification"))


def test_topics_are_known_by_their_words(tmp_path: Path) -> None:
    competition = open_competition(Level, tmp_path)
    rows = competition.table("train")
    for task, tolerance in (("regression", 0.5), ("ordinal", 0.5)):
        answer = answer_by_rule(predict_by_words, task, competition, rows[6:], rows[:6])  # type: ignore[arg-type]
        np.testing.assert_allclose(answer["values"].list.first().to_list(), [0, 1, 2] * 2, atol=tolerance)


def test_a_line_beyond_0_and_1_becomes_a_probability_in_the_same_order() -> None:
    line = np.array([-3.0, -0.1, 0.0, 0.005, 0.01, 0.4, 0.99, 1.0, 1.2])
    found = squash(line)
    assert (found > 0).all() and (found < 1).all() and (np.diff(found) > 0).all()
    np.testing.assert_allclose(found[4:7], line[4:7])
    np.testing.assert_allclose(found[2], 0.01 / np.e)
