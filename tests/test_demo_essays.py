"""demo-essays: what counts is worth what the rule says, and neither length nor the question tells the mark."""

from __future__ import annotations

import random
import re

import numpy as np
import polars as pl
import pytest

from kaggle_llm.competition.demo_essays import DemoEssays
from kaggle_llm.competition.rankings import make_ranking, make_values
from kaggle_llm.decisions.thresholds import Thresholds, round_levels
from kaggle_llm_demo import essay_words as words
from kaggle_llm_demo.essays import HIGHEST, LOWEST, WORTH, Essay, argue, draw_rows, mark, swap_letters, write_essay

LABELS = DemoEssays.labels


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return draw_rows(600, "tr", 1, words.PROPOSALS, random.Random(0))


def fit_kappa(rows: pl.DataFrame, values: pl.Series) -> float:
    """The highest quadratic weighted kappa that thresholds of one number reach on these rows."""
    truth = rows.select("id", items=pl.concat_list("score"))
    found = make_values(rows["id"].to_list(), [[value] for value in values.to_list()])
    fitted: Thresholds = round_levels(LABELS).fit(found, truth, DemoEssays.metric)
    return DemoEssays.metric.score(fitted.apply(found), truth)


def test_every_mark_is_given_and_no_answer_twice(rows: pl.DataFrame) -> None:
    counts = rows["score"].value_counts()
    assert set(counts["score"]) == set(LABELS) and counts["count"].min() >= 20
    assert rows["answer"].n_unique() == rows.height
    assert rows["question"].n_unique() > 2 * len(words.PROPOSALS)


def test_length_tells_something_and_far_from_all(rows: pl.DataFrame) -> None:
    assert 0.2 < fit_kappa(rows, rows["answer"].str.len_chars().cast(pl.Float64)) < 0.6


def test_questions_are_of_equal_difficulty(rows: pl.DataFrame) -> None:
    scores = rows.select("question", pl.col("score").cast(pl.Float64))
    between = scores.group_by(pl.col("question").str.head(7)).mean()["score"].std()
    assert isinstance(between, float) and between < 0.3


def test_the_teacher_agrees_with_the_rule_but_not_always() -> None:
    rng = random.Random(1)
    essays = [write_essay(rng.random() < 0.5, rng.random(), rng.random(), rng) for _ in range(600)]
    ids = [f"r{n}" for n in range(len(essays))]
    exact = [str(min(max(round(essay.worth), LOWEST), HIGHEST)) for essay in essays]
    truth = pl.DataFrame({"id": ids, "items": [[str(mark(essay))] for essay in essays]})
    said = make_ranking(ids, [[label] for label in exact], [[0.0]] * len(ids))
    assert 0.9 < DemoEssays.metric.score(said, truth) < 0.98


def test_skill_makes_marks_and_style_makes_fewer() -> None:
    rng = random.Random(2)

    def mean(skill: float, style: float) -> float:
        return float(np.mean([write_essay(True, skill, style, rng).worth for _ in range(300)]))

    assert mean(0.9, 0.5) - mean(0.1, 0.5) > 2 * (mean(0.5, 0.9) - mean(0.5, 0.1)) > 0.4


def test_faults_have_different_weights() -> None:
    faults = ["slip", "off topic", "contrary end", "contradiction"]
    assert sorted(faults, key=lambda fault: -WORTH[fault]) == faults and max(WORTH[fault] for fault in faults) < 0


def test_a_reason_is_the_claims_own_and_empty_words_are_none() -> None:
    rng = random.Random(3)
    claim, seen = "it would save money", set()
    for _ in range(200):
        essay = Essay(rng, 0.5)
        argue(essay, claim, words.FOR)
        reason = re.search(r"because (.*)\.$", essay.sentences[0])
        gained = round(essay.worth - Essay(rng, 0.5).worth, 6)
        if reason is None:
            assert gained == WORTH["claim"]
        elif reason[1] in words.FOR[claim]:
            assert gained in (WORTH["reason"], round(WORTH["reason"] + WORTH["example"], 6))
        else:
            assert reason[1] in words.EMPTY_REASONS and gained == WORTH["no reason"]
        seen.add(gained)
    assert len(seen) == 4


def test_no_claim_and_no_reason_is_on_both_sides() -> None:
    both = [*words.FOR, *words.AGAINST]
    reasons = [reason for side in (words.FOR, words.AGAINST) for pair in side.values() for reason in pair]
    assert len(set(both)) == len(both) and len(set(reasons)) == len(reasons)


def test_a_slip_keeps_the_letters() -> None:
    rng = random.Random(4)
    for sentence in words.VAGUE + words.OFF_TOPIC:
        slipped = swap_letters(sentence, rng)
        assert sorted(slipped) == sorted(sentence) and len(slipped.split(" ")) == len(sentence.split(" "))
