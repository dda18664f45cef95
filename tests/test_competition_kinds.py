"""Competitions whose items are no documents: texts, spans or nothing, and a probability for each label."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest

from kaggle_llm.competition.competition import Competition, CompetitionSettings
from kaggle_llm.competition.csv_table import NULL_WORDS
from kaggle_llm.competition.forms import LabelColumns
from kaggle_llm.competition.metrics import accuracy, log_loss
from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.competition.table import Table


class Texts(Competition):
    """A text for each row; rows of a thread belong together; "-" says nothing."""

    tables: ClassVar = {
        "train": Table("id", ("chat",), target="summary", group="thread"),
        "test": Table("id", ("chat",)),
    }
    nothing = "-"
    metric = accuracy()

    def cell(self, items: list[str]) -> str:
        return " ".join(items) or self.nothing

    def items_in(self, cell: str) -> list[str]:
        return [] if cell == self.nothing else cell.split()


class Votes(LabelColumns):
    labels: ClassVar[Mapping[str, str]] = {"a": "winner_a", "b": "winner_b", "tie": "winner_tie"}
    tables: ClassVar = {
        "train": Table("id", ("answer",), target="label", numbers=tuple(labels.values())),
        "test": Table("id", ("answer",)),
    }
    metric = log_loss(tuple(labels))


def write(folder: Path, **files: str) -> CompetitionSettings:
    for name, content in files.items():
        (folder / f"{name}.csv").write_text(content)
    return CompetitionSettings("any", str(folder))


@pytest.fixture
def texts(tmp_path: Path) -> Texts:
    train = "id,chat,summary,thread\nr1,hi,short,t1\nr2,ho,shorter,t1\n"
    return Texts(
        write(tmp_path, train=train, test="id,chat\ne1,x\ne2,y\n", sample_submission="id,summary\ne1,s\ne2,s\n")
    )


@pytest.fixture
def votes(tmp_path: Path) -> Votes:
    train = "id,answer,winner_a,winner_b,winner_tie\nr1,x,0,1,0\nr2,y,0.667,0,0.333\n"
    sample = "id,winner_a,winner_b,winner_tie\ne1,0.3,0.3,0.4\n"
    return Votes(write(tmp_path, train=train, test="id,answer\ne1,z\n", sample_submission=sample))


def test_a_group_is_read_with_the_training_rows_alone(texts: Texts) -> None:
    assert texts.table("train").columns == ["id", "chat", "summary", "thread"] and texts.group == "thread"
    assert texts.table("test").columns == ["id", "chat"]
    seen = texts.groups(texts.table("train").head(1), texts.table("train").tail(1))
    assert seen.to_list() == ["seen"], "another row of its thread was trained on"
    texts.check()


def test_any_text_is_a_legal_answer_and_nothing_has_a_cell(texts: Texts) -> None:
    ranking = make_ranking(["e1", "e2"], [["whatever"], []], [[0.0], []])
    submission = texts.submission(ranking)
    assert submission.rows() == [("e1", "whatever"), ("e2", "-")]
    assert texts.check_submission(submission) == []
    assert texts.ranking_of(submission)["items"].to_list() == [["whatever"], []]


def test_an_empty_cell_is_no_way_to_say_nothing(texts: Texts) -> None:
    wrong = pl.DataFrame({"id": ["e1", "e2"], "summary": ["x", None]})
    assert texts.check_submission(wrong) == ["row e2: empty label"]


def test_a_cell_that_pandas_reads_as_empty_is_a_problem(texts: Texts, tmp_path: Path) -> None:
    import pandas as pd
    from pandas._libs.parsers import STR_NA_VALUES

    assert {*NULL_WORDS} == {*STR_NA_VALUES} - {""}
    for word in [*sorted(NULL_WORDS), "none", "nil", "N.A.", "-"]:
        submission = pl.DataFrame({"id": ["e1", "e2"], "summary": ["x", word]})
        submission.write_csv(tmp_path / "submission.csv", quote_style="always")
        read = pd.read_csv(tmp_path / "submission.csv")["summary"]
        problem = f"row e2: {word!r} is an empty cell to pandas, and so to Kaggle: write another text"
        assert texts.check_submission(submission) == [problem] * int(read.isna().sum())


def test_a_label_that_the_competition_names_is_no_empty_cell(texts: Texts, monkeypatch: pytest.MonkeyPatch) -> None:
    submission = pl.DataFrame({"id": ["e1", "e2"], "summary": ["None", "NA"]})
    assert len(texts.check_submission(submission)) == 2
    monkeypatch.setattr(Texts, "nothing", "NA")
    monkeypatch.setattr(Texts, "legal_items", lambda self: ["None", "A"])
    assert texts.check_submission(submission) == []


def test_an_empty_answer_is_told_with_its_share(texts: Texts) -> None:
    submission = pl.DataFrame({"id": ["e1", "e2"], "summary": ["x", "-"]})
    assert texts.describe_empty(submission) == "1 of 2 rows (50%) are '-'"
    assert texts.describe_empty(submission.head(1)) == texts.describe_empty(submission.head(0)) == ""


def test_a_file_of_no_rows_is_a_problem_where_there_are_rows_to_find(texts: Texts) -> None:
    (texts.folder / "sample_submission.csv").write_text("id,summary\n")
    nothing = pl.DataFrame(schema={"id": pl.String(), "summary": pl.String()})
    assert texts.check_submission(nothing) == ["no row, though the test set has 2"]


def test_a_sample_of_other_rows_says_what_the_sample_says(votes: Votes) -> None:
    assert votes.sample_of(["n1", "n2"]).rows() == [("n1", "0.3", "0.3", "0.4"), ("n2", "0.3", "0.3", "0.4")]
    assert votes.sample_of([]).columns == votes.sample().columns


def test_a_sample_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    two = "id,start,end\ne1,1,2\n"
    texts = Texts(write(tmp_path, sample_submission=two))
    with pytest.raises(ValueError, match=r"columns \['id', 'start', 'end'\]; after the id one cell is expected: over"):
        texts.sample()
    votes = Votes(write(tmp_path, sample_submission="id,winner_b,winner_a,winner_tie\ne1,0.3,0.3,0.4\n"))
    with pytest.raises(ValueError, match=r"after the id \['winner_a', 'winner_b', 'winner_tie'\] is expected"):
        votes.sample()


def test_labels_come_from_the_shares_and_go_back_as_probabilities(votes: Votes) -> None:
    train = votes.table("train")
    assert train["label"].to_list() == ["b", "a"]
    truth = votes.truth(train)
    assert truth.rows() == [("r1", ["b"], [1.0]), ("r2", ["a", "tie"], [0.667, 0.333])]
    ranking = make_ranking(["e1"], [["tie", "a", "b"]], [[math.log(6), math.log(3), 0.0]])
    submission = votes.submission(ranking)
    assert [float(cell) for cell in submission.row(0)[1:]] == pytest.approx([0.3, 0.1, 0.6])
    assert votes.check_submission(submission) == []
    again = votes.ranking_of(submission)
    assert again["items"][0].to_list() == ["tie", "a", "b"]
    assert votes.metric.score(again, votes.truth(train.head(1)).with_columns(id=pl.lit("e1"))) == pytest.approx(
        -math.log(0.1)
    )


@pytest.mark.parametrize("cell", ["", "1.2", "-0.1", "nan", "a"])
def test_what_is_no_probability_is_named(votes: Votes, cell: str) -> None:
    wrong = pl.DataFrame({"id": ["e1"], "winner_a": [cell], "winner_b": ["0.5"], "winner_tie": ["0.5"]})
    assert votes.check_submission(wrong) == [f"row e1: {cell!r} is no probability"]


@pytest.mark.parametrize("shares", ["1,1,0", "0.5,0,0", "x,1,0", "-1,1,1", ",1,0"])
def test_shares_that_are_none_are_refused(tmp_path: Path, shares: str) -> None:
    train = f"id,answer,winner_a,winner_b,winner_tie\nr9,x,{shares}\n"
    settings = write(tmp_path, train=train, test="id,answer\n", sample_submission="id\n")
    with pytest.raises(ValueError, match=r"not shares that sum to 1, first .*r9"):
        Votes(settings).table("train")
