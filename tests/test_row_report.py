"""`kaggle-llm why`: a validated row's texts, its answer beside the right one, its own score, and what was asked."""

from __future__ import annotations

import re
from types import SimpleNamespace

import polars as pl
import pytest
from light import RUN
from workspace import Workspace, read_answers, succeed

from kaggle_llm.competition.competition import CompetitionSettings, load_competition
from kaggle_llm.competition.metrics import mean_average_precision, quadratic_weighted_kappa, span_f_beta
from kaggle_llm.competition.rankings import make_ranking, make_values
from kaggle_llm.experiment.row_report import JudgedRow, JudgedRun, list_items, list_values, rank_right


def judge(metric: object, answers: pl.DataFrame, truth: pl.DataFrame) -> JudgedRun:
    judged = JudgedRun.__new__(JudgedRun)
    judged.competition, judged.oof, judged.truth = SimpleNamespace(metric=metric), answers, truth
    return judged


def test_the_worst_rows_come_first_with_the_rank_of_the_right_item(light: Workspace) -> None:
    judged = JudgedRun(RUN)
    targets = dict(judged.train.select("id", "misconception_id").iter_rows())
    expected = {
        row: 1 / (items.index(targets[row]) + 1) if targets[row] in items else 0.0
        for row, items in judged.oof.select("id", "items").iter_rows()
    }
    worst = judged.worst(judged.oof.height)
    assert [row.score for row in worst] == sorted(expected.values())
    assert {row.id: 1 / rank if (rank := rank_right(row)) else 0.0 for row in worst} == pytest.approx(expected)
    said = succeed(light.cli("why", RUN))
    assert said.index(worst[0].id) < said.index(worst[1].id) and f"of {len(worst)} validated rows" in said


def test_a_row_shows_its_texts_and_marks_the_right_document(light: Workspace) -> None:
    row = JudgedRun(RUN).worst(1)[0]
    train = pl.read_csv(light.root / "input" / "demo-misconceptions" / "train.csv", infer_schema=False)
    documents = pl.read_csv(light.root / "input" / "demo-misconceptions" / "misconceptions.csv", infer_schema=False)
    question, target = train.filter(pl.col("id") == row.id).select("question", "misconception_id").row(0)
    text = dict(documents.iter_rows())[target]
    said = succeed(light.cli("why", RUN, row.id))
    assert f"question: {question}" in said and f"fold {row.fold}, map@25 {row.score:.4f}" in said
    (line,) = [line for line in said.splitlines() if " right " in line]
    assert target in line and text[:60] in line


def test_a_row_that_was_not_validated_is_one_clear_error(light: Workspace) -> None:
    done = light.cli("why", RUN, "tr99999")
    assert done.returncode == 1 and "did not validate 'tr99999'" in done.stderr and "Traceback" not in done.stderr


def test_right_items_below_the_first_ten_and_missing_ones_are_listed() -> None:
    answer = make_ranking(["a"], [[f"d{n}" for n in range(20)]], [range(20, 0, -1)])
    row = JudgedRow("a", 0, 0.1, {}, answer, pl.DataFrame({"id": ["a"], "items": [["d14", "lost"]]}))
    lines = list_items(row, {"d0": "a  text\nof lines", "lost": "what was meant"})
    assert lines[0] == ["1", "d0", "20.0000", "a text of lines"] and len(lines) == 12
    assert lines[-2:] == [["15 right", "d14", "6.0000", ""], ["– right", "lost", "–", "what was meant"]]


def test_numbers_stand_beside_the_right_ones() -> None:
    row = JudgedRow(
        "a", 0, None, {}, make_values(["a"], [[0.5, 2]]), pl.DataFrame({"id": ["a"], "values": [[1.0, 3.0]]})
    )
    competition = SimpleNamespace(cell_columns=lambda: ["content", "wording"])
    assert list_values(competition, row) == [["content", "0.5000", "1.0000"], ["wording", "2.0000", "3.0000"]]
    assert rank_right(row) is None


def test_a_row_without_spans_is_not_the_worst_where_none_was_answered() -> None:
    answers = make_ranking(["none", "missed", "hit"], [[], [], ["0:3:NAME"]], [[], [], [1.0]])
    truth = pl.DataFrame({"id": ["none", "missed", "hit"], "items": [[], ["0:3:NAME"], ["0:3:NAME"]]})
    scores = judge(span_f_beta(5), answers, truth).score_rows(answers)
    assert scores.tolist() == pytest.approx([float("nan"), 0.0, 1.0], nan_ok=True)


def test_a_span_is_shown_with_what_it_holds(bare: Workspace) -> None:
    settings = CompetitionSettings("demo-tags", str(bare.root / "input" / "demo-tags"))
    answer = make_ranking(["a"], [["0:3:NAME"]], [[-0.1]])
    row = JudgedRow("a", 0, 0.0, {"text": "Ann Lee."}, answer, pl.DataFrame({"id": ["a"], "items": [["0:7:NAME"]]}))
    judged = JudgedRun.__new__(JudgedRun)
    judged.competition = load_competition(settings)
    assert judged.describe_items(row) == {"0:3:NAME": "Ann", "0:7:NAME": "Ann Lee"}


def test_a_metric_of_all_rows_has_no_worst_row() -> None:
    answers = make_ranking(["a", "b"], [["1"], ["2"]], [[1.0], [1.0]])
    truth = pl.DataFrame({"id": ["a", "b"], "items": [["2"], ["2"]]})
    judged = judge(quadratic_weighted_kappa(["1", "2"]), answers, truth)
    with pytest.raises(ValueError, match="is a function of all rows: name a ROW, such as a"):
        judged.worst(1)
    assert judge(mean_average_precision(1), answers, truth).score_rows(answers).tolist() == [0.0, 1.0]


def test_the_prompts_are_those_of_the_run_and_no_model_is_asked_again(trained: Workspace) -> None:
    run = "exp002_rerank--smoke"
    before = read_answers(trained)
    row = re.findall(r"tr\d+", succeed(trained.cli("why", run)))[0]
    said = succeed(trained.cli("why", run, row, "--prompts"))
    question = re.search(r"^question: (.*)", said, re.M)
    assert question and f"│ Question: {question[1][:30]}" in said.replace(" …", "")
    assert "reranker was sent 4 prompt(s), the first:" in said and "Mistake: " in said
    assert read_answers(trained) == before
