"""A competition's tables and submissions: what is wrong in a file is found, named and refused."""

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from kaggle_llm.competition.competition import Competition, CompetitionSettings, load_competition
from kaggle_llm.competition.rankings import check_ranking, make_ranking

TEXTS = "id,question,correct_answer,wrong_answer"
FILES = {
    "train": f"{TEXTS},misconception_id\ntr1,2+2,4,5\u202f½,M1\ntr2,3+3,6,7,M2\ntr3,4+4,8,9,M1\n",
    "test": f"{TEXTS}\nte1,5+5,10,11\nte2,6+6,12,13\n",
    "misconceptions": 'misconception_id,text\nM1,one more\nM2,"two, more"\nM3,three\n',
    "sample_submission": "id,misconception_id\nte1,M1 M2\nte2,M1 M2\n",
}
Build = Callable[..., Competition]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """The competition with some files replaced; None leaves a file out."""

    def make(**changed: str | bytes | None) -> Competition:
        for name, content in (FILES | changed).items():
            if content is not None:
                (tmp_path / f"{name}.csv").write_bytes(content.encode() if isinstance(content, str) else content)
        return load_competition(CompetitionSettings("demo-misconceptions"), tmp_path)

    return make


def two_rows(first: str, second: str) -> pl.DataFrame:
    """A ranking of the test rows, one misconception a word."""
    rows = [first.split(), second.split()]
    return make_ranking(["te1", "te2"], rows, [[-float(i) for i in range(len(row))] for row in rows])


def test_tables_are_read_as_text_with_their_id_column_named_id(build: Build) -> None:
    competition = build()
    competition.check()
    train, documents = competition.table("train"), competition.table("misconceptions")
    assert train.columns == [*TEXTS.split(","), "misconception_id"] and set(train.dtypes) == {pl.String()}
    assert train.row(0) == ("tr1", "2+2", "4", "5\u202f½", "M1")
    assert documents.rows() == [("M1", "one more"), ("M2", "two, more"), ("M3", "three")]
    assert documents.columns == ["id", "text"]


def test_columns_that_are_not_asked_for_are_left_out(build: Build) -> None:
    assert build(misconceptions="x,text,misconception_id\n1,one,M1\n").table("misconceptions").rows() == [("M1", "one")]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("train", f"{TEXTS}\ntr1,a,b,c\n", r"train\.csv: missing column\(s\) \['misconception_id'\]; the file has"),
        ("train", FILES["train"] + "tr2,a,b,c,M1\n", r"train\.csv: 1 id\(s\) occur more than once, first \['tr2'\]"),
        ("train", FILES["train"] + ",a,b,c,M1\n", r"train\.csv: 1 row\(s\) without an id"),
        ("train", FILES["train"] + "tr9,a,,c,M1\n", r"correct_answer is null in 1 row\(s\), first \['tr9'\]"),
        ("train", FILES["train"] + 'tr9,"",b,c,M1\n', r"question is null in 1 row\(s\), first \['tr9'\]"),
        ("train", FILES["train"] + "tr9,a,b,c,\n", r"misconception_id is null in 1 row\(s\), first \['tr9'\]"),
        ("train", FILES["train"] + "tr9,a,b,c,M7\n", r"not among the 3 of misconceptions\.csv, first 'tr9' with 'M7'"),
        ("train", FILES["train"] + "tr9,a,b,c,M1,d\n", r"train\.csv is no CSV table"),
        ("train", "", r"train\.csv is no CSV table"),
        ("train", f'{TEXTS}\n"tr1', r"train\.csv is no CSV table"),
        (
            "train",
            FILES["train"].encode() + b"tr9,a,b,\xe9,M1\n",
            r"train\.csv: line 5 has a byte 0xe9 that is not UTF-8",
        ),
        ("test", f"{TEXTS}\nte1,a,b,c\nte1,a,b,c\n", r"test\.csv: 1 id\(s\) occur more than once"),
        ("test", f"{TEXTS}\n,a,b,c\n", r"test\.csv: 1 row\(s\) without an id"),
    ],
)
def test_a_broken_table_is_refused_with_its_problem(
    build: Build, name: str, content: str | bytes, problem: str
) -> None:
    competition = build(**{name: content})
    for refuse in (lambda: competition.table(name), competition.check):
        with pytest.raises(ValueError, match=problem):
            refuse()


def test_an_empty_text_in_the_test_set_is_read_as_nothing_with_a_message(
    build: Build, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = build(test=f"{TEXTS}\nte1,,10,11\nte2,,12,13\n").table("test")
    assert rows["question"].to_list() == ["", ""]
    message = capsys.readouterr().err
    assert message.startswith("test.csv") and "{'question': 2}" in message


def test_an_empty_document_is_read_as_nothing_with_a_message(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    competition = build(misconceptions="misconception_id,text\nM1,one\nM2,\n")
    assert competition.table("misconceptions").rows() == [("M1", "one"), ("M2", "")]
    assert capsys.readouterr().err.startswith("misconceptions.csv: empty texts")


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_table_without_rows_is_refused_where_we_train_but_read_where_we_predict(build: Build, name: str) -> None:
    competition = build(**{name: FILES[name].splitlines()[0] + "\n"})
    assert competition.table(name).height == 0
    with pytest.raises(ValueError, match=rf"{name}\.csv in .* has no rows"):
        competition.check()


def test_what_is_missing_is_named(build: Build, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"sample_submission\.csv is missing"):
        build(sample_submission=None).check()
    with pytest.raises(KeyError, match="no table 'tset' in demo-misconceptions: there are train, test"):
        build().table("tset")
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist.*fetch demo-misconceptions"):
        load_competition(CompetitionSettings("demo-misconceptions"), tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"'unheard-of'.*unheard_of\.py \(there are: .*demo-misconceptions"):
        load_competition(CompetitionSettings("unheard-of"), tmp_path)


def test_prediction_sees_no_target_and_rehearsals_see_the_columns_of_the_test_set(build: Build) -> None:
    competition = build(test="wrong_answer,question,correct_answer,id\n")
    assert competition.unlabelled(competition.table("train")).columns == TEXTS.split(",")
    as_test = competition.as_test(["tr3", "tr1"])
    assert as_test.file == "test.csv" and not as_test.others
    assert as_test.rows.columns == ["wrong_answer", "question", "correct_answer", "id"]
    assert as_test.rows.rows() == [("5\u202f½", "2+2", "4", "tr1"), ("9", "4+4", "8", "tr3")]


def test_the_truth_is_the_list_of_right_items(build: Build) -> None:
    truth = (competition := build()).truth(competition.table("train"))
    assert truth.columns == ["id", "items"]
    assert truth.rows() == [("tr1", ["M1"]), ("tr2", ["M2"]), ("tr3", ["M1"])]


def test_groups_tell_whether_training_saw_the_target(build: Build) -> None:
    train = (competition := build()).table("train")
    assert competition.groups(train[:1], train).to_list() == ["seen", "unseen", "seen"]
    assert competition.groups(train[:0], train).to_list() == ["unseen"] * 3


def test_a_submission_has_the_columns_of_the_sample_and_a_cell_a_row(build: Build) -> None:
    competition = build(sample_submission="row,label\nte1,M1\nte2,M1\n")
    submission = competition.submission(two_rows("M3 M1", "M2"))
    assert submission.equals(pl.DataFrame({"row": ["te1", "te2"], "label": ["M3 M1", "M2"]}))
    assert competition.check_submission(submission) == []
    many = make_ranking(["te1"], [[f"M{i}" for i in range(30)]], [[-i for i in range(30)]])
    assert competition.submission(many)["label"].to_list() == [" ".join(f"M{i}" for i in range(25))]


def test_a_row_without_items_is_named(build: Build) -> None:
    with pytest.raises(ValueError, match=r"1 row\(s\) have no items, first \['te2'\]"):
        build().submission(two_rows("M3", ""))


def test_the_ranking_of_a_submission_is_what_was_submitted(build: Build) -> None:
    competition, ranking = build(), two_rows("M3 M1 M2", "M2")
    read = check_ranking(competition.ranking_of(competition.submission(ranking)), ["te1", "te2"])
    assert read.equals(ranking)


@pytest.mark.parametrize(
    ("cells", "problems"),
    [
        ("te1:M1 M2,te2:M3", []),
        ("te2:M1,te1:M1", ["the ids are in another order than the sample's"]),
        ("te1:M1", ["1 rows, the sample has 2", "1 id(s) of the sample are missing, first ['te2']"]),
        ("te1:M1,te2:M1,te3:M1", ["3 rows, the sample has 2", "1 id(s) are not in the sample, first ['te3']"]),
        ("te1:M1,te1:M1", ["1 duplicate id(s)", "1 id(s) of the sample are missing, first ['te2']"]),
        ("te1:,te2: ", ["row te1: empty label", "row te2: empty label"]),
        ("te1:M1 M7,te2:M1 M2 M1", ["row te1: unknown label 'M7'", "row te2: a label occurs twice"]),
    ],
)
def test_every_problem_of_a_submission_is_listed(build: Build, cells: str, problems: list[str]) -> None:
    rows = [[word or None for word in row.split(":")] for row in cells.split(",")]  # as a CSV is read: empty is null
    submission = pl.DataFrame(rows, schema=["id", "misconception_id"], orient="row")
    assert build().check_submission(submission) == problems


@pytest.mark.parametrize("columns", [["misconception_id", "id"], ["id"], ["id", "misconception_id", "more"]])
def test_a_submission_with_other_columns_is_refused(build: Build, columns: list[str]) -> None:
    wrong = pl.DataFrame({column: ["te1", "te2"] for column in columns})
    problem = f"columns {columns}, the sample has ['id', 'misconception_id']"
    assert build().check_submission(wrong) == [problem]


@pytest.mark.parametrize("hours", [0.0, 1 / 6, -1.0, float("nan")])
def test_a_time_limit_that_leaves_the_prediction_no_time_is_refused(hours: float) -> None:
    with pytest.raises(ValueError, match=r"competition\.hours = .*: 10 minutes of it are kept free"):
        CompetitionSettings("any", hours=hours)
    assert CompetitionSettings("any", hours=0.2).hours == 0.2 and CompetitionSettings("any").hours == 9
