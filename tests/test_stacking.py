"""Other runs' answers as columns of exp009's model: which numbers they are, and what is fitted on them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from light import answer_offline
from scipy.sparse import hstack
from scipy.special import log_softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from test_head_kinds import Level, Marks, Violation, open_competition
from workspace import Workspace, succeed

from kaggle_llm.base.config import save_config
from kaggle_llm.competition.competition import Competition, CompetitionSettings
from kaggle_llm.competition.rankings import make_ranking, make_values
from kaggle_llm.inference.run import Run
from kaggle_llm.tasks.heads import HeadSettings, describe_head
from kaggle_llm.tasks.linear_model import LinearSettings, fit_linear, load_linear, make_answer
from kaggle_llm.tasks.stacking import ask_columns, fit_scales, join_columns, stack_rows
from kaggle_llm.tasks.terms import Terms

LABELS = ["a", "b", "c"]
CLASSES = HeadSettings("classification", LABELS)
NUMBERS = HeadSettings("regression", targets=["content", "wording"])


def of_member(number: int, answer: pl.DataFrame) -> pl.DataFrame:
    return answer.with_columns(member=pl.lit(number, dtype=pl.Int64()))


def test_labels_are_log_probabilities_levels_their_mean_and_numbers_stay_numbers() -> None:
    first = make_ranking(["p", "q"], [["c", "a", "b"], ["b", "a"]], [[3.0, 2.0, 0.5], [1.0, 0.0]])
    second = make_ranking(["q", "p"], [["a", "b", "c"], []], [[0.0, 0.0, 0.0], []])
    columns = join_columns(["p", "q"], pl.concat([of_member(0, first), of_member(1, second)]), 2, CLASSES)
    expected = [
        [*log_softmax([2.0, 0.5, 3.0]), *[math.nan] * 3],
        [*log_softmax([0.0, 1.0, -1.0]), *[-math.log(3)] * 3],  # the label that it lacks is below its lowest
    ]
    np.testing.assert_allclose(columns, expected)
    levels = join_columns(["p", "q"], of_member(0, first), 1, HeadSettings("ordinal", LABELS))
    np.testing.assert_allclose(levels, [[np.exp(expected[0][:3]) @ [0, 1, 2]], [np.exp(expected[1][:3]) @ [0, 1, 2]]])
    values = of_member(1, make_values(["q"], [[0.5, 7.0]]))
    columns = join_columns(["p", "q"], values, 2, NUMBERS)
    np.testing.assert_array_equal(columns, [[math.nan] * 4, [math.nan, math.nan, 0.5, 7.0]])


def test_a_member_without_an_answer_counts_as_its_mean() -> None:
    scales = fit_scales(np.array([[1.0, 5.0, 2.0], [3.0, 5.0, math.nan]]))
    np.testing.assert_array_equal(scales.standardise(np.array([[3.0, 6.0, math.nan]])), [[1.0, 1.0, 0.0]])
    equal = fit_scales(np.full((60, 1), 1.1))  # whose standard deviation is 2e-16 by rounding
    np.testing.assert_allclose(equal.standardise(np.array([[1.1], [1.2]])), [[0.0], [0.1]], atol=1e-12)


def test_training_takes_the_rows_that_all_members_answered_out_of_fold() -> None:
    rows = pl.DataFrame({"id": ["p", "q", "r"], "text": ["x", "y", "z"]})
    wide = make_values(["r", "q", "p"], [[3.0], [2.0], [1.0]]).with_columns(fold=0, prediction=pl.lit("1"))
    narrow = make_values(["q", "r"], [[20.0], [30.0]]).with_columns(fold=0)
    one = HeadSettings("regression")
    left, columns = stack_rows(rows, {"wide": wide, "narrow": narrow}, one)
    assert left.equals(rows[1:])
    assert columns is not None and columns.tolist() == [[2.0, 20.0], [3.0, 30.0]]
    assert stack_rows(rows, {}, one) == (rows, None)
    with pytest.raises(ValueError, match=r"wide answered no training row .* folds.validate=null"):
        stack_rows(rows.with_columns(id=pl.col("id") + "'"), {"wide": wide}, one)


def open_members(root: Path, answers: dict[str, pl.DataFrame]) -> Run:
    """A run in CV, whose members' answers are recorded."""
    settings = CompetitionSettings("demo-essays")
    for name in answers:
        save_config(settings, root / "output" / name / "config.yaml")
    config, data = SimpleNamespace(members=list(answers), competition=settings), SimpleNamespace(folder=root)
    run = Run(config, data, [], recorded=answers)  # type: ignore[arg-type]
    run.exp = root / "exp" / "exp009_linear"
    return run


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    return tmp_path


def test_members_are_asked_one_after_the_other_and_each_completes_the_offer(root: Path) -> None:
    run = open_members(root, {name: make_values(["p", "q"], [[n], [n + 1]]) for n, name in enumerate(["e1_x", "e2_y"])})
    asked: list[np.ndarray] = []
    offers: list[pl.DataFrame] = []
    run._on_offer = offers.append

    def answer(columns: np.ndarray) -> pl.DataFrame:
        asked.append(columns)
        return make_values(["q", "p"], np.nan_to_num(columns))

    rows, head = pl.DataFrame({"id": ["q", "p"]}), HeadSettings("regression")
    columns = ask_columns(rows, run, head, answer)
    assert columns is not None and columns.tolist() == [[1.0, 2.0], [0.0, 1.0]]
    np.testing.assert_array_equal(asked[0], [[1.0, math.nan], [0.0, math.nan]])
    np.testing.assert_array_equal(asked[-1], columns)
    assert offers[-1]["values"].to_list() == columns.tolist()
    run.config.members = []
    assert ask_columns(rows, run, head, answer) is None


def test_in_cv_numbers_wait_for_their_decision_though_the_fallback_says_labels(root: Path) -> None:
    """As of exp009's levels: the two have no columns in common."""
    run = open_members(root, {name: make_ranking(["p"], [LABELS], [[2.0, 1.0, 0.0]]) for name in ("e1", "e2")})
    run.fallback = make_ranking(["p"], [LABELS], [[0.0, 0.0, 0.0]])
    head = HeadSettings("ordinal", LABELS)
    columns = ask_columns(pl.DataFrame({"id": ["p"]}), run, head, lambda columns: make_values(["p"], columns[:, :1]))
    assert columns is not None and columns.shape == (1, 2)


def test_members_that_say_one_label_each_are_columns_too(root: Path) -> None:
    """Such as written labels: their rankings have no mean, as they have no item in common."""
    run = open_members(
        root, {name: make_ranking(["p"], [[label]], [[0.0]]) for name, label in [("e1", "a"), ("e2", "b"), ("e3", "a")]}
    )

    def answer(columns: np.ndarray) -> pl.DataFrame:
        return make_ranking(["p"], [LABELS], np.nan_to_num(columns[:, :3]).tolist())

    columns = ask_columns(pl.DataFrame({"id": ["p"]}), run, CLASSES, answer)
    np.testing.assert_allclose(
        columns, [[*log_softmax([0, -1, -1]), *log_softmax([-1, 0, -1]), *log_softmax([0, -1, -1])]]
    )


def draw_columns(competition: Competition, rows: pl.DataFrame, task: Any) -> np.ndarray:
    """Columns that know the answer, with noise."""
    truth, head = competition.truth(rows), describe_head(task, competition)
    if task == "regression":
        right = np.array(truth["values"].to_list(), dtype=float)
    else:
        right = np.array([[float(item == label) for label in head.labels] for (item,) in truth["items"].to_list()])
    return right + np.random.default_rng(0).normal(0, 0.5, right.shape)


@pytest.mark.parametrize(("form", "task"), [(Marks, "regression"), (Level, "ordinal"), (Violation, "classification")])
def test_it_is_scikit_learn_s_model_of_terms_and_standardised_columns(
    form: type[Competition], task: Any, tmp_path: Path
) -> None:
    competition = open_competition(form, tmp_path / "input")
    head, rows = describe_head(task, competition), competition.table("train")
    settings = LinearSettings(characters=0)
    columns = draw_columns(competition, rows, task)
    fit_linear(rows[6:], competition, task, settings, 0, tmp_path / "model", columns=columns[6:])
    answer = make_answer(rows[:6], load_linear(tmp_path / "model"), task, competition)(columns[:6])

    words = TfidfVectorizer(sublinear_tf=True, token_pattern=r"\S+", ngram_range=(1, 2), min_df=2)
    scaler = StandardScaler()
    train = hstack([words.fit_transform(rows["body"][6:].to_list()), scaler.fit_transform(columns[6:])])
    asked = hstack([words.transform(rows["body"][:6].to_list()), scaler.transform(columns[:6])])
    truth = competition.truth(rows)
    if task == "classification":
        target = [head.labels.index(item) for (item,) in truth["items"].to_list()]
        literal = LogisticRegression(max_iter=1000).fit(train, target[6:]).predict_proba(asked)
        found = [dict(zip(row["items"], row["scores"], strict=True)) for row in answer.iter_rows(named=True)]
        chances = [[math.exp(row[label]) for label in head.labels] for row in found]
        np.testing.assert_allclose(chances, literal, atol=1e-5)
        return
    target = truth["values"].to_list() if task == "regression" else [[head.labels.index(i)] for (i,) in truth["items"]]
    literal = Ridge().fit(train, np.array(target[6:], dtype=float)).predict(asked)
    np.testing.assert_allclose(answer["values"].to_list(), literal.reshape(6, -1), rtol=1e-6, atol=1e-8)


def test_the_texts_are_read_once_however_often_a_member_completes_the_offer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    competition = open_competition(Marks, tmp_path / "input")
    rows, reads = competition.table("train"), []
    fit_linear(rows, competition, "regression", LinearSettings(), 0, tmp_path / "model")
    original = Terms.features
    monkeypatch.setattr(Terms, "features", lambda self, texts: reads.append(len(texts)) or original(self, texts))
    answer = make_answer(rows, load_linear(tmp_path / "model"), "regression", competition)
    assert answer(None).equals(answer(None)) and reads == [rows.height]


def test_columns_alone_are_a_model_and_nothing_at_all_is_refused(tmp_path: Path) -> None:
    competition = open_competition(Marks, tmp_path / "input")
    rows, settings = competition.table("train"), LinearSettings(words=0, characters=0)
    columns = draw_columns(competition, rows, "regression")
    fit_linear(rows, competition, "regression", settings, 0, tmp_path / "model", columns=columns)
    answer = make_answer(rows, load_linear(tmp_path / "model"), "regression", competition)(columns)
    truth = np.array(competition.truth(rows)["values"].to_list())
    assert np.corrcoef(np.array(answer["values"].to_list())[:, 0], truth[:, 0])[0, 1] > 0.5
    with pytest.raises(ValueError, match="fitted and asked with the same members"):
        make_answer(rows, load_linear(tmp_path / "model"), "regression", competition)(None)
    with pytest.raises(ValueError, match=r"linear.words = 0, linear.characters = 0 and no members"):
        fit_linear(rows, competition, "regression", settings, 0, tmp_path / "none")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_stack_is_trained_on_out_of_fold_answers_and_asks_its_members_offline(
    trained: Workspace, tmp_path: Path
) -> None:
    """Its model and its members' have one name: each is found."""
    few = ("folds.rows=8", "linear.characters=0")
    succeed(trained.train("exp009_linear", "run=pairs", *few))
    succeed(trained.train("exp009_linear", "run=single", "linear.words=1", *few))
    members = "members=[exp009_linear--pairs,exp009_linear--single]"
    succeed(trained.train("exp009_linear", "run=stack", members, "linear.words=0", *few))
    runs = [trained.output / f"exp009_linear--{run}" for run in ("pairs", "single", "stack")]
    pairs, single, stack = (json.loads((run / "metrics.json").read_text()) for run in runs)
    assert stack["before"] == pytest.approx(max(pairs["cv"], single["cv"]))
    succeed(trained.cli("audit", runs[-1].name))
    succeed(trained.cli("bundle", runs[-1].name))
    checks = answer_offline(trained, runs[-1].name, tmp_path / "site", replay=0)
    assert checks["replay"].ok and "same lists" in checks["replay"].detail
    assert checks["row independence"].ok
