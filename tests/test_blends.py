"""An ensemble's weights: what an item is worth in each space, what is fitted, and on which rows."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.special import log_softmax, softmax
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from kaggle_llm.base.config import build_config, save_config
from kaggle_llm.competition.competition import CompetitionSettings
from kaggle_llm.competition.folds import find_common_fold
from kaggle_llm.competition.metrics import (
    Metric,
    accuracy,
    log_loss,
    mean_average_precision,
    roc_auc,
    root_mean_squared_error,
    spearman,
)
from kaggle_llm.competition.rankings import average_rankings, make_ranking, make_values
from kaggle_llm.decisions.member_blend import (
    BlendSettings,
    MemberBlend,
    Space,
    ask_runs,
    blend_alike,
    list_asked,
    mix_rows,
    share_firsts,
)
from kaggle_llm.experiment.reports import list_recorded, report_members, take_best
from kaggle_llm.inference.cross_fit import Decided, choose_part, cross_fit
from kaggle_llm.inference.run import Run

LABELS = ("a", "b", "c")


def blend(space: Space = "log", weights: tuple[float, ...] = (1.0, 1.0, 1.0), rounds: int = 20) -> MemberBlend:
    return MemberBlend(space, rounds, weights).weigh(weights)


def join(answers: dict[int, pl.DataFrame]) -> pl.DataFrame:
    """What members said, below each other, in this order."""
    said = [answer.with_columns(member=pl.lit(number, dtype=pl.Int64)) for number, answer in answers.items()]
    return pl.concat(said)


def drawn(seed: int, rows: int, noise: tuple[float, ...]) -> tuple[list[pl.DataFrame], pl.DataFrame]:
    """Members' rankings of three labels, log-probabilities up to a constant, and the truth; noise makes them worse."""
    rng = np.random.default_rng(seed)
    ids, right = [f"r{i}" for i in range(rows)], rng.integers(0, 3, rows)
    signal = 2.0 * np.eye(3)[right]
    answers = [
        make_ranking(ids, [list(LABELS)] * rows, (signal + sigma * rng.normal(size=(rows, 3)) + 7).tolist())
        for sigma in noise
    ]
    return answers, pl.DataFrame({"id": ids, "items": [[LABELS[k]] for k in right]})


def test_the_log_space_is_the_weighted_geometric_mean_of_probabilities() -> None:
    rows = [(["a", "b"], [3.0, 1.0]), (["b", "a"], [0.5, 0.0])]
    items, scores = mix_rows(rows, [0.75, 0.25], "log")
    expected = 0.75 * log_softmax([3.0, 1.0]) + 0.25 * log_softmax([0.0, 0.5])
    assert dict(zip(items, scores, strict=True)) == pytest.approx(dict(zip("ab", expected, strict=True)))


def test_the_probability_space_is_the_weighted_mean_of_probabilities() -> None:
    rows = [(["a", "b"], [3.0, 1.0]), (["b"], [5.0])]
    items, scores = mix_rows(rows, [0.5, 0.5], "probability")
    p = softmax([3.0, 1.0])
    assert dict(zip(items, np.exp(scores), strict=True)) == pytest.approx({"a": p[0] / 2, "b": (p[1] + 1) / 2})


def test_the_rank_space_takes_places_and_nothing_of_the_scores() -> None:
    rows = [(["a", "b", "c"], [9.0, 8.0, -100.0]), (["c"], [0.1])]
    items, scores = mix_rows(rows, [0.5, 0.5], "rank")
    expected = {"a": -math.log(1 * 2) / 2, "b": -math.log(2 * 2) / 2, "c": -math.log(3 * 1) / 2}
    assert dict(zip(items, scores, strict=True)) == pytest.approx(expected)


@pytest.mark.parametrize("space", ["log", "probability", "rank", "rows"])
def test_an_answer_without_items_leaves_the_other_as_it_is(space: Space) -> None:
    row = (["a", "b"], [2.0, 1.0])
    items, _ = mix_rows([row, ([], [])], [0.5, 0.5], space)
    assert items == ["a", "b"]
    assert mix_rows([([], [])], [1.0], space) == ([], [])


def test_equal_weights_of_log_probabilities_are_the_mean_ranking() -> None:
    answers, _ = drawn(0, 20, (1.0, 1.0))
    normalised = [
        answer.with_columns(scores=pl.Series([log_softmax(row).tolist() for row in answer["scores"].to_list()]))
        for answer in answers
    ]
    found = blend(weights=(1.0, 1.0)).apply(join(dict(enumerate(answers))))
    expected = average_rankings(normalised)
    assert found["items"].to_list() == expected["items"].to_list()
    assert np.allclose(found["scores"].to_list(), expected["scores"].to_list())


def test_a_member_that_did_not_answer_a_row_falls_away_there() -> None:
    three = blend(weights=(0.2, 0.0, 0.8))
    answers, _ = drawn(1, 5, (1.0, 1.0, 1.0))
    alone = three.apply(join({0: answers[0]}))
    assert alone["items"].to_list() == answers[0]["items"].to_list()
    both = three.apply(join({2: answers[2], 1: answers[1], 0: answers[0].filter(pl.col("id") != "r3")}))
    assert both["id"].to_list() == answers[2]["id"].to_list()
    expected = mix_rows([(list(LABELS), in_order(answers[n])) for n in (2, 0)], [0.8, 0.2], "log")
    assert dict(zip(both["items"][0], both["scores"][0], strict=True)) == pytest.approx(
        dict(zip(*expected, strict=True))
    )
    assert both.row(3)[1] == answers[2].row(3)[1], "one of weight and one without"
    assert np.allclose(both["scores"][3], log_softmax(answers[2]["scores"][3]))


def test_of_members_without_weight_that_alone_answered_a_row_all_count_alike() -> None:
    two, (first, second) = blend(weights=(0.0, 0.0, 1.0)), drawn(1, 1, (1.0, 1.0))[0]
    found = two.apply(join({0: first, 1: second}))
    assert found.equals(blend(weights=(1.0, 1.0)).apply(join({0: first, 1: second})))


def test_heavy_members_are_asked_first_and_those_without_weight_for_any_row_never() -> None:
    three = blend(weights=(0.2, 0.0, 0.8))
    assert list_asked(None, 3) == [0, 1, 2], "before there are weights"
    assert list_asked(Decided(three), 3) == [2, 0]
    parts = (blend(weights=(1.0, 0.0, 0.0)), blend(weights=(0.0, 1.0, 0.0)))
    assert list_asked(Decided(three, parts, {"r1": 0}), 3) == [2, 0, 1], "in a replay, some rows have a part's weights"
    assert list_asked(Decided(three, parts), 3) == [2, 0]


def test_values_have_a_weighted_mean() -> None:
    answers = {n: make_values(["r0", "r1"], [[n, 10.0 * n], [4.0 * n, 0.0]]) for n in (1, 2)}
    found = blend("rank", weights=(5.0, 1.0, 3.0)).apply(join(answers))
    assert found["id"].to_list() == ["r0", "r1"] and np.allclose(found["values"].to_list(), [[1.75, 17.5], [7.0, 0.0]])
    alone = blend("rank", weights=(1.0, 0.0, 0.0)).apply(join(answers))
    assert alone.equals(make_values(["r0", "r1"], [[1.5, 15.0], [6.0, 0.0]])), "all alike where none has a weight"


def in_order(answer: pl.DataFrame) -> list[float]:
    """The first row's scores by label."""
    row = dict(zip(answer["items"][0], answer["scores"][0], strict=True))
    return [row[label] for label in LABELS]


def score(one: MemberBlend, said: pl.DataFrame, truth: pl.DataFrame, metric: Metric) -> float:
    return metric.score(one.apply(said), truth)


@pytest.mark.parametrize("metric", [log_loss(LABELS), mean_average_precision(3)], ids=["lower", "greater"])
def test_fitted_weights_are_as_good_as_the_best_of_all_selections_or_nearly(metric: Metric) -> None:
    """Every selection of up to four members, with replacement, tried out."""
    answers, truth = drawn(2, 80, (1.5, 2.0, 6.0))
    said, neutral = join(dict(enumerate(answers))), blend(rounds=4)
    counts = [one for one in itertools.product(range(5), repeat=3) if 1 <= sum(one) <= 4]
    best = max(metric.sign * score(neutral.weigh(one), said, truth, metric) for one in counts)
    fitted = neutral.fit(said, truth, metric)
    found = metric.sign * score(fitted, said, truth, metric)
    alone = max(metric.sign * metric.score(answer, truth) for answer in answers)
    assert alone - 1e-12 <= found <= best + 1e-12 and best - found < 0.02
    assert sum(fitted.weights) == pytest.approx(1.0) and replace(fitted, weights=neutral.weights) == neutral


def test_the_first_round_takes_the_best_member_and_more_rounds_never_make_it_worse() -> None:
    answers, truth = drawn(2, 80, (2.0, 1.5, 6.0))
    said, metric = join(dict(enumerate(answers))), log_loss(LABELS)
    losses = []
    for rounds in (1, 2, 3, 20):
        fitted = blend(rounds=rounds).fit(said, truth, metric)
        losses.append(score(fitted, said, truth, metric))
    assert blend(rounds=1).fit(said, truth, metric).weights == (0.0, 1.0, 0.0)
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_of_selections_that_are_equally_good_the_shortest_is_kept() -> None:
    (answer,), truth = drawn(2, 30, (1.0,))
    fitted = blend().fit(join({0: answer, 1: answer, 2: answer}), truth, accuracy())
    assert fitted.weights == (1.0, 0.0, 0.0)
    answers, truth = drawn(2, 30, (1.5, 0.01))
    fitted = blend(weights=(1.0, 1.0)).fit(join(dict(enumerate(answers))), truth, accuracy())
    assert fitted.weights == (0.0, 1.0), "the other one changes nothing, and is not needed"


def test_a_metric_of_values_is_fitted_too() -> None:
    rng = np.random.default_rng(0)
    right = rng.normal(size=60)
    ids = [f"r{n}" for n in range(60)]
    errors = [0.5 * rng.normal(size=60), -3.0 + rng.normal(size=60), 0.5 * rng.normal(size=60)]
    said = join({n: make_values(ids, (right + error)[:, None]) for n, error in enumerate(errors)})
    truth = make_values(ids, right[:, None])
    metric = root_mean_squared_error()
    fitted = blend().fit(said, truth, metric)
    assert fitted.weights[1] < 0.1 < min(fitted.weights[0], fitted.weights[2])
    assert score(fitted, said, truth, metric) < min(
        score(blend().weigh(one), said, truth, metric) for one in ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1))
    )


def test_across_rows_members_count_alike_however_their_scores_spread() -> None:
    """Two members of one AUC each, one of whose scores lie close together: log-odds let the other one decide alone."""
    rng = np.random.default_rng(3)
    right = rng.integers(0, 2, 200)
    odds = right + rng.normal(size=(2, 200))
    odds[1] = 0.01 * odds[1] + 5
    ids, labels = [f"r{n}" for n in range(200)], ["0", "1"]
    answers = [make_ranking(ids, [labels] * 200, [[0.0, odd] for odd in own.tolist()]) for own in odds]
    said = join(dict(enumerate(answers)))
    truth = pl.DataFrame({"id": ids, "items": [[labels[k]] for k in right]})
    metric, alike = roc_auc("1"), blend("rows", (1.0, 1.0))
    fitted = alike.fit(said, truth, metric)
    ranks = sum(rankdata(own) for own in odds)
    expected = roc_auc_score(right, ranks)
    assert score(fitted.weigh([1, 1]), said, truth, metric) == pytest.approx(expected, abs=3e-4)  # sums of ranks tie
    assert expected > score(blend("log", (1.0, 1.0)), said, truth, metric)
    assert score(alike, said, truth, metric) == score(blend("log", (1.0, 1.0)), said, truth, metric), "not fitted yet"


def test_a_row_of_a_blend_across_rows_is_the_same_alone() -> None:
    answers, truth = drawn(5, 40, (1.0, 2.0))
    fitted = blend("rows", (1.0, 1.0)).fit(join(dict(enumerate(answers))), truth, log_loss(LABELS))
    together = fitted.apply(join(dict(enumerate(answers))))
    alone = fitted.apply(join({n: answer[:1] for n, answer in enumerate(answers)}))
    assert alone.equals(together[:1])
    saved = build_config(json.loads(json.dumps(asdict(fitted))), MemberBlend)
    assert saved == fitted, "it is kept as JSON"
    values = [make_values(["a", "b", "c"], [[x, -x] for x in own]) for own in ((1.0, 2.0, 3.0), (0.0, 9.0, 10.0))]
    said, right = join(dict(enumerate(values))), make_values(["a", "b", "c"], [[1.0, -1.0], [2.0, -2.0], [3.0, -3.0]])
    blended = blend("rows", (1.0, 1.0)).fit(said, right, spearman()).weigh([1, 1]).apply(said)
    np.testing.assert_allclose(blended["values"].to_list(), [[1 / 6, 5 / 6], [1 / 2, 1 / 2], [5 / 6, 1 / 6]])


def test_a_member_without_an_answer_to_a_row_does_not_end_a_blend_across_rows() -> None:
    answers, truth = drawn(5, 40, (1.0, 2.0))
    fitted = blend("rows", (1.0, 1.0)).fit(join(dict(enumerate(answers))), truth, log_loss(LABELS))
    nothing = make_ranking(["r0"], [[]], [[]])
    blended = fitted.weigh([1, 1]).apply(join({0: answers[0][:1], 1: nothing}))
    assert sorted(blended["items"][0].to_list()) == list(LABELS)
    assert blended["items"][0].to_list() == fitted.weigh([1, 0]).apply(join({0: answers[0][:1]}))["items"][0].to_list()


def test_rows_that_score_different_items_cannot_be_compared() -> None:
    answer = make_ranking(["a", "b"], [["x", "y"], ["x", "z"]], [[1.0, 0.0]] * 2).with_columns(member=pl.lit(0))
    with pytest.raises(ValueError, match=r"blend\.space = rows: the rows' answers score different items"):
        blend("rows", (1.0,)).fit(answer, pl.DataFrame({"id": ["a", "b"], "items": [["x"], ["x"]]}), accuracy())


def test_a_row_does_not_help_to_fit_its_own_weights() -> None:
    """With the labels of a part turned around, that part's own weights stay as they were."""
    answers, truth = drawn(3, 60, (1.0, 1.5))
    said, groups = join(dict(enumerate(answers))), {row: row for row in truth["id"]}
    turned = truth.with_columns(
        items=pl.Series([["a"] if choose_part(row) == 1 else right for row, right in truth.iter_rows()])
    )
    neutral = blend(weights=(1, 1), rounds=10)
    before, after = (cross_fit(neutral, said, one, groups, log_loss(LABELS))[0] for one in (truth, turned))
    assert before.parts[1] == after.parts[1] and before.parts[0] != after.parts[0]
    mine = [row for row in truth["id"] if choose_part(row) == 1]
    one, other = (decided.apply(said) for decided in (before, after))
    same = (one["scores"] == other["scores"]).to_list()
    assert mine and all(same[n] for n, row in enumerate(one["id"]) if row in mine) and not all(same)


def test_members_that_answer_alike_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A copy of the best member adds nothing, whatever its run is called."""
    ids = ["p", "q", "r"]
    best = make_ranking(ids, [["a", "b"], ["b", "a"], []], [[2.0, 1.0], [3.0, 1.0], []])
    other = make_ranking(ids, [["a"], ["a", "b"], ["a"]], [[9.0], [3.0, 1.0], [1.0]])
    assert [share_firsts(best, best), share_firsts(other, best)] == [1.0, 1 / 3]
    values = make_values(ids, [[1.0, 9.0], [2.0, 9.0], [3.0, 9.0]])
    assert share_firsts(values, values.with_columns(values=pl.Series([[1.0, 8.0], [7.0, 9.0], [3.0]]))) == 2 / 3
    truth = pl.DataFrame({"id": ids, "items": [["a"], ["b"], ["a"]]})
    decided = Decided(blend(weights=(1.0, 0.0)), (blend(weights=(3.0, 1.0)), blend(weights=(1.0, 0.0))), {"p": 0})
    experiment = show_experiment(["exp1_best", "exp2_other"], [best, other], truth, decided)
    assert take_best(experiment).equals(best)
    report_members(experiment)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "%" in line] == [
        ["exp1_best", "0.6667", "100%", "1.00", "0.75", "1.00"],
        ["exp2_other", "0.6667", "33%", "0.00", "0.25", "0.00"],
    ]
    assert lines[-1] == "exp2_other has the weight 0: take it out of members, or it is shipped for nothing"


def show_experiment(members: list[str], answers: list[pl.DataFrame], truth: pl.DataFrame, decided: Decided) -> Any:
    """What the reports of an ensemble read of an experiment."""
    ranking = truth.select("id")  # whose order all have
    scores = SimpleNamespace(truth=truth, ranking=ranking, shipped=Decided(decided.value), decided=decided)
    recorded = {run: answer.with_columns(fold=0) for run, answer in zip(members, answers, strict=True)}
    competition = SimpleNamespace(metric=accuracy())
    return SimpleNamespace(scores=scores, members=members, recorded=recorded, competition=competition)


def test_the_best_member_is_the_one_with_the_smallest_loss() -> None:
    answers, truth = drawn(4, 60, (6.0, 0.5, 3.0))
    experiment = show_experiment(["p", "q", "r"], answers, truth, Decided(blend()))
    experiment.competition.metric = log_loss(LABELS)
    assert take_best(experiment).equals(answers[1])


def test_the_best_member_has_the_order_of_the_ensemble() -> None:
    """A paired difference needs one order."""
    answers, truth = drawn(4, 60, (6.0, 0.5, 3.0))
    shuffled = [answers[0], answers[1].sample(fraction=1.0, shuffle=True, seed=1), answers[2].reverse()]
    experiment = show_experiment(["p", "q", "r"], shuffled, truth, Decided(blend()))
    experiment.competition.metric = log_loss(LABELS)
    assert take_best(experiment).equals(answers[1])
    assert [frame.equals(own) for frame, own in zip(list_recorded(experiment), answers, strict=True)] == [True] * 3


def test_before_a_fit_all_members_count_alike() -> None:
    config = SimpleNamespace(members=["p", "q"], blend=BlendSettings("rank", 7))
    assert blend_alike(config) == MemberBlend("rank", 7, (0.5, 0.5))
    with pytest.raises(ValueError, match="rounds = 0: one round is needed"):
        BlendSettings(rounds=0)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_member_says_once_what_it_has_on_record_of_each_row(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of three and more, where the rows of the next one are ordered by what those before said."""
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    answers, truth = drawn(5, 20, (1.0,) * count)
    names = [f"exp00{n}_x--{n}" for n in range(count)]
    competition = CompetitionSettings("demo-misconceptions")
    for name in names:
        save_config(BlendSettings(), tmp_path / "output" / name / "config.yaml")
    config = SimpleNamespace(members=names, blend=BlendSettings(), competition=competition)
    recorded = {name: answer.with_columns(fold=pl.lit(0)) for name, answer in zip(names, answers, strict=True)}
    data: Any = SimpleNamespace(folder=tmp_path)
    run = Run(config, data, [], recorded=recorded)
    run.exp = tmp_path / "exp" / "exp007_blend"
    asked = truth.select("id")[3:17]
    said = ask_runs(asked, run)
    for number, answer in enumerate(answers):
        own = said.filter(pl.col("member") == number).drop("member")
        assert own.sort("id").equals(answer.filter(pl.col("id").is_in(asked["id"].to_list())).sort("id"))
    assert said.height == count * asked.height


def test_rows_that_a_member_did_not_validate_are_left_out_and_other_folds_refused() -> None:
    train = pl.DataFrame({"id": ["a", "b", "c", "d"]})
    first = pl.DataFrame({"id": ["a", "b", "c"], "fold": [0, 1, 0]})
    assert find_common_fold(train, {"p": first, "q": first.head(2)}).to_list() == [0, 1, -1, -1]
    with pytest.raises(ValueError, match=r"p, q validated 1 row.* first 'b'"):
        find_common_fold(train, {"p": first, "q": first.with_columns(fold=0)})
    with pytest.raises(ValueError, match="no row in common"):
        find_common_fold(train, {"p": first.head(1), "q": first.tail(1)})
