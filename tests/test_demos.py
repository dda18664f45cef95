"""All generated competitions: what each promises, whichever it is."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import polars as pl
import pytest

from kaggle_llm.competition.competition import (
    TEST,
    TRAIN,
    Competition,
    CompetitionSettings,
    load_competition,
)
from kaggle_llm.competition.csv_table import read_csv
from kaggle_llm.competition.forms import LabelColumns
from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm_demo.__main__ import DEMOS

ROWS, HIDDEN = 120, 12


@pytest.fixture(scope="module", params=DEMOS)
def demo(request: pytest.FixtureRequest) -> ModuleType:
    return importlib.import_module(f"kaggle_llm_demo.{request.param}")


@pytest.fixture(scope="module")
def folder(demo: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp(demo.NAME)
    demo.build_competition(root / "input", root / "hidden", 0, ROWS, HIDDEN)
    return root


@pytest.fixture(scope="module")
def competition(demo: ModuleType, folder: Path) -> Competition:
    return load_competition(CompetitionSettings(demo.NAME), folder / "input")


@pytest.fixture(scope="module")
def solution(competition: Competition, folder: Path) -> pl.DataFrame:
    return read_csv(folder / "hidden" / "solution.csv").rename({competition.tables[TRAIN].id: "id"})


def answer_rightly(competition: Competition, solution: pl.DataFrame) -> pl.DataFrame:
    """What knows everything: the right items; of labels their shares."""
    truth = competition.truth(solution)
    shares = truth["shares"].to_list() if isinstance(competition, LabelColumns) else [[] for _ in range(truth.height)]
    if not isinstance(competition, LabelColumns):
        items = [row if competition.nothing or competition.documents else row[:1] for row in truth["items"].to_list()]
        return make_ranking(truth["id"].to_list(), items, [[-float(n) for n in range(len(row))] for row in items])
    import math

    labels = list(competition.labels)
    known = [dict(zip(items, own, strict=True)) for items, own in zip(truth["items"].to_list(), shares, strict=True)]
    scores = [[math.log(max(own.get(label, 0.0), 1e-9)) for label in labels] for own in known]
    return make_ranking(truth["id"].to_list(), [labels] * truth.height, scores)


def test_the_files_pass_the_checks_of_the_competition(competition: Competition) -> None:
    competition.check()
    assert competition.table(TRAIN).height == ROWS and competition.table(TEST).height == 3
    assert competition.check_submission(competition.sample()) == []


def test_the_same_seed_gives_the_same_files_and_another_one_others(
    demo: ModuleType, folder: Path, tmp_path: Path
) -> None:
    for seed in (0, 1):
        demo.build_competition(tmp_path / f"input{seed}", tmp_path / f"hidden{seed}", seed, ROWS, HIDDEN)
    train = (folder / "input" / "train.csv").read_bytes()
    assert (tmp_path / "input0" / "train.csv").read_bytes() == train != (tmp_path / "input1" / "train.csv").read_bytes()


def test_rows_differ_and_no_group_is_in_train_and_in_the_hidden_test(
    competition: Competition, solution: pl.DataFrame, folder: Path
) -> None:
    train, hidden = competition.table(TRAIN), read_csv(folder / "hidden" / "test.csv")
    texts = list(competition.tables[TEST].texts)
    assert train.select(texts).is_duplicated().sum() <= 0.05 * ROWS
    shared = hidden.join(train, on=texts, how="semi", nulls_equal=True).height
    assert shared <= 0.1 * HIDDEN, "the hidden test is no copy of train"
    group = competition.tables[TRAIN].group
    assert set(hidden.columns) & {competition.target, group} <= set(texts), "test.csv tells no answer"


def test_who_knows_the_solution_scores_best(competition: Competition, solution: pl.DataFrame, folder: Path) -> None:
    hidden = load_competition(competition.settings, folder / "input")
    ranking = answer_rightly(competition, solution)
    submission = hidden.submission(ranking)
    truth, metric = competition.truth(solution), competition.metric
    best = metric.score(hidden.ranking_of(submission), truth)
    guess = metric.score(hidden.ranking_of(hidden.sample_of(solution["id"].to_list())), truth)
    assert best > guess if metric.greater_is_better else best < guess
    if metric.greater_is_better:
        assert best == pytest.approx(1.0)
