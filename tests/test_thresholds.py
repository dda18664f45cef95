"""Thresholds: planted ones are found, none are better, and what cross-fitting says about their optimism."""

import math
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import cohen_kappa_score

from kaggle_llm.competition.metrics import accuracy, quadratic_kappa, quadratic_weighted_kappa
from kaggle_llm.competition.rankings import average_by_id, check_ranking, make_values
from kaggle_llm.decisions.thresholds import Thresholds, apply_thresholds, find_positions, fit_thresholds, round_levels
from kaggle_llm.inference.cross_fit import CROSS_FIT_PARTS, Decided, choose_part, cross_fit, load_decided


def noisy(count: int, k: int, seed: int, noise: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Levels and values around them that are skewed: squeezed to the middle and shifted up."""
    rng = np.random.default_rng(seed)
    levels = rng.integers(0, k, count)
    return 0.4 * (levels + noise * rng.normal(size=count)) + 1.7, levels


def kappa(values: np.ndarray, levels: np.ndarray, cuts: np.ndarray) -> float:
    return quadratic_kappa(apply_thresholds(values, cuts), levels)


def test_planted_thresholds_are_found() -> None:
    planted = np.array([-1.3, 0.2, 0.4, 2.5])
    values = np.random.default_rng(0).uniform(-3, 4, 5000)
    levels = np.digitize(values, planted)
    cuts = fit_thresholds(values, levels, 5)
    assert cuts == pytest.approx(planted, abs=0.01)
    assert apply_thresholds(values, cuts).tolist() == levels.tolist()


def test_no_thresholds_at_all_are_better() -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        values = rng.integers(0, 12, 14) / 4  # with equal values
        levels = np.clip(np.round(values + rng.normal(size=14)), 0, 3).astype(int)
        places = [-np.inf, *np.unique(values), np.inf]
        every = (kappa(values, levels, np.array(cuts)) for cuts in combinations_with_replacement(places, 3))
        assert kappa(values, levels, fit_thresholds(values, levels, 4)) == pytest.approx(max(every), abs=1e-12)


@pytest.mark.parametrize("k", [2, 3, 6])
@pytest.mark.parametrize("seed", range(5))
def test_they_beat_rounding_on_skewed_values_and_are_sorted(seed: int, k: int) -> None:
    values, levels = noisy(300, k, seed)
    cuts = fit_thresholds(values, levels, k)
    rounded = np.clip(np.round(values), 0, k - 1).astype(int)
    assert cuts.shape == (k - 1,) and cuts.tolist() == sorted(cuts)
    assert kappa(values, levels, cuts) > cohen_kappa_score(rounded, levels, weights="quadratic") + 0.01


def test_they_are_never_worse_than_rounding_on_their_own_rows() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        levels = np.array([0, 4, *rng.integers(0, 5, 20)])
        values = np.round(levels * rng.uniform(-0.5, 1) + rng.normal(size=22), 1)
        rounded = np.clip(np.round(values), 0, 4)
        assert kappa(values, levels, fit_thresholds(values, levels, 5)) >= quadratic_kappa(rounded, levels) - 1e-12


def test_the_order_of_the_rows_does_not_matter() -> None:
    values, levels = noisy(200, 4, 0)
    order = np.random.default_rng(1).permutation(200)
    assert fit_thresholds(values, levels, 4).tolist() == fit_thresholds(values[order], levels[order], 4).tolist()


def test_float32_neighbours_are_still_told_apart() -> None:
    low = np.float32(1.0)
    values = np.array([low, np.nextafter(low, np.float32(2))])
    assert apply_thresholds(values, fit_thresholds(values, np.array([0, 1]), 2)).tolist() == [0, 1]
    values = np.array([1.0, np.nextafter(1.0, 2)])
    assert apply_thresholds(values, fit_thresholds(values, np.array([0, 1]), 2)).tolist() == [0, 1]


def test_a_level_that_no_row_has_may_lie_anywhere() -> None:
    values = np.linspace(0, 1, 90)
    for absent in range(4):
        levels = np.repeat([level for level in range(4) if level != absent], 30)
        cuts = fit_thresholds(values, levels, 4)
        assert apply_thresholds(values, cuts).tolist() == levels.tolist()
        assert apply_thresholds(np.array([-9.0, 9.0]), cuts).tolist() == [levels[0], levels[-1]]


@pytest.mark.parametrize(
    ("values", "levels", "message"),
    [
        ([0.1, 0.2], [1, 1], r"all 2 rows have the level \[1\]"),
        ([], [], r"all 0 rows have the level \[\]"),
        ([0.1, np.nan], [0, 1], "1 of 2 values are NaN or infinite"),
        ([0.1, np.inf], [0, 1], "1 of 2 values are NaN or infinite"),
        ([0.1, 0.2], [0, 3], "whole numbers from 0 to 2"),
        ([0.1, 0.2], [0.0, 0.5], "whole numbers from 0 to 2"),
        ([0.1, 0.2], [0, 1, 2], "one level for each value"),
    ],
)
def test_what_cannot_be_fitted_is_refused(values: list[float], levels: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_thresholds(np.array(values), np.array(levels), 3)


def test_a_value_that_is_nan_gets_no_level() -> None:
    with pytest.raises(ValueError, match="1 of 2 values are NaN"):
        apply_thresholds(np.array([np.nan, 1.0]), np.array([0.5]))


def as_frames(values: np.ndarray, levels: np.ndarray) -> tuple[pl.DataFrame, pl.DataFrame, dict[str, str]]:
    """VALUES, the truth with levels as labels, and a group for each row."""
    ids = [f"r{n}" for n in range(len(values))]
    truth = pl.DataFrame({"id": ids, "items": [[str(level)] for level in levels.tolist()]})
    return make_values(ids, values[:, None]), truth, {row: f"group of {row}" for row in ids}


FOUR = ("0", "1", "2", "3")
KAPPA = quadratic_weighted_kappa(FOUR)


def levels_of(ranking: pl.DataFrame) -> list[int]:
    return [int(items[0]) for items in ranking["items"].to_list()]


def test_a_decision_of_thresholds_is_the_fitted_cuts_whatever_the_metric_is() -> None:
    values, levels = noisy(120, 4, 3)
    scored, truth, _ = as_frames(values, levels)
    fitted = round_levels(FOUR).fit(scored, truth[::-1], accuracy())
    assert fitted == Thresholds(FOUR, tuple(fit_thresholds(values, levels, 4).tolist()))
    assert KAPPA.score(fitted.apply(scored), truth) == pytest.approx(kappa(values, levels, np.array(fitted.cuts)))


def test_before_a_fit_a_value_is_rounded_to_the_nearest_level() -> None:
    values = np.array([-7.0, 0.4, 0.6, 1.4, 2.6, 9.0])
    assert levels_of(round_levels(FOUR).apply(as_frames(values, values)[0])) == [0, 0, 1, 1, 3, 3]


def test_cross_fitting_is_the_literal_loop_over_parts() -> None:
    values, levels = noisy(120, 4, 3)
    scored, truth, groups = as_frames(values, levels)
    part = np.array([choose_part(groups[row]) for row in scored["id"]])
    predicted = np.empty(120)
    for k in range(CROSS_FIT_PARTS):
        cuts = fit_thresholds(values[part != k], levels[part != k], 4)
        predicted[part == k] = [sum(value >= cut for cut in cuts) for value in values[part == k]]
    decided, shipped, notes = cross_fit(round_levels(FOUR), scored, truth, groups, KAPPA, FOUR)
    assert levels_of(decided.apply(scored)) == predicted.tolist() and not notes
    found = KAPPA.score(decided.apply(scored), truth)
    assert found == pytest.approx(cohen_kappa_score(predicted, levels, weights="quadratic"), abs=1e-12)
    assert shipped.value.cuts == tuple(fit_thresholds(values, levels, 4).tolist())


def test_on_noise_the_fitted_kappa_is_a_promise_that_cross_fitting_takes_back() -> None:
    fitted, honest = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        scored, truth, groups = as_frames(rng.normal(size=100), rng.integers(0, 4, 100))
        decided, shipped, _ = cross_fit(round_levels(FOUR), scored, truth, groups, KAPPA)
        fitted.append(KAPPA.score(shipped.apply(scored), truth))
        honest.append(KAPPA.score(decided.apply(scored), truth))
    assert np.mean(fitted) > 0.1
    assert abs(np.mean(honest)) < 0.08
    assert np.mean(fitted) - np.mean(honest) > 0.1


def test_where_all_rows_have_one_level_values_are_rounded() -> None:
    scored, truth, _ = as_frames(np.arange(4.0), np.ones(4, int))
    assert round_levels(FOUR).fit(scored, truth, KAPPA) == round_levels(FOUR)


def test_thresholds_turn_values_into_a_ranking_of_labels_and_survive_a_file(tmp_path: Path) -> None:
    thresholds = Thresholds(("1", "2", "3"), (0.1 + 0.2, float("inf")))
    Decided(thresholds).save(tmp_path)
    assert load_decided(tmp_path, Thresholds) == Decided(thresholds)
    values = make_values(["a", "b", "c"], [[0.3, 9.0], [0.4, 9.0], [-7.0, 9.0]])
    decided = check_ranking(thresholds.apply(values), ["a", "b", "c"])
    assert [items[0] for items in decided["items"].to_list()] == ["1", "2", "1"]
    assert check_ranking(thresholds.apply(values[:0]), []).height == 0


def test_members_that_disagree_are_averaged_to_the_level_between_them() -> None:
    thresholds = round_levels(FOUR)
    members = [
        thresholds.apply(make_values(["a", "b"], [[first], [second]])) for first, second in ((0, 3), (1, 3), (3, 0))
    ]
    assert members[0]["scores"][0].to_list() == [0.0, -1.0, -2.0, -3.0]
    mean = average_by_id(pl.concat(members))
    assert [items[0] for items in mean["items"].to_list()] == [FOUR[1], FOUR[3]]


def test_positions_run_from_cut_to_cut_and_round_to_the_level() -> None:
    inf = math.inf
    for cuts, values, expected in [
        ((0.0, 1.0, 5.0), [-0.5, 0.5, 4.0, 5.25, -9.0, 9.0], [0.0, 1.0, 2.25, 2.75, -0.5, 3.5]),
        ((0.0, 1.0, 5.0), [0.0, 1.0, np.nextafter(1.0, 0)], [0.5, 1.5, 1.5]),
        ((-inf, 2.0, inf), [1.5, 2.5], [1.0, 2.0]),  # the lowest and the highest level were not there
        ((-inf, inf, inf), [1.0, 7.0], [1.0, 1.5]),
    ]:
        found = find_positions(np.array(values), np.array(cuts))
        np.testing.assert_allclose(found, expected, atol=2e-6)
        assert np.round(found).tolist() == apply_thresholds(np.array(values), np.array(cuts)).tolist()


def test_whatever_the_values_and_cuts_the_first_label_is_the_level_s() -> None:
    """Equal, infinite, huge and tiny ones, values at a cut and next to it."""
    rng = np.random.default_rng(0)
    for size in (1.0, 1e-310, 1e17, 1.7e308):
        pool = np.array([*rng.uniform(-1, 1, 4) * size, 0.0, 1.0, -math.inf, math.inf])
        for _ in range(50):
            cuts = np.sort(rng.choice(pool, 3))
            values = np.concatenate([pool, cuts, np.nextafter(cuts, -math.inf)])
            ids = [str(n) for n in range(len(values))]
            decided = Thresholds(FOUR, tuple(cuts.tolist())).apply(make_values(ids, values[:, None].tolist()))
            found = [FOUR.index(items[0]) for items in check_ranking(decided, ids)["items"].to_list()]
            assert found == apply_thresholds(values, cuts).tolist(), cuts


def test_a_member_near_the_next_level_counts_for_it() -> None:
    """Level 1 by a hair, twice, and a sure level 3: the mean of the scores says 1, as the levels do, or 2."""
    thresholds = round_levels(FOUR)
    members = [thresholds.apply(make_values(["a"], [[value]])) for value in (1.45, 1.45, 3.0, 1.6)]
    assert [frame["items"][0][0] for frame in members] == [FOUR[1], FOUR[1], FOUR[3], FOUR[2]]
    assert average_by_id(pl.concat(members))["items"][0][0] == FOUR[2]


def test_a_row_without_a_value_gets_no_label() -> None:
    values = make_values(["a", "b"], [[1.0], []])
    with pytest.raises(ValueError, match="1 of 2 values are NaN: a level needs a number"):
        Thresholds(("x", "y"), (0.5,)).apply(values)


@pytest.mark.parametrize("cuts", [(1.0,), (2.0, 1.0), (1.0, 2.0, 3.0)])
def test_cuts_that_do_not_fit_the_labels_are_refused(cuts: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="one fewer than labels, ascending"):
        Thresholds(("1", "2", "3"), cuts)
