"""What ships: a fold's weights, an ensemble, an average, a refit."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest
from light import answer_offline
from workspace import Workspace, copy_workspace, succeed

from kaggle_llm.rankings import average_rankings, make_ranking
from kaggle_llm.run import Run
from kaggle_llm.weights.ship import choose_models, describe_cv

FOLD = pl.Series([-1, 0, 2, 0, 2])


def models(k: int) -> Mapping[str, Path]:
    return {"encoder": Path("encoder"), "reranker": Path(f"fold{k}")}


def average(folds: Sequence[int]) -> Mapping[str, Path]:
    return {"reranker": Path("average-" + "-".join(map(str, folds)))}


def choose(how: str, fold: pl.Series = FOLD) -> dict[str, Path]:
    return choose_models(how, fold, models, average, lambda: {"reranker": Path("full")})  # type: ignore[arg-type]


def test_each_way_to_ship_takes_its_models(capsys: pytest.CaptureFixture[str]) -> None:
    assert choose("fold0") == {"encoder": Path("encoder"), "reranker": Path("fold0")}
    assert choose("average") == {"reranker": Path("average-0-2")}
    assert "no row was held out by all 2 members" in capsys.readouterr().out
    assert choose("full") == {"reranker": Path("full")}
    members = {"encoder": Path("encoder"), "fold0.reranker": Path("fold0"), "fold2.reranker": Path("fold2")}
    assert choose("folds") == members


@pytest.mark.parametrize("how", ["folds", "average"])
def test_one_fold_is_no_ensemble(how: str) -> None:
    with pytest.raises(ValueError, match=r"only fold \[0\] is validated"):
        choose(how, pl.Series([0, 0, -1]))


def test_what_has_no_cv_of_its_own_says_so() -> None:
    assert [describe_cv({"ship": how}) != "" for how in ("fold0", "folds", "average", "full")] == [
        *(False, False, True, True)
    ]
    assert describe_cv({}) == ""


def test_the_mean_of_rankings_by_hand() -> None:
    first = make_ranking(["a", "b"], [["x", "y"], []], [[2.0, 1.0], []])
    second = make_ranking(["a", "b"], [["y", "z"], []], [[5.0, 0.0], []])
    mean = average_rankings([first, second])
    assert mean["items"].to_list() == [["y", "x", "z"], []]
    assert mean["scores"].to_list() == [[3.0, 1.0, 0.5], []]
    assert average_rankings([first]).equals(first)
    with pytest.raises(ValueError, match=r"row .a..*no item in common"):
        average_rankings([first, make_ranking(["a", "b"], [["q"], []], [[1.0], []])])


def test_members_stand_in_the_order_of_their_folds() -> None:
    """As text fold10 comes before fold2, and would be compared on the rows of another fold."""
    models = {f"fold{k}.reranker": Path(f"{k}") for k in (10, 2, 0)}
    members = Run(SimpleNamespace(), None, {"encoder": Path("e"), **models}).members()  # type: ignore[arg-type]
    assert list(members) == ["fold0", "fold2", "fold10"]
    assert members["fold10"] == {"encoder": Path("e"), "reranker": Path("10")}
    assert Run(SimpleNamespace(), None, {"encoder": Path("e")}).members() == {"": {"encoder": Path("e")}}  # type: ignore[arg-type]


TWO_FOLDS = ("--smoke", "folds.validate=[0,1]")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_ensemble_of_folds_travels_and_answers_offline(workspace: Workspace, tmp_path: Path) -> None:
    succeed(workspace.train("exp002_rerank", *TWO_FOLDS, "ship=folds", "run=folds"))
    run = "exp002_rerank--folds-smoke"
    report = json.loads((workspace.output / run / "parity.json").read_text())
    steps = [(step["model"], step["after"]) for step in report["steps"]]
    assert steps == [("fold0.reranker", "merged"), ("fold1.reranker", "merged")], "each member has its own gate"
    assert set(report["headroom"]) == {"fold0.reranker", "fold1.reranker"}
    succeed(workspace.cli("bundle", run))
    manifest = json.loads((workspace.output / "bundles" / run / "MANIFEST.json").read_text())
    names = {"encoder", *(f"fold{k}.{name}" for k in (0, 1) for name in ("reranker", "blend"))}
    assert set(manifest["models"]) == names and (manifest["ship"], manifest["note"]) == ("folds", "")
    answer_offline(workspace, run, tmp_path / "site")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_average_ships_its_exact_mean_and_says_that_it_has_no_cv(workspace: Workspace) -> None:
    said = succeed(workspace.train("exp002_rerank", *TWO_FOLDS, "ship=average", "run=mean"))
    assert "no row was held out by all 2 members" in said
    run = "exp002_rerank--mean-smoke"
    record = json.loads((workspace.output / run / "record.json").read_text())
    assert record["settings"]["ship"]["reranker"] == f"output/{run}/average/merged"
    about = json.loads((workspace.output / run / "average" / "adapter" / "weights.json").read_text())
    assert about["parents"]["member1"] == f"output/{run}/fold1/adapter"
    board = json.loads(succeed(workspace.cli("board", "--json")))
    (entry,) = [entry for entry in board if entry["run"] == run]
    assert entry["ships"].startswith("average (no CV of its own")
    succeed(workspace.cli("bundle", run))
    manifest = json.loads((workspace.output / "bundles" / run / "MANIFEST.json").read_text())
    assert manifest["note"].startswith("no CV of its own") and manifest["parity"] == "passed"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_refit_learns_from_all_rows_and_an_unmerged_adapter_travels_with_its_base(
    workspace: Workspace, tmp_path: Path
) -> None:
    words = ("--smoke", "ship=full", "merge.into=nothing", "run=full")
    succeed(workspace.train("exp002_rerank", *words))
    run = "exp002_rerank--full-smoke"
    shipped = json.loads((workspace.output / run / "record.json").read_text())["settings"]["ship"]
    assert shipped["reranker"] == f"output/{run}/full/adapter"
    assert shipped["reranker_base"] == "input/models/SmolLM2-135M-Instruct"
    succeed(workspace.cli("bundle", run))
    answer_offline(workspace, run, tmp_path / "site")


@pytest.fixture
def workspace(bare: Workspace, tmp_path: Path) -> Workspace:
    return copy_workspace(bare, tmp_path / "root")
