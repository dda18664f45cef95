"""Tables in every format and shape that Kaggle gives: read alike, staged in their own files, ids of their own kind."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest
from miniatures import write_commonlit, write_eedi, write_pii, write_wsdm

from kaggle_llm.base import paths
from kaggle_llm.competition.competition import TEST, TRAIN, Competition, CompetitionSettings
from kaggle_llm.competition.data_files import ENDINGS, as_text, encode_file, find_file, read_file, strip_zeros
from kaggle_llm.competition.forms import NumberColumns, OneLabel, RankedItems, RankedLabels
from kaggle_llm.competition.metrics import (
    accuracy,
    bootstrap_interval,
    mean_average_precision,
    root_mean_squared_error,
    token_f_beta,
)
from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.competition.span_forms import TOKENS, TokenSpans
from kaggle_llm.competition.table import Table, Wide, join_items, shape_rows
from kaggle_llm.rehearsal import stage
from kaggle_llm.rehearsal.hostile import make_hostile_test
from kaggle_llm.rehearsal.stage import hidden_test, stage_competition

TYPED = pl.DataFrame({"id": [7, 12], "text": ["a,b\n", "„é“"], "done": [True, False], "words": [["x", "y"], []]})
TEXTS = ("ConstructName", "QuestionText", "AnswerText", "right_AnswerText")
WIDE = Wide(
    "QuestionId",
    ("A", "B", "C", "D"),
    {"AnswerText": "Answer{}Text", "MisconceptionId": "Misconception{}Id"},
    right="CorrectAnswer",
)
PROMPT = ("prompt_question", "prompt_text")


class Eedi(RankedItems):
    tables: ClassVar = {
        TRAIN: Table("QuestionId_Answer", TEXTS, target="MisconceptionId", group="QuestionId", wide=WIDE),
        TEST: Table("QuestionId_Answer", TEXTS, wide=WIDE),
        "mistakes": Table("MisconceptionId", ("MisconceptionName",), file="misconception_mapping.csv"),
    }
    documents, cut, metric = "mistakes", 25, mean_average_precision(25)


class CommonLit(NumberColumns):
    tables: ClassVar = {
        TRAIN: Table(
            "student_id",
            ("text", *PROMPT),
            group="prompt_id",
            numbers=("content", "wording"),
            file="summaries_train.csv",
            joined={"prompts_train.csv": "prompt_id"},
        ),
        TEST: Table(
            "student_id", ("text", *PROMPT), file="summaries_test.csv", joined={"prompts_test.csv": "prompt_id"}
        ),
    }
    metric = root_mean_squared_error()


class Pii(TokenSpans):
    tables: ClassVar = {
        TRAIN: Table("document", ("full_text",), target="spans", kept=TOKENS),
        TEST: Table("document", ("full_text",), kept=TOKENS),
    }
    metric = token_f_beta(5)


class Wsdm(OneLabel):
    tables: ClassVar = {
        TRAIN: Table("id", ("prompt", "response_a", "response_b"), target="winner"),
        TEST: Table("id", ("prompt", "response_a", "response_b")),
    }
    labels, metric = ("model_a", "model_b"), accuracy()


KINDS = {Eedi: write_eedi, CommonLit: write_commonlit, Pii: write_pii, Wsdm: write_wsdm}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    return tmp_path


def make(kind: type[Competition], root: Path, monkeypatch: pytest.MonkeyPatch) -> Competition:
    """The competition on its miniature, also for code that loads it by its name."""
    folder = root / "input" / "made"
    folder.mkdir(parents=True)
    KINDS[kind](folder, random.Random(0))
    monkeypatch.setattr(stage, "load_competition", lambda settings, folder=None: kind(settings, folder))
    return kind(CompetitionSettings("made"))


@pytest.mark.parametrize("ending", [ending for ending in ENDINGS if "csv" not in ending])
def test_a_typed_file_is_read_as_it_was_written(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"train{ending}").write_bytes(encode_file(TYPED, f"train{ending}"))
    assert read_file(find_file(tmp_path, "train")).equals(TYPED)
    text = as_text(TYPED)
    assert text["id"].to_list() == ["7", "12"] and text["done"].to_list() == ["True", "False"]
    assert text["words"].to_list() == [["x", "y"], []], "lists stay lists"


def test_a_zipped_csv_is_read_and_written(tmp_path: Path) -> None:
    frame = TYPED.select(pl.col("id").cast(pl.String), "text")
    (tmp_path / "train.csv.zip").write_bytes(encode_file(frame, "train.csv.zip"))
    assert read_file(find_file(tmp_path, "train")).equals(frame)


def test_what_cannot_be_a_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"train\.csv is missing in .*nor is there \.parquet, \.json, \.jsonl"):
        find_file(tmp_path, "train")
    (tmp_path / "train.json").write_text('{"id": {"0": 1}}')
    with pytest.raises(ValueError, match=r"train\.json is no JSON table: a list of objects is expected"):
        read_file(tmp_path / "train.json")
    (tmp_path / "train.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match=r"train\.parquet is no parquet table"):
        read_file(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match=r"has train\.parquet and train\.json: remove one, or say which in"):
        find_file(tmp_path, "train")


def test_whole_numbers_lose_the_zeros_that_pandas_adds_beside_gaps() -> None:
    assert strip_zeros(pl.Series(["1672.0", None, "3.0"])).to_list() == ["1672", None, "3"]
    for untouched in (["1672.0", "1.5"], ["v1.0", "2.0"], ["7", "12"]):
        assert strip_zeros(pl.Series(untouched)).to_list() == untouched


def test_lists_become_texts() -> None:
    cells = pl.Series("turns", ['["hello", null, "bye"]', "[no list", "plain", None])
    assert join_items(cells).to_list() == ["hello\n\n\n\nbye", "[no list", "plain", None]
    assert join_items(pl.Series("turns", [["a", "b"], None])).to_list() == ["a\n\nb", None]


def test_a_wide_row_becomes_one_for_each_wrong_answer(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    competition = make(Eedi, root, monkeypatch)
    competition.check()
    raw = competition.raw(TEST)
    asked = competition.table(TEST)
    assert asked["id"].to_list() == competition.sample()["QuestionId_Answer"].to_list(), "the right answer is not asked"
    for row in asked.iter_rows(named=True):
        question, letter = row["id"].split("_")
        (source,) = raw.filter(pl.col("QuestionId") == question).iter_rows(named=True)
        assert row["AnswerText"] == source[f"Answer{letter}Text"]
        assert row["right_AnswerText"] == source[f"Answer{source['CorrectAnswer']}Text"]
    train, wide = competition.table(TRAIN), competition.raw(TRAIN)
    labelled = sum(wide[f"Misconception{letter}Id"].drop_nulls().len() for letter in "ABCD")
    assert train.height == labelled and not train["MisconceptionId"].str.contains(".", literal=True).any()


def test_training_rows_are_staged_in_the_layout_of_the_test_set(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    competition = make(Eedi, root, monkeypatch)
    train = competition.table(TRAIN)
    staged = competition.as_test(train["id"].head(5).to_list())
    assert staged.rows.columns == competition.raw(TEST).columns, "no target is staged"
    seen = stage_competition(competition.settings, staged.encode(), root / "mount").table(TEST)
    assert set(train["id"].head(5)) <= set(seen["id"])


def test_a_second_table_is_joined_and_staged(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    competition = make(CommonLit, root, monkeypatch)
    competition.check()
    prompts = dict(read_file(competition.folder / "prompts_test.csv").select("prompt_id", "prompt_text").iter_rows())
    keys = competition.raw(TEST)["prompt_id"].to_list()
    assert competition.table(TEST)["prompt_text"].to_list() == [prompts[key] for key in keys]
    test, truth, origin = hidden_test(competition.settings, 7)
    assert "rows of the training table" in origin and truth.height == test.rows.height == 7
    staged = stage_competition(competition.settings, test.encode(), root / "mount")
    assert staged.sample()["student_id"].to_list() == test.rows["student_id"].to_list()
    expected = competition.table(TRAIN).filter(pl.col("id").is_in(test.rows["student_id"].to_list()))
    assert sorted(staged.table(TEST)["prompt_text"]) == sorted(expected["prompt_text"])


def test_a_joined_file_adds_only_columns_that_the_rows_lack() -> None:
    """As NBME has them: notes and features both say the case, as the rows do."""
    rows = pl.DataFrame({"id": ["a", "b"], "case": ["0", "1"], "note": ["7", "8"], "feature": ["5", "5"]})
    files = {
        "notes.csv": pl.DataFrame({"note": ["8", "7"], "case": ["1", "0"], "words": ["long", "short"]}),
        "features.csv": pl.DataFrame({"case": ["9"], "feature": ["5"], "name": ["pain"]}),
    }
    table = Table("id", (), joined={"notes.csv": "note", "features.csv": "feature"})
    shaped = shape_rows(rows, table, files.__getitem__)
    assert shaped.columns == [*rows.columns, "words", "name"]
    assert shaped["case"].to_list() == ["0", "1"] and shaped["words"].to_list() == ["short", "long"]


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_drawn_and_hostile_ones_are_read_in_every_format(
    kind: type[Competition], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    competition = make(kind, root, monkeypatch)
    rows = competition.raw(TRAIN).height + 5
    test, truth, _ = hidden_test(competition.settings, rows)
    assert test.rows.height == rows
    staged = stage_competition(competition.settings, test.encode(), root / "mount")
    assert set(truth["id"]) <= set(staged.table(TEST)["id"]), "every label's row is asked"
    known = competition.ids_in_file(TRAIN) | competition.ids_in_file(TEST)
    healthy = test.with_rows(test.rows.head(3))
    files, hostile = make_hostile_test(competition, healthy, known)
    read = stage_competition(competition.settings, files, root / "hostile")
    ids = read.tables[TEST].read_ids(read.raw(TEST))
    assert hostile > 10 and set(ids) > set(competition.tables[TEST].read_ids(healthy.rows))
    assert not set(ids[:5]) & known
    read.table(TEST)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hidden_test_is_an_overlay_of_the_real_files(
    kind: type[Competition], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its solution is laid out as the training table's file, and goes through the same reader."""
    competition = make(kind, root, monkeypatch)
    ids = competition.table(TRAIN)["id"].head(6).to_list()
    staged, train = competition.as_test(ids), competition.tables[TRAIN]
    hidden = paths.hidden_folder("made")
    hidden.mkdir(parents=True)
    for name, content in staged.encode().items():
        (hidden / name).write_bytes(content)
    raw = competition.raw(TRAIN)
    solution = raw.filter(train.read_ids(raw).is_in(train.raw_ids(ids)))
    name = f"solution{competition.file(TRAIN).suffix}"
    (hidden / name).write_bytes(encode_file(solution, name))
    test, truth, origin = hidden_test(competition.settings, None)
    assert origin == "output/hidden/made" and test.rows.equals(staged.rows) and set(ids) <= set(truth["id"])
    right = competition.truth(competition.table(TRAIN)).filter(pl.col("id").is_in(truth["id"].to_list()))
    assert truth.select(right.columns).sort("id").equals(right.sort("id"))
    (hidden / "other.csv").write_text("id\n1\n")
    with pytest.raises(ValueError, match=r"output/hidden/made has \['other.csv'\]: input/made has no such file"):
        hidden_test(competition.settings, None)


def test_tokens_become_spans_and_spans_the_rows_of_labelled_tokens(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    competition = make(Pii, root, monkeypatch)
    competition.check()
    rows = json.loads((competition.folder / "train.json").read_text())
    train = competition.table(TRAIN)
    truth = competition.truth(train)
    spans = truth["items"].to_list()
    assert [len(own) for own in spans] == [2 * ("B-EMAIL" in row["labels"]) for row in rows], "two tokens are a name"
    right = make_ranking(truth["id"].to_list(), spans, [[0.0] * len(own) for own in spans])
    submission = competition.submission(right)
    expected = [
        (str(row["document"]), str(token), label)
        for row in rows
        for token, label in enumerate(row["labels"])
        if label != "O"
    ]
    assert submission.columns == ["row_id", "document", "token", "label"]
    assert submission.select("document", "token", "label").rows() == expected
    assert submission["row_id"].to_list() == [str(n) for n in range(len(expected))]
    assert competition.metric.score(right, truth) == 1.0


def test_a_submission_of_tokens_is_checked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    competition = make(Pii, root, monkeypatch)
    schema = dict.fromkeys(["row_id", "document", "token", "label"], pl.String())

    def problems(*rows: tuple[str, ...]) -> list[str]:
        return competition.check_submission(pl.DataFrame(rows, schema=schema, orient="row"))

    assert problems(("0", "7", "0", "B-EMAIL"), ("1", "7", "1", "I-EMAIL")) == []
    assert problems() == [], "no token may be labelled"
    assert problems(("0", "77", "0", "B-EMAIL")) == ["row 0: document '77' is not in the test set"]
    assert problems(("0", "7", "999", "B-EMAIL")) == ["row 0: document '7' has no token '999'"]
    assert problems(("0", "7", "0", "EMAIL")) == ["row 0: label 'EMAIL': B-TYPE or I-TYPE is expected"]
    assert problems(("0", "7", "0", "B-A"), ("1", "7", "0", "B-A")) == ["1 token(s) occur more than once"]


def test_the_f_beta_of_tokens_is_that_of_labelled_tokens() -> None:
    """A name of two tokens with its first one found, an e-mail missed, and a token that is none."""
    truth = pl.DataFrame(
        {
            "id": ["d", "e"],
            "items": [["0:7:NAME", "8:12:EMAIL"], []],
            "tokens": [["0:3", "4:7", "8:12"], ["0:5"]],
        },
        schema_overrides={"items": pl.List(pl.String)},
    )
    answer = make_ranking(["d", "e"], [["0:3:NAME"], ["0:5:NAME"]], [[0.0], [0.0]])
    hits, predicted, right = 1, 2, 3
    metric = token_f_beta(5)
    expected = 26 * hits / (25 * right + predicted)
    assert metric.name == "f5" and metric.score(answer, truth) == pytest.approx(expected)
    low, high = bootstrap_interval(metric, answer, truth)
    assert low == 0.0 and high == pytest.approx(26 / (25 * 3 + 1)), "rows are drawn whole"


class Kinds(RankedLabels):
    tables: ClassVar = {
        TRAIN: Table("id", ("text",), target="kind"),
        TEST: Table("id", ("text",)),
        "labels": Table("label", ("text",)),
    }
    cut, metric = 2, mean_average_precision(2)


def test_the_targets_of_train_are_documents_in_words(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(
        "id,text,kind\n1,a,True_Correct:NA\n2,b,False_Neither:NA\n3,c,True_Correct:NA\n"
    )
    (tmp_path / "test.csv").write_text("id,text\n4,d\n")
    (tmp_path / "sample_submission.csv").write_text("id,kind\n4,True_Correct:NA\n")
    competition = Kinds(CompetitionSettings("kinds"), tmp_path)
    competition.check()
    assert competition.table("labels").rows() == [
        ("False_Neither:NA", "False Neither NA"),
        ("True_Correct:NA", "True Correct NA"),
    ]
    assert competition.legal_items() == ["False_Neither:NA", "True_Correct:NA"]
