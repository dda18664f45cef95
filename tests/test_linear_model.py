"""The linear model of exp009: it is scikit-learn's, saved without a pickle, for every form that a head answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import FeatureUnion, make_pipeline
from test_head_kinds import KINDS, Flags, Level, Marks, Violation, Votes, open_competition

from kaggle_llm.competition.competition import Competition
from kaggle_llm.competition.rankings import check_answer, is_values
from kaggle_llm.decisions.thresholds import round_levels
from kaggle_llm.tasks.heads import answer_without_model, describe_head
from kaggle_llm.tasks.linear_model import LinearSettings, fit_classes, fit_linear, load_linear, make_answer

SETTINGS = LinearSettings()


def literal_features() -> FeatureUnion:
    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+", ngram_range=(1, 2), min_df=2)
    characters = TfidfVectorizer(sublinear_tf=True, analyzer="char_wb", ngram_range=(2, 5), min_df=2)
    return FeatureUnion([("words", words), ("characters", characters)])


@pytest.mark.parametrize(
    ("form", "task"), [(Marks, "regression"), (Level, "classification"), (Violation, "classification")]
)
def test_it_is_scikit_learn_s_pipeline(form: type[Competition], task: Any, tmp_path: Path) -> None:
    competition = open_competition(form, tmp_path / "input")
    rows = competition.table("train")
    train, asked = rows[6:], rows[:6]
    fit_linear(train, competition, task, SETTINGS, 0, tmp_path / "model")
    answer = make_answer(asked, load_linear(tmp_path / "model"), task, competition)(None)
    texts, others = train["body"].to_list(), asked["body"].to_list()
    if task == "regression":
        literal = make_pipeline(literal_features(), Ridge()).fit(
            texts, np.array(train.select("content", "wording"), float)
        )
        np.testing.assert_allclose(answer["values"].to_list(), literal.predict(others), rtol=1e-6, atol=1e-8)
        return
    labels = describe_head(task, competition).labels
    target = [labels.index(label) for label in train[competition.target]]
    literal = make_pipeline(literal_features(), LogisticRegression(max_iter=1000)).fit(texts, target)
    chances = literal.predict_proba(others)
    for row, expected in zip(answer.iter_rows(named=True), chances, strict=True):
        found = dict(zip(row["items"], np.exp(row["scores"]), strict=True))
        np.testing.assert_allclose([found[label] for label in labels], expected, atol=1e-6)


@pytest.mark.parametrize(("form", "task"), KINDS, ids=lambda kind: getattr(kind, "__name__", kind))
def test_it_answers_every_form_and_knows_topics(form: type[Competition], task: Any, tmp_path: Path) -> None:
    competition = open_competition(form, tmp_path / "input")
    rows = competition.table("train")
    fit_linear(rows[6:], competition, task, SETTINGS, 0, tmp_path / "model")
    assert {path.name for path in (tmp_path / "model").iterdir()} == {"linear.json", "linear.safetensors"}
    model, asked = load_linear(tmp_path / "model"), rows[:6]
    answer = check_answer(make_answer(asked, model, task, competition)(None), asked["id"].to_list())
    assert make_answer(asked.clear(), model, task, competition)(None).schema == answer.schema
    levels = describe_head(task, competition).levels
    decided = round_levels(levels).apply(answer) if levels else answer
    assert is_values(decided) == (form in (Marks, Flags))
    before = answer_without_model(asked, task, competition)
    score, floor = (competition.metric.score(frame, competition.truth(asked)) for frame in (decided, before))
    assert competition.metric.sign * (score - floor) > 0


def test_an_answer_does_not_depend_on_the_rows_beside_it(tmp_path: Path) -> None:
    competition = open_competition(Votes, tmp_path / "input")
    rows = competition.table("train")
    fit_linear(rows[6:], competition, "classification", SETTINGS, 0, tmp_path / "model")
    model = load_linear(tmp_path / "model")
    whole, alone = (make_answer(rows[:count], model, "classification", competition)(None)[:1] for count in (6, 1))
    assert whole.equals(alone)


def test_shares_are_weighted_rows_and_a_class_without_rows_is_unlikely() -> None:
    features = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    shares = np.array([[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    coefficients, intercepts = fit_classes(features, shares, 1.0)
    x, y, w = features[[0, 0, 1, 2]], [0, 1, 1, 0], [0.7, 0.3, 1.0, 1.0]
    literal = LogisticRegression(max_iter=1000).fit(x, y, sample_weight=w)
    odds = features @ (coefficients[1] - coefficients[0]) + intercepts[1] - intercepts[0]
    np.testing.assert_allclose(odds, literal.decision_function(features), atol=1e-5)
    assert not coefficients[2].any() and intercepts[2] == pytest.approx(np.log(0.5 / 3))
    same, levels = fit_classes(features, np.array([[1.0, 0.0]] * 3), 1.0)
    assert not same.any() and levels.tolist() == pytest.approx([0.0, np.log(0.5 / 3)])


@pytest.mark.parametrize("values", [{"words": -1}, {"characters": 1}, {"rows": 0}, {"strength": 0.0}])
def test_settings_outside_their_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        LinearSettings(**values)
