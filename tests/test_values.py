"""VALUES: one or several numbers a row, checked, averaged, compared within a tolerance, submitted as numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pytest

from kaggle_llm.competition.competition import CompetitionSettings
from kaggle_llm.competition.forms import NumberColumns
from kaggle_llm.competition.metrics import quadratic_weighted_kappa, root_mean_squared_error
from kaggle_llm.competition.rankings import average_by_id, check_answer, make_values, most_uncertain_first
from kaggle_llm.competition.table import Table
from kaggle_llm.decisions.member_blend import MemberBlend
from kaggle_llm.decisions.thresholds import round_levels
from kaggle_llm.inference.cross_fit import cross_fit
from kaggle_llm.kaggle.push import share_alike
from kaggle_llm.rehearsal.checks import compare_rankings, largest_difference


class Essays(NumberColumns):
    tables: ClassVar = {
        "train": Table("id", ("text",), numbers=("content", "wording")),
        "test": Table("id", ("text",)),
    }
    metric = root_mean_squared_error()


@pytest.fixture
def essays(tmp_path: Path) -> Essays:
    (tmp_path / "train.csv").write_text("id,text,content,wording\nr1,a,1.5,-2\nr2,b,0,1e-3\n")
    (tmp_path / "test.csv").write_text("id,text\ne1,x\ne2,y\n")
    (tmp_path / "sample_submission.csv").write_text("id,content,wording\ne1,0,0\ne2,0,0\n")
    return Essays(CompetitionSettings("any", str(tmp_path)))


def values(**rows: list[float]) -> pl.DataFrame:
    return make_values(list(rows), rows.values())


def test_what_was_learned_from_is_read_and_what_is_answered_is_written_to_the_last_digit(essays: Essays) -> None:
    essays.check()
    assert essays.truth(essays.table("train")).rows() == [("r1", [1.5, -2.0]), ("r2", [0.0, 1e-3])]
    said = values(e1=[0.1 + 0.2, -1e-17], e2=[2.0, 3.0])
    submission = essays.submission(said)
    assert submission.columns == ["id", "content", "wording"] and essays.check_submission(submission) == []
    assert essays.ranking_of(submission).equals(said)


@pytest.mark.parametrize("cell", ["", "x", "nan", "inf"])
def test_a_cell_that_is_no_number_is_named(essays: Essays, cell: str) -> None:
    wrong = pl.DataFrame({"id": ["e1", "e2"], "content": ["1", cell], "wording": ["1", "2"]})
    assert essays.check_submission(wrong) == [f"row e2: {cell!r} is no finite number"]


def test_the_error_is_the_mean_over_targets_of_each_ones_own() -> None:
    found, truth = values(a=[1.0, 0.0], b=[3.0, 4.0]), values(b=[3.0, 0.0], a=[0.0, 0.0], c=[9.0, 9.0])
    assert root_mean_squared_error().score(found, truth) == pytest.approx((math.sqrt(1 / 2) + math.sqrt(16 / 2)) / 2)
    with pytest.raises(ValueError, match="rows have 1 values, the truth has 2"):
        root_mean_squared_error().score(values(a=[1.0]), truth)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (values(a=[1.0], b=[math.nan]), "a value is no finite number in 1 row"),
        (values(a=[1.0], b=[1.0, 2.0]), "rows have different numbers of values"),
        (values(a=[1.0]), r"2 rows asked, 1 rows ranked: lost 1 \(first \['b'\]\)"),
        (values(b=[1.0], a=[1.0]), "same ids in another order"),
    ],
)
def test_what_is_wrong_with_an_answer_is_said(answer: pl.DataFrame, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        check_answer(answer, ["a", "b"])


def test_a_row_is_the_same_row_though_its_last_digit_moves() -> None:
    """As an item's text, 2.0626924 and 2.0626925 were two answers."""
    one, other = values(a=[2.0626924], b=[30000.0]), values(a=[2.0626925], b=[30000.1])
    assert compare_rankings(one, other) == [] and largest_difference(one, other) < 1e-5
    assert compare_rankings(one, values(a=[2.07], b=[30000.0])) == ["row a: a score differs by 3.5e-03"]
    assert share_alike(one, other) == 1.0 and share_alike(one, values(a=[9.0], b=[30000.0])) == 0.5


def test_members_are_averaged_by_their_weights_and_those_that_did_not_answer_a_row_fall_away() -> None:
    first, second = values(a=[1.0, 2.0], b=[5.0, 5.0]), values(a=[3.0, 6.0])
    said = pl.concat([first.with_columns(member=0), second.with_columns(member=1)])
    assert average_by_id(said.drop("member")).rows() == [("a", [2.0, 4.0]), ("b", [5.0, 5.0])]
    assert MemberBlend("log", 5, (0.75, 0.25)).apply(said).rows() == [("a", [1.5, 3.0]), ("b", [5.0, 5.0])]
    assert most_uncertain_first(first) == ["a", "b"], "values do not say how sure they are"


def test_levels_are_cut_as_a_decision_by_rows_that_it_does_not_score() -> None:
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 4, 200)
    ids = [f"r{n}" for n in range(200)]
    found = make_values(
        ids, [[0.3 * level + 1 + 0.02 * noise] for level, noise in zip(levels, rng.normal(size=200), strict=True)]
    )
    truth = pl.DataFrame({"id": ids, "items": [[str(level)] for level in levels]})
    names = [str(level) for level in range(4)]
    neutral, metric = round_levels(names), quadratic_weighted_kappa(names)
    decided, shipped, notes = cross_fit(neutral, found, truth, {i: i for i in ids}, metric, names)
    assert notes == [] and metric.score(neutral.apply(found), truth) < 0.7
    assert metric.score(decided.apply(found), truth) > 0.99 and metric.score(shipped.apply(found), truth) > 0.99
