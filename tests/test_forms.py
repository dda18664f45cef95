"""The forms of submissions: what is written is read back, and what no cell can hold is refused."""

import math
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from workspace import ROOT

from kaggle_llm.competition.competition import Competition, CompetitionSettings
from kaggle_llm.competition.forms import OneLabel, OneProbability, RankedItems, Texts
from kaggle_llm.competition.metrics import accuracy, exact_match, mean_average_precision, roc_auc, span_f_beta
from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.competition.span_forms import CharacterSpans
from kaggle_llm.competition.table import Table


class Letters(RankedItems):
    labels, cut, metric = ("A", "B", "C"), 2, mean_average_precision(2)


class Level(OneLabel):
    labels, metric = ("low", "very high"), accuracy()


class Violation(OneProbability):
    metric = roc_auc()


class Answer(Texts):
    metric = exact_match()


class Spans(CharacterSpans):
    metric = span_f_beta(5)


@pytest.fixture
def make(tmp_path: Path) -> Any:
    """make(form, targets, sample's cell) → a competition with as many rows as targets; test has the same ids."""

    def write(form: type[Competition], targets: list[str], cell: str) -> Competition:
        form.tables = {"train": Table("id", ("text",), target="target"), "test": Table("id", ("text",))}
        ids = [f"r{i}" for i in range(len(targets))]
        frame = pl.DataFrame({"id": ids, "text": [f"text {i}" for i in ids], "target": targets})
        frame.write_csv(tmp_path / "train.csv")
        frame.drop("target").write_csv(tmp_path / "test.csv")
        pl.DataFrame({"id": ids, "answer": [cell] * len(ids)}).write_csv(tmp_path / "sample_submission.csv")
        return form(CompetitionSettings("made"), tmp_path)

    return write


CASES: list[tuple[type[Competition], list[str], str, list[list[str]], list[str]]] = [
    (Letters, ["A", "B"], "A B", [["B", "A"], ["C", "B", "A"]], ["B A", "C B"]),
    (Level, ["low", "very high"], "low", [["very high", "low"], ["low", "very high"]], ["very high", "low"]),
    (Answer, ["a b", "c"], "x", [['a, "b"\nc'], ["-"]], ['a, "b"\nc', "-"]),
    (Spans, ["0:4:X", "-"], "-", [["0:4:X", "5:6:Y"], []], ["0:4:X 5:6:Y", "-"]),
]


@pytest.mark.parametrize(("form", "targets", "cell", "items", "cells"), CASES, ids=["items", "label", "text", "spans"])
def test_answers_become_cells_and_cells_answers(
    make: Any, form: type[Competition], targets: list[str], cell: str, items: list[list[str]], cells: list[str]
) -> None:
    competition = make(form, targets, cell)
    competition.check()
    ranking = make_ranking(["r0", "r1"], items, [[-float(i) for i in range(len(row))] for row in items])
    submission = competition.submission(ranking)
    assert submission["answer"].to_list() == cells
    assert competition.check_submission(submission) == []
    width = getattr(form, "cut", None) or (1 if form is Level else None)
    assert competition.ranking_of(submission)["items"].to_list() == [row[:width] for row in items]


@pytest.mark.parametrize(
    ("form", "cell", "fault"),
    [
        (Letters, "A B C", "3 items, 2 are allowed"),
        (Letters, "A Z", "unknown label 'Z'"),
        (Letters, "A A", "a label occurs twice"),
        (Letters, "", "empty label"),
        (Level, "high", "unknown label 'high'"),
        (Violation, "1.2", "'1.2' is no probability"),
        (Violation, "", "'' is no probability"),
        (Answer, "", "empty label"),
        (Spans, "0-4", "'0-4' is no span: it is written start:end:TYPE"),
        (Spans, "0:99:X", "0:99:X ends past its text of 7 characters"),
    ],
)
def test_cells_that_kaggle_would_refuse_are_named(make: Any, form: type[Competition], cell: str, fault: str) -> None:
    targets = {Letters: "A", Level: "low", Violation: "0", Spans: "-"}.get(form, "text")
    competition = make(form, [targets], "0.5" if form is Violation else targets)
    submission = pl.DataFrame({"id": ["r0"], "answer": [cell]})
    assert competition.check_submission(submission) == [f"row r0: {fault}"]


@pytest.mark.parametrize("odds", [-1000.0, -2.0, 0.0, 3.0, 1000.0])
def test_a_probability_is_the_softmax_of_both_labels_in_any_order(make: Any, odds: float) -> None:
    competition = make(Violation, ["0", "1"], "0.5")
    ranking = make_ranking(["r0", "r1"], [["1", "0"]] * 2, [[odds - 7, -7.0], [-7.0, odds - 7]])
    first, second = map(float, competition.submission(ranking)["answer"])
    expected = 1 / (1 + math.exp(-max(odds, -700)))
    assert first == pytest.approx(expected) and second == pytest.approx(1 - expected)
    back = competition.ranking_of(competition.submission(ranking))
    assert sorted(back["items"][0]) == ["0", "1"]
    again = competition.submission(back)["answer"].cast(pl.Float64).to_list()
    assert again == pytest.approx([first, second], abs=1e-12)


def test_a_target_that_is_no_label_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match=r"1 row\(s\) whose target is not among the 2 of \['low', 'very high'\]"):
        make(Level, ["low", "middle"], "low").check()


def test_labels_and_documents_are_alternatives(make: Any) -> None:
    class AnyItems(RankedItems):
        cut, metric = 3, mean_average_precision(3)

    assert make(Letters, ["A"], "A").legal_items() == ["A", "B", "C"]
    assert make(AnyItems, ["A"], "A").legal_items() is None


def test_the_module_of_the_docs_reads_writes_and_scores(tmp_path: Path) -> None:
    """Two rules with two rows each, one pair in the right order: AUC (1 + 0) / 2."""
    code, _ = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "competition.md").read_text(), re.S)
    names: dict[str, Any] = {"OneProbability": OneProbability, "Table": Table, "roc_auc": roc_auc}
    exec(code, names)
    ids, rules = [f"r{i}" for i in range(4)], ["a", "a", "b", "b"]
    train = pl.DataFrame({"row_id": ids, "body": ids, "rule": rules, "rule_violation": ["0", "1", "0", "1"]})
    train.write_csv(tmp_path / "train.csv")
    train.drop("rule_violation").write_csv(tmp_path / "test.csv")
    train.select("row_id", rule_violation=pl.lit("0.5")).write_csv(tmp_path / "sample_submission.csv")
    competition = names["COMPETITION"](CompetitionSettings("rules"), tmp_path)
    competition.check()
    truth = competition.truth(competition.table("train"))
    ranking = make_ranking(ids, [["0", "1"]] * 4, [[0, 1], [0, 2], [0, 2], [0, 1]])
    assert competition.metric.score(competition.ranking_of(competition.submission(ranking)), truth) == 0.5
