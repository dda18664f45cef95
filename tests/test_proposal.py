"""What `kaggle-llm init` proposes for layouts of real competitions, beside the miniatures, and what it refuses."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from miniatures import write_miniature, write_text
from workspace import ROOT

from kaggle_llm.competition.competition import CompetitionSettings
from kaggle_llm.competition.inspect_files import is_key
from kaggle_llm.competition.proposal import Answers, Proposal, names_labels, propose, shorten
from kaggle_llm.experiment import first
from kaggle_llm.experiment.first import write_config, write_module
from kaggle_llm.rehearsal import check_competition as checking
from kaggle_llm.rehearsal import stage
from kaggle_llm.rehearsal.check_competition import check_competition

TRAIN_ROWS, TEST_ROWS = 60, 4
COLOURS = ("blue", "green", "red")
Cells = dict[str, Any]


def write_rows(path: Path, rows: list[Cells]) -> None:
    pl.DataFrame(rows, infer_schema_length=None).write_csv(path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """input/some-task/ of a repository of its own."""
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    folder = tmp_path / "input" / "some-task"
    folder.mkdir(parents=True)
    return folder


def write_task(folder: Path, targets: list[Any], cell: Any = 0, target: str = "label", **more: list[Any]) -> None:
    """train.csv, test.csv and sample_submission.csv with a text, and other columns of train and test."""
    import random

    rng = random.Random(0)
    rows = [{"id": n, "text": write_text(rng)} | {name: cells[n] for name, cells in more.items()} for n in range(60)]
    write_rows(folder / "train.csv", [row | {target: own} for row, own in zip(rows, targets, strict=True)])
    test = [row | {"id": 1000 + row["id"]} for row in rows[:TEST_ROWS]]
    write_rows(folder / "test.csv", test)
    write_rows(folder / "sample_submission.csv", [{"id": row["id"], target: cell} for row in test])


def spread(*values: Any) -> list[Any]:
    return [values[n % len(values)] for n in range(TRAIN_ROWS)]


def make_proposal(folder: Path, **answers: Any) -> Proposal:
    return propose(folder, folder.name, Answers(**answers))


def pass_checks(proposal: Proposal, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The competition of the proposal, whose module ruff and `kaggle-llm check` accept."""
    path = folder.parent / "module.py"
    path.write_text(write_module(proposal))
    for words in (["check"], ["format", "--check", "--diff"]):
        ruff = [sys.executable, "-m", "ruff", *words, "--config", str(ROOT / "pyproject.toml"), path]
        done = subprocess.run(ruff, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    load = lambda settings, folder=None: module.COMPETITION(settings, folder)  # noqa: E731
    for room in (checking, stage):
        monkeypatch.setattr(room, "load_competition", load)
    settings = CompetitionSettings(folder.name)
    checks = check_competition(settings)
    assert all(check.ok for check in checks) and len(checks) == 6, [check.detail for check in checks if not check.ok]
    return load(settings)


def test_a_column_for_each_label_and_a_train_file_that_names_the_label(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Feedback Prize Effectiveness, Spooky Authors: train.csv has no such columns."""
    write_task(folder, spread(*COLOURS), target="colour", writer=spread(*"abcde"))
    shares = dict(zip(("red", "blue", "green"), (0.2, 0.6, 0.2), strict=True))
    write_rows(folder / "sample_submission.csv", [{"id": 1000 + n} | shares for n in range(TEST_ROWS)])
    proposal = make_proposal(folder)
    assert (proposal.form, list(proposal.labels)) == ("LabelColumns", ["red", "blue", "green"])
    train = pass_checks(proposal, folder, monkeypatch).table("train")
    assert train.row(0)[-4:] == ("blue", "0", "1", "0"), "the target, then the shares of red, blue and green"


def test_two_labels_and_more_can_each_have_a_column() -> None:
    labels = pl.Series(["no", None, "yes", "no"])
    assert names_labels(["yes", "no"], labels)
    assert not names_labels(["yes", "no", "perhaps"], labels) and not names_labels(["yes"], labels)
    assert not names_labels(["yes"], labels.replace("no", "yes")), "one column is the answer itself"


def test_an_id_of_another_name_in_train_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Quora Question Pairs: id in train.csv, test_id in test.csv, and both begin with 0."""
    write_task(folder, spread(0, 1))
    for name in ("test", "sample_submission"):
        rows = pl.read_csv(folder / f"{name}.csv").rename({"id": "test_id"}).with_columns(pl.col("test_id") - 1000)
        rows.write_csv(folder / f"{name}.csv")
    proposal = make_proposal(folder)
    assert (proposal.tables["train"].id, proposal.tables["test"].id) == ("id", "test_id")
    assert proposal.assumed["id"] == "the id of train.csv is id, of test.csv test_id"
    pass_checks(proposal, folder, monkeypatch)
    pl.read_csv(folder / "train.csv").drop("id").write_csv(folder / "train.csv")
    with pytest.raises(ValueError, match=r"train\.csv has \['text', 'label'\]: neither 'test_id', the id of test\.csv"):
        make_proposal(folder)


def test_labels_of_the_test_set_that_came_afterwards_are_not_joined(folder: Path) -> None:
    """Toxic Comment: test_labels.csv; six columns of 0 and 1, of which several may be 1."""
    labels = ("toxic", "insult", "threat")
    write_task(folder, spread(0, 1), toxic=spread(0, 1, 1), insult=spread(1, 0), threat=spread(0, 0, 1))
    rows = [{"id": 1000 + n} | dict.fromkeys(labels, 0.5) for n in range(TEST_ROWS)]
    test = pl.read_csv(folder / "test.csv").drop(labels)
    test.write_csv(folder / "test.csv")
    for name in ("test_labels", "sample_submission"):
        write_rows(folder / f"{name}.csv", rows)
    proposal = make_proposal(folder)
    assert (proposal.form, proposal.tables["train"].numbers) == ("ProbabilityColumns", labels)
    assert not proposal.tables["test"].joined and proposal.metric == 'roc_auc("1")'
    assert make_proposal(folder, metric="rmse").form == "NumberColumns"


def test_a_joined_file_has_the_key_of_every_row_and_is_no_file_of_documents(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LLM Detect AI Text: targets of 0 and 1 beside prompts whose ids are 0 and 1; other.csv has a title by chance."""
    write_task(folder, spread(0, 1), 0.1, prompt_id=spread(0, 0, 1), title=[f"title {n}" for n in range(TRAIN_ROWS)])
    write_rows(folder / "train_prompts.csv", [{"prompt_id": n, "source": f"source {n}"} for n in range(2)])
    write_rows(folder / "other.csv", [{"title": f"heading {n}"} for n in range(9)])
    proposal = make_proposal(folder)
    assert (proposal.form, proposal.tables["train"].group) == ("OneProbability", "prompt_id")
    assert proposal.tables["train"].joined == {"train_prompts.csv": "prompt_id"} and not proposal.documents
    pass_checks(proposal, folder, monkeypatch)


def test_a_target_that_the_sample_joins_from_two_columns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in MAP: the cell is Category:Misconception, an empty one is NA."""
    write_task(folder, spread("True", "False", "Neither"), target="category")
    train = pl.read_csv(folder / "train.csv").with_columns(error=pl.Series(spread(None, "Sign", "Order")))
    train.write_csv(folder / "train.csv")
    sample = pl.read_csv(folder / "sample_submission.csv").select("id", pl.lit("True:NA").alias("category:error"))
    sample.write_csv(folder / "sample_submission.csv")
    proposal = make_proposal(folder, metric="map@3")
    assert proposal.glued == ("category", "error")
    competition = pass_checks(proposal, folder, monkeypatch)
    right = competition.truth(competition.table("train"))["items"].to_list()
    assert right[:3] == [["True:NA"], ["False:Sign"], ["Neither:Order"]]


def test_a_key_is_unique_has_every_value_and_is_no_list() -> None:
    lists = pl.Series([["a"], ["b"]])
    assert is_key(pl.Series(["a", "b"]), pl.Series(["b", None, "b"]))
    assert not is_key(pl.Series(["a", "a"]), pl.Series(["a"])) and not is_key(pl.Series(["a"]), pl.Series(["b"]))
    assert not is_key(lists, lists) and not is_key(pl.Series(["a", "b"]), lists)


def test_several_documents_in_a_target_are_several_items(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(folder, [f"d{n % 7} d{n % 5 + 2}" for n in range(TRAIN_ROWS)], "d1 d2")
    write_rows(folder / "documents.csv", [{"doc": f"d{n}", "words": f"words {n}"} for n in range(9)])
    proposal = make_proposal(folder)
    assert (proposal.form, proposal.cut, proposal.documents) == ("SeveralItems", 2, "documents")
    assert proposal.metric == "mean_average_precision(2)" and first.choose_source(proposal) == "exp002_rerank"
    pass_checks(proposal, folder, monkeypatch)


def test_labels_that_are_columns_are_answers_to_choose_from(folder: Path) -> None:
    write_task(folder, spread(*"AB"), "A", A=[f"one {n}" for n in range(60)], B=[f"two {n}" for n in range(60)])
    proposal = make_proposal(folder)
    assert (proposal.form, proposal.answers, first.choose_source(proposal)) == ("OneLabel", (*"AB",), "exp004_judge")


def test_what_is_no_table_is_left_out_and_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_task(folder, spread(*COLOURS), "red")
    (folder / "settings.json").write_text('{"a": 1}')
    assert make_proposal(folder).form == "OneLabel"
    assert re.search(r"left out: .*settings\.json is no JSON table", capsys.readouterr().err)
    (folder / "train.parquet").touch()
    with pytest.raises(ValueError, match=r"has train\.csv and train\.parquet: remove one, or say which"):
        make_proposal(folder)


def test_a_zip_beside_a_plain_file_belongs_to_it(folder: Path) -> None:
    write_task(folder, spread(*COLOURS), "red")
    with zipfile.ZipFile(folder / "train.csv.zip", "w") as archive:
        archive.write(folder / "train.csv", "train.csv")
    (folder / "train.csv").unlink()
    assert make_proposal(folder).form == "OneLabel"


@pytest.mark.parametrize(
    ("targets", "cell", "metric", "form", "assumed"),
    [
        (spread(0, 1), 0, "", "OneLabel", ""),
        (spread(0, 1), 0, "log_loss", "OneProbability", ""),
        (spread(0, 1), 0.5, "", "OneProbability", ""),
        (spread("human", "machine"), 0.5, "", "OneProbability", ""),
        (spread(1, 2, 3), 1, "", "OneLabel", "levels in order"),
        (spread(1, 2, 3), 1, "rmse", "NumberColumns", ""),
        (spread(0.5, 1.0, 1.5), 1, "", "NumberColumns", ""),
        (list(range(7, 127, 2)), 0, "", "NumberColumns", "worked out"),
        (
            spread(*(f"a rather long label that says what the {colour} one is" for colour in COLOURS)),
            "",
            "",
            "OneLabel",
            "",
        ),
        (spread(*(f"{'long ' * 25}{n}" for n in range(20))), "", "", "Texts", "20 different ones"),
        ([f"text {n}" for n in range(TRAIN_ROWS)], "", "", "Texts", ""),
    ],
    ids=str,
)
def test_the_form_of_one_cell(
    targets: list[Any], cell: Any, metric: str, form: str, assumed: str, folder: Path
) -> None:
    write_task(folder, targets, cell)
    proposal = make_proposal(folder, metric=metric)
    notes = [proposal.assumed[key] for key in ("form", "labels") if key in proposal.assumed]
    assert proposal.form == form and len(notes) == bool(assumed) and assumed in "".join(notes)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({"target": "nothing"}, r"--target nothing: train\.csv has \['id', 'text', 'label'\]"),
        ({"group": "nothing"}, r"--group nothing: train\.csv has \['id', 'text', 'label'\]"),
        ({"texts": ("label",)}, r"--text label: test\.csv has \['id', 'text'\]"),
        ({"metric": "rmse"}, r"--metric rmse scores NumberColumns, but the files look like OneLabel: say"),
        ({"metric": "auc"}, r"--metric auc scores OneProbability or ProbabilityColumns, but the files look"),
        ({"metric": "span_f5"}, r"--metric span_f5 scores TokenSpans, but the files look"),
    ],
    ids=str,
)
def test_flags_that_the_files_do_not_bear_are_refused(answers: Cells, message: str, folder: Path) -> None:
    write_task(folder, spread(*COLOURS), "red")
    with pytest.raises(ValueError, match=message):
        make_proposal(folder, **answers)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (spread("['4 9']", "[]"), r"train\.csv: label holds lists, such as \['4 9'\]: write the module by hand"),
        (spread("same"), r"train\.csv: label has no two different values in 60 row\(s\): there is nothing to learn"),
    ],
    ids=["lists", "one"],
)
def test_targets_that_no_form_has_are_refused(targets: list[Any], message: str, folder: Path) -> None:
    write_task(folder, targets)
    with pytest.raises(ValueError, match=message):
        make_proposal(folder)


def test_columns_of_the_sample_that_train_lacks_are_refused(folder: Path) -> None:
    write_task(folder, spread(*COLOURS))
    write_rows(folder / "sample_submission.csv", [{"id": 1000, "start": 0, "end": 1}])
    with pytest.raises(
        ValueError, match=r"has the columns \['start', 'end'\], which train\.csv lacks: write the module"
    ):
        make_proposal(folder)


def test_a_sample_that_cannot_be_read_is_described(folder: Path) -> None:
    write_task(folder, spread(*COLOURS))
    sample = folder / "sample_submission.csv"
    for header in ("id;label", "id", ",label"):
        sample.write_text(f"{header}\n1,2\n".replace("1,2", "1" if "," not in header else "1,2"))
        with pytest.raises(
            ValueError, match=r"sample_submission\.csv has the columns \[.*\]: an id and a cell are expe"
        ):
            make_proposal(folder)
    sample.rename(folder / "sampleSubmission.csv")
    with pytest.raises(
        FileNotFoundError, match=r"has \['sampleSubmission\.csv', .*, and no sample_submission\.csv: put"
    ):
        make_proposal(folder)


def test_a_column_that_no_prompt_can_name_is_refused(folder: Path) -> None:
    write_task(folder, spread(*COLOURS), "red")
    for name in ("train", "test"):
        pl.read_csv(folder / f"{name}.csv").rename({"text": "text {A}"}).write_csv(folder / f"{name}.csv")
    with pytest.raises(ValueError, match=r"cannot name \['text \{A\}'\]: say other columns with --text"):
        make_proposal(folder)


@pytest.mark.parametrize("name", ["comp.v2", "My-Comp", "my_comp", "a--b", "../up"])
def test_a_name_that_no_module_can_have_is_refused(name: str, folder: Path) -> None:
    with pytest.raises(ValueError, match="Kaggle's names have lower-case letters, digits and single hyphens"):
        first.init_competition(name, Answers(), "")


def test_short_texts_leave_their_tokens_to_long_ones(folder: Path) -> None:
    write_task(folder, spread(*COLOURS), "red", kind=spread("lead", "claim"), title=spread("a title", "another"))
    proposal = make_proposal(folder)
    config = yaml.safe_load(write_config(proposal, "exp008_heads", (ROOT / "exp/exp008_heads/config.yaml").read_text()))
    budgets = config["smoke"]["prompt"]["budgets"]
    assert budgets["kind"] < budgets["title"] < budgets["text"] and sum(budgets.values()) <= first.SMOKE_TOKENS


def test_quotes_and_long_notes_are_laid_out_as_the_house_does_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {f"a_column_of_words_number_{n}": spread("first", "second", "third") for n in range(6)}
    write_task(folder, spread(*COLOURS), "red", 'the "label"', **columns)
    pass_checks(make_proposal(folder), folder, monkeypatch)


def test_only_what_a_flag_says_is_asked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(folder, list(range(7, 127, 2)))
    proposal, questions = make_proposal(folder), list[str]()
    monkeypatch.setattr("builtins.input", lambda question: questions.append(question) or "")
    assert first.ask(proposal, Answers()) == Answers() and "form" in proposal.assumed
    assert [question.partition(" ")[0] for question in questions] == ["texts", "group", "metric"]


def test_texts_are_named_once(folder: Path) -> None:
    write_task(folder, spread(*COLOURS), "red")
    assert make_proposal(folder, texts=("text", "text")).texts == ("text",)


@pytest.mark.parametrize(
    ("columns", "labels"),
    [
        (("winner_a", "winner_b", "winner_tie"), ["a", "b", "tie"]),
        (("winner", "winner_tie"), ["winner", "winner_tie"]),
        (("winner_tie", "winner"), ["winner_tie", "winner"]),
    ],
)
def test_labels_are_what_differs_in_their_columns(columns: tuple[str, ...], labels: list[str]) -> None:
    assert [shorten(name, columns) for name in columns] == labels


def test_wide_rows_may_have_a_column_in_test_alone(tmp_path: Path) -> None:
    name = "eedi-mining-misconceptions-in-mathematics"
    write_miniature(name, tmp_path / name)
    test = tmp_path / name / "test.csv"
    rows = pl.read_csv(test)
    rows.select(pl.lit("web").alias("Source"), *rows.columns).write_csv(test)
    wide = propose(tmp_path / name, name, Answers()).tables["test"].wide
    assert wide and (wide.id, wide.right) == ("QuestionId", "CorrectAnswer")


def test_ids_that_pandas_wrote_as_floats_are_those_of_the_sample(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_task(folder, spread(*COLOURS), "red")
    for name in ("train", "test", "sample_submission"):
        rows = pl.read_csv(folder / f"{name}.csv")
        rows.with_columns(pl.col("id").cast(pl.Float64())).write_csv(folder / f"{name}.csv")
    competition = pass_checks(make_proposal(folder), folder, monkeypatch)
    assert competition.sample()["id"].to_list() == competition.table("test")["id"].to_list()
