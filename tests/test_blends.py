"""An ensemble's weights: what an item is worth in each space, what is fitted, and on which rows."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.special import log_softmax, softmax

from kaggle_llm.cv.blends import (
    Fit,
    MemberBlend,
    find_common_fold,
    mix_rows,
    nest_weights,
    open_blend,
    print_weights,
    share_firsts,
)
from kaggle_llm.metrics import log_loss, mean_average_precision
from kaggle_llm.rankings import average_rankings, make_ranking

ABOUT = tuple({"run": name, "experiment": name, "config": {}} for name in "pqr")
LABELS = ("a", "b", "c")


def blend(space: str = "log", weights: tuple[float, ...] = (1.0, 1.0, 1.0)) -> MemberBlend:
    return MemberBlend(space, ABOUT[: len(weights)], weights).weigh(weights)


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


@pytest.mark.parametrize("space", ["log", "probability", "rank"])
def test_an_answer_without_items_leaves_the_other_as_it_is(space: str) -> None:
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
    found = blend(weights=(1.0, 1.0)).combine(dict(enumerate(answers)))
    expected = average_rankings(normalised)
    assert found["items"].to_list() == expected["items"].to_list()
    assert np.allclose(found["scores"].to_list(), expected["scores"].to_list())


def test_heavy_members_are_asked_first_those_without_weight_never_and_one_that_is_missing_falls_away() -> None:
    three = blend(weights=(0.2, 0.0, 0.8))
    assert three.list_asked() == [2, 0]
    answers, _ = drawn(1, 5, (1.0, 1.0, 1.0))
    alone = three.combine({0: answers[2]})
    assert alone["items"].to_list() == answers[2]["items"].to_list()
    both = three.combine({0: answers[2], 1: answers[0]})
    expected = mix_rows([(list(LABELS), s) for s in (in_order(answers[2]), in_order(answers[0]))], [0.8, 0.2], "log")
    assert dict(zip(both["items"][0], both["scores"][0], strict=True)) == pytest.approx(
        dict(zip(*expected, strict=True))
    )


def in_order(answer: pl.DataFrame) -> list[float]:
    """The first row's scores by label."""
    row = dict(zip(answer["items"][0], answer["scores"][0], strict=True))
    return [row[label] for label in LABELS]


@pytest.mark.parametrize("metric", [log_loss(LABELS), mean_average_precision(3)], ids=["lower", "greater"])
def test_fitted_weights_are_as_good_as_the_best_of_all_selections_or_nearly(metric) -> None:
    """Every selection of up to four members, with replacement, tried out."""
    answers, truth = drawn(2, 80, (1.5, 2.0, 6.0))
    fit = Fit(blend(), answers, truth, metric)
    sign = 1 if metric.greater_is_better else -1
    counts = [one for one in itertools.product(range(5), repeat=3) if 1 <= sum(one) <= 4]
    best = max(sign * fit.score(fit.blend.weigh(one)) for one in counts)
    found = sign * fit.score(fit.blend.weigh(fit.fit_weights(4)))
    alone = max(sign * fit.score(one) for one in fit.blend.take_alone())
    assert alone <= found <= best + 1e-12 and best - found < 0.02
    assert sum(fit.fit_weights(4)) == pytest.approx(1.0)


def test_a_row_does_not_help_to_fit_its_own_weights() -> None:
    """With the labels of a part turned around, that part's own weights stay as they were."""
    answers, truth = drawn(3, 60, (1.0, 1.5))
    part = pl.Series([n % 3 for n in range(60)])
    turned = truth.with_columns(
        items=pl.Series([["a"] if n % 3 == 1 else row for n, row in enumerate(truth["items"].to_list())])
    )
    before, after = (
        nest_weights(Fit(blend(weights=(1, 1)), answers, one, log_loss(LABELS)), part, 10) for one in (truth, turned)
    )
    assert before["r1"] == after["r1"] and before["r0"] != after["r0"]
    assert set(before) == set(truth["id"]) and before["r1"] == before["r4"]


def test_members_that_answer_alike_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """A copy of the best member adds nothing, whatever its run is called."""
    ids = ["p", "q", "r"]
    best = make_ranking(ids, [["a", "b"], ["b", "a"], []], [[2.0, 1.0], [3.0, 1.0], []])
    other = make_ranking(ids, [["a"], ["a", "b"], ["a"]], [[9.0], [3.0, 1.0], [1.0]])
    assert [share_firsts(best, best), share_firsts(other, best)] == [1.0, 1 / 3]
    print_weights(blend(weights=(1.0, 1.0)), [0.9, 0.8], [1.0, 0.5], "log loss")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines if "%" in line] == [
        ["p", "0.9000", "100%", "0.50"],
        ["q", "0.8000", "50%", "0.50"],
    ]


def test_a_blend_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    one = MemberBlend("rank", ABOUT, (0.5, 0.25, 0.25), {"r1": (1.0, 0.0, 0.0)})
    one.save(tmp_path)
    assert MemberBlend.load(tmp_path) == one


def test_rows_that_a_member_did_not_validate_are_left_out_and_other_folds_refused() -> None:
    train = pl.DataFrame({"id": ["a", "b", "c", "d"]})
    first = pl.DataFrame({"id": ["a", "b", "c"], "fold": [0, 1, 0]})
    assert find_common_fold(train, {"p": first, "q": first.head(2)}).to_list() == [0, 1, -1, -1]
    with pytest.raises(ValueError, match=r"p, q validated 1 row.* first 'b'"):
        find_common_fold(train, {"p": first, "q": first.with_columns(fold=0)})
    with pytest.raises(ValueError, match="no row in common"):
        find_common_fold(train, {"p": first.head(1), "q": first.tail(1)})


def test_a_member_of_another_competition_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    folder = tmp_path / "output" / "exp001_retrieve"
    folder.mkdir(parents=True)
    settings = {"config": {"competition": {"name": "demo-tags"}}}
    record = {"kind": "run", "key": "", "settings": settings, "inputs": {}, "files": {}, "seed": 0, "git": {}}
    (folder / "record.json").write_text(json.dumps({**record, "versions": {}, "seconds": 0}))
    with pytest.raises(ValueError, match="members: exp001_retrieve is of demo-tags, not of demo-letters"):
        open_blend(["exp001_retrieve"], "log", "demo-letters")
