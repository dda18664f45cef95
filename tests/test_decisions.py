"""Decisions: no row helps to fit its own, and the blend of reranker and retrieval is its literal formula."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from kaggle_llm.competition.metrics import Metric, log_loss, mean_average_precision, recall
from kaggle_llm.competition.rankings import check_ranking, make_ranking, top
from kaggle_llm.decisions.member_blend import MemberBlend
from kaggle_llm.decisions.outside import OutsideThreshold
from kaggle_llm.decisions.rerank_blend import LARGEST, Blend, Reranked
from kaggle_llm.decisions.temperature import Temperature
from kaggle_llm.experiment.reports import score_prior
from kaggle_llm.inference.cross_fit import (
    CROSS_FIT_PARTS,
    MIN_GROUPS,
    Decided,
    choose_part,
    cross_fit,
    join_scored,
    list_ids,
    load_decided,
    select_scored,
)


def ranking(**rows: dict[str, float]) -> pl.DataFrame:
    """id={item: score, …}"""
    return make_ranking(list(rows), [list(row) for row in rows.values()], [list(row.values()) for row in rows.values()])


def truth(**rows: str) -> pl.DataFrame:
    return pl.DataFrame({"id": list(rows), "items": [[item] for item in rows.values()]})


METRIC = recall(1)


def drawn(seed: int = 0, depth: int = 5) -> Reranked:
    """A retrieval of 40 rows with 9 items each, and a reranker's scores of the first `depth`."""
    rng = random.Random(seed)
    ids = [f"r{i}" for i in range(40)]
    items = [rng.sample("abcdefghi", 9) for _ in ids]
    retrieved = make_ranking(ids, items, [[1 / place for place in range(1, 10)]] * 40)
    reranked = make_ranking(ids, [row[:depth] for row in items], [[rng.gauss(0, 2) for _ in range(depth)]] * 40)
    return Reranked(retrieved, reranked)


@pytest.mark.parametrize("weight", [0.05, 1.0, 5.0])
def test_reranked_candidates_score_weight_times_score_minus_log_place(weight: float) -> None:
    scored = drawn()
    rows = scored.retrieved["items"], scored.reranked.iter_rows(), Blend(weight).apply(scored).iter_rows()
    for items, scores, after in zip(*rows, strict=True):
        known = dict(zip(scores[1], scores[2], strict=True))
        literal = {item: weight * known[item] - math.log(items.to_list().index(item) + 1) for item in known}
        expected = sorted(literal, key=literal.__getitem__, reverse=True)
        assert after[1][:5] == expected
        assert after[2][:5] == pytest.approx([literal[item] for item in expected], abs=1e-12)


def test_a_case_worked_out_by_hand() -> None:
    retrieved = ranking(r={"a": 0.9, "b": 0.8, "c": 0.7})
    blended = Blend(2.0).apply(Reranked(retrieved, ranking(r={"b": 1.0, "a": 0.5})))
    assert blended["items"].to_list() == [["b", "a", "c"]]  # b: 2 − log 2, a: 1 − log 1
    assert blended["scores"][0][:2].to_list() == pytest.approx([2 - math.log(2), 1.0])


@pytest.mark.parametrize("depth", [0, 1, 5, 9])
def test_weight_zero_keeps_the_order_of_the_retrieval(depth: int) -> None:
    scored = drawn(depth=depth)
    assert Blend(0.0).apply(scored)["items"].to_list() == scored.retrieved["items"].to_list()


def test_what_was_not_reranked_stays_behind_in_order_however_bad_the_rest() -> None:
    retrieved = ranking(r={"a": 5, "b": 4, "c": 3, "d": 2, "e": 1})
    blended = Blend(5.0).apply(Reranked(retrieved, ranking(r={"c": -100.0, "a": -900.0})))
    assert blended["items"].to_list() == [["c", "a", "b", "d", "e"]]


def test_rows_the_reranker_never_saw_keep_their_order_and_none_is_lost() -> None:
    retrieved = ranking(r={"a": 2, "b": 1}, s={"b": 2, "a": 1}, t={})
    blended = Blend(5.0).apply(Reranked(retrieved, ranking(r={"a": 0.0, "b": 9.0}, other={"a": 1.0})))
    assert check_ranking(blended, ["r", "s", "t"])["items"].to_list() == [["b", "a"], ["b", "a"], []]


@pytest.mark.parametrize("weight", [0.0, 0.1, 1 / 3, 1.0, 5.0, LARGEST])
def test_the_blend_is_a_ranking_of_the_same_candidates(weight: float) -> None:
    scored = drawn()
    scored = Reranked(scored.retrieved, scored.reranked[5:])
    blended = check_ranking(Blend(weight).apply(scored), scored.retrieved["id"].to_list())
    assert [sorted(row) for row in blended["items"]] == [sorted(row) for row in scored.retrieved["items"]]
    assert all(score < above for row in blended["scores"] for above, score in pairwise(row))


def find_loss(weight: float, scored: Reranked, true: pl.DataFrame) -> float:
    """−log of what p(candidate) ∝ exp(weight · score) / place gives the right ones, of rows where that can be asked."""
    right, retrieved = dict(true.rows()), dict(scored.retrieved.select("id", "items").rows())
    loss = 0.0
    for row, items, scores in scored.reranked.iter_rows():
        worth = {i: math.exp(weight * s) / (1 + retrieved[row].index(i)) for i, s in zip(items, scores, strict=True)}
        hits = sum(worth[item] for item in right[row] if item in worth)
        loss -= math.log(hits / sum(worth.values())) if hits else 0.0
    return loss


def draw_truth(scored: Reranked, weight: float, seed: int) -> pl.DataFrame:
    """Right candidates drawn with the probabilities of a blend."""
    rng, right = random.Random(seed), dict[str, str]()
    for row, items, scores in Blend(weight).apply(scored).iter_rows():
        reranked = scores[:5]  # the others stand behind them
        right[row] = rng.choices(items[:5], [math.exp(score) for score in reranked])[0]
    return truth(**right)


class Refusing:
    """A metric that must not be asked."""

    sign = 1

    def score(self, ranking: pl.DataFrame, true: pl.DataFrame) -> float:
        raise AssertionError("the metric was asked")


REFUSING: Any = Refusing()


@pytest.mark.parametrize("seed", range(2))
def test_no_weight_makes_the_right_candidates_likelier_than_the_fitted_one_whatever_the_metric(seed: int) -> None:
    scored = drawn(seed)
    rng = random.Random(seed)
    true = truth(**{row: rng.choice(items[:7]) for row, items in scored.retrieved.select("id", "items").iter_rows()})
    fitted = Blend().fit(scored, true, REFUSING)
    best = find_loss(fitted.weight, scored, true)
    assert all(best <= find_loss(n / 50, scored, true) + 1e-3 for n in range(int(LARGEST) * 50))
    assert Blend(12.0).fit(scored, true[::-1], REFUSING) == fitted, "wherever it starts"


@pytest.mark.parametrize("weight", [0.3, 1.0, 2.5])
def test_the_weight_that_drew_the_right_candidates_is_found(weight: float) -> None:
    parts = [drawn(seed) for seed in range(10)]
    scored = join_scored(
        [
            Reranked(*(one.with_columns(id=f"{seed}" + pl.col("id")) for one in (part.retrieved, part.reranked)))
            for seed, part in enumerate(parts)
        ]
    )
    fitted = Blend().fit(scored, draw_truth(scored, weight, 0), REFUSING)
    assert fitted.weight == pytest.approx(weight, rel=0.2)


def test_a_fit_worked_out_by_hand() -> None:
    """a is right once and b twice; b has the score 1 and place 2: exp(w) / 2 = 2."""
    ids = ["r", "s", "t"]
    scored = Reranked(
        make_ranking(ids, [["a", "b"]] * 3, [[2.0, 1.0]] * 3), make_ranking(ids, [["a", "b"]] * 3, [[0.0, 1.0]] * 3)
    )
    fitted = Blend().fit(scored, truth(r="b", s="a", t="b"), METRIC)
    assert fitted.weight == pytest.approx(math.log(4), abs=1e-3)


@pytest.mark.parametrize(("right", "low", "high"), [("a", 0.0, 1e-3), ("b", LARGEST - 1e-3, LARGEST)])
def test_a_useless_reranker_gets_no_weight_and_a_needed_one_all_of_it(right: str, low: float, high: float) -> None:
    scored = Reranked(ranking(s={"a": 2, "b": 1}), ranking(s={"b": 0.2, "a": 0.0}))
    fitted = Blend().fit(scored, truth(s=right), METRIC)
    assert low <= fitted.weight <= high
    assert fitted.apply(scored)["items"].to_list()[0][0] == right


def test_rows_that_say_nothing_of_the_weight_do_not_move_it() -> None:
    """Whose right candidate was not reranked, whose candidates are all right, that were not asked."""
    scored, more = drawn(), ranking(x={"a": 2, "b": 1}, y={"a": 2, "b": 1}, z={"a": 2, "b": 1})
    true = draw_truth(scored, 1.0, 0)
    extra = pl.DataFrame({"id": ["x", "y", "z"], "items": [["q"], ["b", "a"], ["b"]]})
    both = Reranked(pl.concat([scored.retrieved, more]), pl.concat([scored.reranked, more[:2]]))
    assert Blend().fit(both, pl.concat([true, extra]), METRIC) == Blend().fit(scored, true, METRIC)
    silent = Reranked(more, more[:2])
    assert Blend(0.7).fit(silent, extra, METRIC) == Blend(0.7), "as it was"
    assert Blend(0.7).fit(Reranked(more, more.clear()), extra, METRIC) == Blend(0.7)


# fitting across parts -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A decision that remembers what it was fitted on; `apply` names it for every row."""

    ids: tuple[str, ...] = ()
    right: tuple[str, ...] = ()
    fits: int = 0

    def fit(self, scored: Any, truth: pl.DataFrame, metric: Metric) -> Seen:
        known = dict(truth.rows())
        return Seen(tuple(list_ids(scored)), tuple(known[row][0] for row in list_ids(scored)), self.fits + 1)

    def apply(self, scored: Any) -> pl.DataFrame:
        ids = list_ids(scored)
        return make_ranking(ids, [sorted(self.ids)] * len(ids), [[0.0] * len(self.ids)] * len(ids))


@dataclass(frozen=True)
class Scored:
    """As a predict.py may have it: frames of their own columns and rows."""

    first: pl.DataFrame
    second: pl.DataFrame


def rows_of(count: int, size: int = 3) -> tuple[list[str], dict[str, str], pl.DataFrame]:
    """Ids, their groups of `size`, and their truth."""
    ids = [f"r{n}" for n in range(count)]
    return ids, {row: f"g{n // size}" for n, row in enumerate(ids)}, truth(**{row: f"right of {row}" for row in ids})


def as_frame(ids: list[str]) -> pl.DataFrame:
    return pl.DataFrame({"id": ids, "said": [len(row) for row in ids]})


def as_frames(ids: list[str]) -> Scored:
    """The second frame has two lines a row, in another order, and not of every row."""
    several = [row for row in reversed(ids[1:]) for _ in range(2)]
    return Scored(as_frame(ids), pl.DataFrame({"other": range(len(several)), "id": several}))


both_forms = pytest.mark.parametrize("form", [as_frame, as_frames])


@both_forms
@pytest.mark.parametrize("size", [1, 3, 7])
def test_no_row_helps_to_fit_its_own_decision_nor_does_its_group(form: Callable[..., Any], size: int) -> None:
    ids, groups, true = rows_of(140, size)
    decided, shipped, notes = cross_fit(Seen(), form(ids), true, groups, METRIC)
    ranking = check_ranking(decided.apply(form(ids)), ids)
    for row, fitted_on in ranking.select("id", "items").iter_rows():
        others = [other for other in ids if choose_part(groups[other]) != choose_part(groups[row])]
        assert fitted_on == sorted(others)
        assert groups[row] not in {groups[other] for other in fitted_on}
    assert shipped == Decided(Seen(tuple(ids), tuple(f"right of {row}" for row in ids), 1)) and not notes
    assert decided.value == shipped.value and [part.fits for part in decided.parts] == [1] * CROSS_FIT_PARTS
    assert len({choose_part(groups[row]) for row in ids}) > 1


def test_a_row_s_label_turned_around_leaves_its_own_answer_as_it_was() -> None:
    """The blend is fitted; the answers of a part do not move with the part's labels, those of others do."""
    rng = random.Random(1)
    ids = [f"r{n}" for n in range(60)]
    scored = Reranked(
        make_ranking(ids, [["a", "b"]] * 60, [[2.0, 1.0]] * 60),
        make_ranking(ids, [["a", "b"]] * 60, [[0.0, rng.gauss(0, 1)] for _ in ids]),
    )
    groups = {row: row for row in ids}
    turned = [row for row in ids if choose_part(row) == 2]
    answers, values = [], []
    for wrong in ([], turned):
        true = truth(**{row: "a" if row in wrong else "b" for row in ids})
        decided, shipped, _ = cross_fit(Blend(), scored, true, groups, METRIC)
        answers.append(dict(decided.apply(scored).select("id", "scores").iter_rows()))
        values.append((decided.parts, shipped.value))
    moved = {row for row in ids if answers[0][row] != answers[1][row]}
    assert moved and not moved & set(turned)
    assert values[0][0][2] == values[1][0][2] and values[0][1] != values[1][1]


def test_a_part_is_the_group_s_own_in_every_run_and_parts_are_alike_in_size() -> None:
    assert [choose_part(group) for group in ("a", "b", "c", "", "länger")] == [0, 1, 3, 0, 2]
    counts = [sum(choose_part(f"g{n}") == part for n in range(2000)) for part in range(CROSS_FIT_PARTS)]
    assert min(counts) > 320 and sum(counts) == 2000


def test_rows_that_come_later_do_not_move_the_parts_of_the_others() -> None:
    ids, groups, true = rows_of(140)
    few, many = (cross_fit(Seen(), as_frame(part), true, groups, METRIC)[0] for part in (ids[:90], ids))
    assert few.rows.items() <= many.rows.items()


@pytest.mark.parametrize("count", [MIN_GROUPS - 1, MIN_GROUPS])
def test_of_too_few_groups_nothing_is_fitted(count: int) -> None:
    ids, groups, true = rows_of(3 * count)
    decided, shipped, notes = cross_fit(Seen(), as_frame(ids), true, groups, METRIC)
    small = [p for p in range(CROSS_FIT_PARTS) if len({g for g in groups.values() if choose_part(g) != p}) < MIN_GROUPS]
    assert {p for p, part in enumerate(decided.parts) if part == Seen()} == set(small) and small
    assert (shipped.value == Seen()) == (count < MIN_GROUPS)
    where = [*(f"part {p + 1}" for p in small), *(["what ships"] if count < MIN_GROUPS else [])]
    assert notes == [f"{', '.join(where)}: fewer than 8 groups to fit on"]


def test_where_a_label_is_missing_nothing_is_fitted() -> None:
    ids, groups, _ = rows_of(90, size=1)
    (rare,) = {choose_part(groups["r5"])}
    true = truth(**{row: "x" if row == "r5" else "yz"[n % 2] for n, row in enumerate(ids)})
    decided, shipped, notes = cross_fit(Seen(), as_frame(ids), true, groups, METRIC, ["x", "y", "z"])
    assert [part.fits for part in decided.parts] == [int(part != rare) for part in range(CROSS_FIT_PARTS)]
    assert shipped.value.fits == 1 and notes == [f"part {rare + 1}: no row to fit on is 'x'"]


def test_a_label_that_no_row_has_at_all_is_not_missed() -> None:
    ids, groups, _ = rows_of(90, size=1)
    true = truth(**{row: "yz"[n % 2] for n, row in enumerate(ids)}, elsewhere="x")
    decided, shipped, notes = cross_fit(Seen(), as_frame(ids), true, groups, METRIC, ["x", "y", "z"])
    assert not notes and {part.fits for part in (*decided.parts, shipped.value)} == {1}


def test_what_a_predict_made_is_where_a_fit_begins_and_what_stands_without_one() -> None:
    ids, groups, true = rows_of(9)
    decided, shipped, _ = cross_fit(Seen(("made",), (), 5), as_frame(ids), true, groups, METRIC)
    assert shipped.value == Seen(("made",), (), 5) and set(decided.parts) == {shipped.value}
    assert decided.apply(as_frame(ids))["items"].to_list() == [["made"]] * 9


# applying -------------------------------------------------------------------------------------------------------


@both_forms
def test_rows_keep_their_order_and_those_without_a_part_have_the_decision_of_all(form: Callable[..., Any]) -> None:
    decided = Decided(Seen(("all",)), (Seen(("zero",)), Seen(("one",))), {"r1": 1, "r2": 0, "r3": 1})
    said = decided.apply(form(["r3", "new", "r2", "r1"]))
    assert said.select("id", "items").rows() == [("r3", ["one"]), ("new", ["all"]), ("r2", ["zero"]), ("r1", ["one"])]
    assert Decided(Seen(("all",))).apply(form(["r1"]))["items"].to_list() == [["all"]]


@both_forms
def test_no_rows_are_decided(form: Callable[..., Any]) -> None:
    """Of a fold that is replayed, the time may cut all."""
    for decided in (Decided(Seen()), Decided(Seen(), (Seen(),), {"r1": 0})):
        assert check_ranking(decided.apply(select_scored(form(["r1", "r2"]), [])), []).height == 0


def test_a_fold_takes_what_concerns_its_rows() -> None:
    decided = Decided(Seen(("all",)), (Seen(("zero",)), Seen(("one",))), {"r1": 1, "r2": 0, "r3": 1})
    assert decided.among(["r3", "new", "r2"]) == replace(decided, rows={"r3": 1, "r2": 0})


def test_rows_of_a_frame_and_of_frames_are_selected_in_their_order() -> None:
    ids = ["c", "a", "b"]
    assert select_scored(as_frame(ids), ["a", "c", "none"]).equals(as_frame(["c", "a"]))
    found = select_scored(as_frames(ids), ["b", "c"])
    assert isinstance(found, Scored) and found.first["id"].to_list() == ["c", "b"]
    assert found.second.rows() == [(0, "b"), (1, "b")], "the second frame has nothing of c"
    assert list_ids(found) == ["c", "b"]


def test_what_was_said_of_several_folds_is_joined() -> None:
    one, other = ["c", "a"], ["b", "d"]
    assert join_scored([as_frame(one), as_frame(other)]).equals(as_frame(one + other))
    found = join_scored([as_frames(one), as_frames(other)])
    assert isinstance(found, Scored) and found.first.equals(as_frame(one + other))
    assert found.second["id"].to_list() == ["a", "a", "d", "d"]
    assert join_scored([as_frame(one)]).equals(as_frame(one))


def test_several_lines_of_a_row_are_one_row() -> None:
    """As members say them."""
    said = pl.concat([as_frame(["b", "a"]), as_frame(["a", "b"]), as_frame(["c"])])
    assert list_ids(said) == ["b", "a", "c"]
    assert select_scored(said, ["a"]).height == 2


# in a file ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        *(Blend(0.0), Blend(1 / 3), Blend(2), Temperature(1.25), OutsideThreshold(0.95)),
        *(MemberBlend("rank", 20, (0.5, 0.25, 0.25)), Seen(("é", 'a"b'), ("x",), 3)),
    ],
)
def test_a_decision_comes_back_as_it_was_saved(tmp_path: Path, value: Any) -> None:
    for decided in (Decided(value), Decided(value, (value, value), {"r1": 1, "é": 0})):
        decided.save(tmp_path / "decision")
        assert load_decided(tmp_path / "decision", type(value)) == decided


def test_a_field_that_somebody_adds_to_a_decision_is_kept_by_its_fit() -> None:
    @dataclass(frozen=True)
    class Cut(Blend):
        length: int = 3

    @dataclass(frozen=True)
    class Named(Temperature):
        name: str = ""

    scored = drawn()
    rows = dict(scored.retrieved.select("id", "items").iter_rows())
    fitted = Cut(length=5).fit(scored, truth(**{row: items[1] for row, items in rows.items()}), METRIC)
    assert fitted.weight != Cut().weight and fitted == Cut(fitted.weight, 5)
    shares = ranking(a={"x": math.log(0.7), "y": math.log(0.3)}, b={"x": math.log(0.6), "y": math.log(0.4)})
    named = Named(name="n").fit(shares, truth(a="x", b="y"), log_loss(("x", "y")))
    assert named.value != 1 and named == Named(named.value, "n")


def test_a_saved_blend_decides_as_before(tmp_path: Path) -> None:
    scored = drawn()
    true = truth(**{row: items[2] for row, items in scored.retrieved.select("id", "items").iter_rows()})
    groups = {row: row for row in scored.retrieved["id"]}
    decided, _, _ = cross_fit(Blend(), scored, true, groups, mean_average_precision(3))
    decided.save(tmp_path)
    fewer = Reranked(scored.retrieved, top(scored.reranked, 3))
    assert load_decided(tmp_path, Blend).apply(fewer).equals(decided.apply(fewer))


def test_a_file_of_another_decision_is_refused(tmp_path: Path) -> None:
    Decided(Temperature(2.0)).save(tmp_path)
    with pytest.raises(ValueError, match="value: unknown key"):
        load_decided(tmp_path, Blend)


# the simplest rule ----------------------------------------------------------------------------------------------


def test_the_prior_of_a_fold_is_counted_without_it() -> None:
    """Fold 0 is p and r, both a; trained on b b b a: Laplace's shares are 2/6 and 4/6."""
    train = pl.DataFrame({"id": list("pqrstu"), "label": list("ababba")})
    fold, metric = pl.Series([0, -1, 0, -1, -1, -1]), log_loss(("a", "b"))

    def find_truth(rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select("id", items=pl.concat_list("label"), shares=pl.lit([1.0]))

    experiment: Any = SimpleNamespace(
        competition=SimpleNamespace(legal_items=lambda: ["a", "b"], truth=find_truth, metric=metric),
        train=train,
        fold=fold,
        folds=[0],
        rows_of=lambda k: train.filter(fold == k),
        score_of=lambda said: metric.score(said, find_truth(train)),
    )
    assert score_prior(experiment) == pytest.approx(-math.log(2 / 6))
