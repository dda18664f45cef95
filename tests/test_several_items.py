"""A competition whose rows have several right documents, or none: read, checked, scored, split and learned from."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest

from kaggle_llm.competition.competition import CompetitionSettings
from kaggle_llm.competition.folds import FoldSettings, split_rows
from kaggle_llm.competition.forms import SeveralItems
from kaggle_llm.competition.metrics import mean_average_precision, ndcg, recall
from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.competition.table import Table
from kaggle_llm.retrieval.negatives import NegativeSettings, draw_groups, mine_negatives

FILES = {
    "train": "id,query,right\nq1,red,d1 d2\nq2,blue,d3\nq3,none at all,\nq4,green,d1\n",
    "test": "id,query\nt1,white\n",
    "corpus": "id,title,text\nd1,One,first\nd2,,second\nd3,Three,\nd4,Four,fourth\n",
    "sample_submission": "id,right\nt1,d1 d2\n",
}
QRELS = "query-id,corpus-id\nq1,d1\nq1,d2\nq2,d3\nq4,d1\nq1,d2\n"


class InCells(SeveralItems):
    tables: ClassVar = {
        "train": Table("id", ("query",), target="right"),
        "test": Table("id", ("query",)),
        "corpus": Table("id", ("title", "text")),
    }
    documents = "corpus"
    cut = 5
    metric = mean_average_precision(5)


class InPairs(InCells):
    pairs = ("qrels", "query-id", "corpus-id")


def build(kind: type[SeveralItems], folder: Path, **changed: str) -> SeveralItems:
    for name, content in (FILES | changed).items():
        (folder / f"{name}.csv").write_text(content)
    return kind(CompetitionSettings("several"), folder)


@pytest.fixture(params=["cells", "pairs"])
def competition(request: pytest.FixtureRequest, tmp_path: Path) -> SeveralItems:
    if request.param == "cells":
        return build(InCells, tmp_path)
    return build(InPairs, tmp_path, train="id,query\nq1,red\nq2,blue\nq3,none at all\nq4,green\n", qrels=QRELS)


def test_all_right_items_of_a_row_are_read_from_its_cell_or_from_pairs(competition: SeveralItems) -> None:
    competition.check()
    train = competition.table("train")
    assert competition.truth(train).rows() == [("q1", ["d1", "d2"]), ("q2", ["d3"]), ("q3", []), ("q4", ["d1"])]
    assert competition.table("corpus")["title"].to_list() == ["One", "", "Three", "Four"], "a title may be empty"


def test_a_right_item_that_is_no_document_is_named(tmp_path: Path) -> None:
    broken = build(InCells, tmp_path, train="id,query,right\nq1,red,d1 d9\n")
    with pytest.raises(
        ValueError, match=r"1 row\(s\) whose right is not among the 4 of corpus\.csv, first 'q1' .*'d9'"
    ):
        broken.table("train")


def test_metrics_count_all_right_items_and_a_row_without_one_scores_nothing(competition: SeveralItems) -> None:
    truth = competition.truth(competition.table("train"))
    ids = truth["id"].to_list()
    ranking = make_ranking(ids, [["d1", "d4", "d2"]] * 4, [[3.0, 2.0, 1.0]] * 4)
    # q1: (1/1 + 2/3) / 2; q2: 0; q3: 0; q4: 1
    assert mean_average_precision(5).score(ranking, truth) == pytest.approx(((1 + 2 / 3) / 2 + 1) / 4)
    assert recall(2).score(ranking, truth) == pytest.approx((1 / 2 + 1) / 4)
    assert 0 < ndcg(5).score(ranking, truth) < 1


def test_a_row_is_seen_where_one_of_its_items_is_right_in_training(competition: SeveralItems) -> None:
    train = competition.table("train")
    ids = pl.col("id")
    found = competition.groups(train.filter(ids == "q1"), train.filter(ids != "q1"))
    assert found.to_list() == ["unseen", "none", "seen"]


def test_rows_are_split_and_every_right_item_is_learned(tmp_path: Path) -> None:
    cells = ["d1 d2", "d3", "", "d1", "d4 d2"]
    rows = "".join(f"q{n},text {n},{cells[n % 5]}\n" for n in range(25))
    competition = build(InCells, tmp_path, train=f"id,query,right\n{rows}")
    train = competition.table("train")
    assert set(split_rows(competition, train, FoldSettings()).value_counts()["count"]) == {5}
    truth = competition.truth(train)
    ranking = make_ranking(train["id"].to_list(), [["d1", "d2", "d3", "d4"]] * 25, [[4.0, 3.0, 2.0, 1.0]] * 25)
    right = dict(truth.iter_rows())
    groups = draw_groups(ranking, truth, 3, 4, seed=0)
    assert len(groups) == 20
    for group in groups:
        assert group.target == tuple(float(item in right[group.id]) for item in group.items)
    mined = mine_negatives(ranking, truth, NegativeSettings(per_query=1, margin=None), seed=0)
    assert len(mined) == sum(len(items) for items in right.values())
    assert all(not set(pair.negatives) & set(right[pair.id]) for pair in mined)
