"""exp009's boosted trees: they are LightGBM's, saved as its text, for every form that a head answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from test_head_kinds import KINDS, Flags, Level, Marks, Votes, open_competition

from kaggle_llm.competition.competition import Competition
from kaggle_llm.competition.rankings import check_answer, is_values
from kaggle_llm.decisions.thresholds import round_levels
from kaggle_llm.tasks.boosted_trees import TreeSettings, fit_trees, load_trees, save_trees
from kaggle_llm.tasks.heads import answer_without_model, describe_head
from kaggle_llm.tasks.linear_model import LinearSettings, fit_linear, load_linear, make_answer

lightgbm = pytest.importorskip("lightgbm")
SMALL = TreeSettings(rounds=30, rows=2)
SETTINGS = LinearSettings(model="lightgbm", characters=0, trees=SMALL)
LITERAL = {"num_threads": 1, "deterministic": True, "force_row_wise": True, "verbosity": -1, "seed": 5}
LITERAL |= {"num_leaves": 15, "learning_rate": 0.05, "min_data_in_leaf": 2, "feature_fraction": 0.3}


def make_rows(count: int = 60) -> tuple[csr_matrix, np.ndarray]:
    """Sparse features, and three numbers from 0 to 1 that follow from them."""
    features = np.random.default_rng(0).random((count, 8)) * (np.random.default_rng(1).random((count, 8)) > 0.5)
    numbers = 1 / (1 + np.exp(-4 * (features[:, :3] - features[:, 3:6])))
    return csr_matrix(features), numbers


def train(target: np.ndarray, weights: np.ndarray | None = None, rows: Any = slice(None), **options: Any) -> np.ndarray:
    """LightGBM's raw scores by a script's own call of it."""
    features, _ = make_rows()
    data = lightgbm.Dataset(features[rows], target, weight=weights)
    booster = lightgbm.train({**LITERAL, **options}, data, num_boost_round=30)
    return np.asarray(booster.predict(features, raw_score=True))


def test_numbers_and_labels_have_a_booster_each_that_is_lightgbm_s() -> None:
    features, numbers = make_rows()
    for task, objective in (("regression", "regression"), ("multilabel", "cross_entropy")):
        expected = np.stack([train(column, objective=objective) for column in numbers.T], 1)
        found = fit_trees(features, numbers, task, SMALL, 5).logits(features)  # type: ignore[arg-type]
        np.testing.assert_array_equal(found, expected)
        assert np.corrcoef(found[:, 0], numbers[:, 0])[0, 1] > 0.8


def test_shares_are_weighted_rows_and_a_class_without_rows_is_unlikely() -> None:
    features, numbers = make_rows()
    shares = np.insert(numbers / numbers.sum(axis=1, keepdims=True), 1, 0.0, axis=1)
    rows, weights = np.repeat(np.arange(60), 3), np.delete(shares, 1, axis=1).ravel()
    expected = train(np.tile([0, 1, 2], 60), weights, rows, objective="multiclass", num_class=3)
    found = fit_trees(features, shares, "classification", SMALL, 5).logits(features)
    np.testing.assert_array_equal(found[:, [0, 2, 3]], expected)
    np.testing.assert_allclose(found[:, 1], np.log(0.5 / 60))
    alone = fit_trees(features, np.eye(2)[[1] * 60], "classification", SMALL, 5)
    np.testing.assert_allclose(alone.logits(features[:1]), [[np.log(0.5 / 60), 0.0]])


def test_a_label_that_all_rows_have_or_none_gets_the_odds_of_half_a_row() -> None:
    features, numbers = make_rows()
    targets = np.stack([np.zeros(60), np.ones(60), numbers[:, 0]], 1)
    trees = fit_trees(features, targets, "multilabel", SMALL, 5)
    np.testing.assert_allclose(trees.logits(features[:1])[0, :2], [np.log(0.5 / 60), np.log(60 / 0.5)])
    assert [each.outputs.tolist() for each in trees.boosters] == [[2]]


def test_what_is_loaded_answers_to_the_same_bits_each_row_alone(tmp_path: Path) -> None:
    features, numbers = make_rows()
    trees = fit_trees(features, numbers, "regression", SMALL, 5)
    save_trees(trees, tmp_path)
    names = {"boosters.safetensors", "booster0.txt", "booster1.txt", "booster2.txt"}
    assert {path.name for path in tmp_path.iterdir()} == names
    whole, loaded = trees.logits(features), load_trees(tmp_path)
    np.testing.assert_array_equal(loaded.logits(features), whole)
    np.testing.assert_array_equal(np.concatenate([loaded.logits(features[row]) for row in range(60)]), whole)
    save_trees(fit_trees(features, numbers, "regression", SMALL, 5), tmp_path / "again")
    assert all((tmp_path / "again" / name).read_bytes() == (tmp_path / name).read_bytes() for name in names)


@pytest.mark.parametrize(("form", "task"), KINDS, ids=lambda kind: getattr(kind, "__name__", kind))
def test_they_answer_every_form_and_know_topics(form: type[Competition], task: Any, tmp_path: Path) -> None:
    competition = open_competition(form, tmp_path / "input")
    rows = competition.table("train")
    fit_linear(rows[6:], competition, task, SETTINGS, 0, tmp_path / "model")
    model, asked = load_linear(tmp_path / "model"), rows[:6]
    answer = check_answer(make_answer(asked, model, task, competition)(None), asked["id"].to_list())
    assert make_answer(asked.clear(), model, task, competition)(None).schema == answer.schema
    levels = describe_head(task, competition).levels
    decided = round_levels(levels).apply(answer) if levels else answer
    assert is_values(decided) == (form in (Marks, Flags))
    before = answer_without_model(asked, task, competition)
    score, floor = (competition.metric.score(frame, competition.truth(asked)) for frame in (decided, before))
    assert competition.metric.sign * (score - floor) > 0


def test_two_rows_are_enough_to_answer(tmp_path: Path) -> None:
    """As in a smoke run, where no leaf could be split."""
    competition = open_competition(Votes, tmp_path / "input")
    rows = competition.table("train")[:2]
    fit_linear(rows, competition, "classification", SETTINGS, 0, tmp_path / "model")
    answer = make_answer(rows, load_linear(tmp_path / "model"), "classification", competition)(None)
    assert np.isfinite(answer["scores"].to_list()).all()


def test_lightgbm_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    competition = open_competition(Level, tmp_path / "input")
    monkeypatch.setattr("kaggle_llm.tasks.boosted_trees.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"linear.model = lightgbm needs LightGBM: pip install lightgbm"):
        fit_linear(competition.table("train"), competition, "ordinal", SETTINGS, 0, tmp_path / "model")
    fit_linear(competition.table("train"), competition, "ordinal", LinearSettings(), 0, tmp_path / "linear")
    load_linear(tmp_path / "linear")


@pytest.mark.parametrize(
    "values", [{"rounds": 0}, {"leaves": 1}, {"rows": 0}, {"learning_rate": 0.0}, {"features": 1.5}]
)
def test_settings_outside_their_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        TreeSettings(**values)
