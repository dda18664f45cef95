"""Models of other runs: which one predicts a fold and which one ships, and what leaks is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from workspace import Workspace, succeed

from kaggle_llm import records
from kaggle_llm.borrowed import check_held_out, find_fold, find_member, find_shipped, join_models, name_members
from kaggle_llm.competition import CompetitionSettings
from kaggle_llm.experiment import Experiment
from kaggle_llm.weights.parity import find_fault
from kaggle_llm.weights.ship import describe_cv

OOF = {"id": ["a", "b", "c"], "fold": [0, 0, 1]}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    return tmp_path


def make_run(
    root: Path, name: str, ship: Mapping[str, str], folds: Mapping[str, Mapping[str, str]], how: str = "fold0"
) -> None:
    """A complete run with these models, all of them there."""
    folder = root / "output" / name
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*ship.values(), *(path for models in folds.values() for path in models.values())]:
        (root / path).mkdir(parents=True, exist_ok=True)
    pl.DataFrame(OOF).write_parquet(folder / "oof.parquet")
    settings: dict[str, Any] = {"config": {"ship": how}, "ship": dict(ship), "fold_models": dict(folds)}
    records.write_record(folder, records.make_record("run", settings, {}, 0, {}, 0.0))


def fold_models(k: int) -> dict[str, str]:
    return {"encoder": "input/models/e", "ranker": f"output/r/fold{k}/merged", "adapter": f"output/r/fold{k}/adapter"}


FOLDS = {str(k): {**fold_models(k), "adapter_base": "input/models/b"} for k in (0, 1)}


def test_a_fold_is_predicted_by_the_model_that_held_it_out_and_the_shipped_one_ships(root: Path) -> None:
    make_run(root, "r", {**FOLDS["0"], "ranker": "output/r/full/merged"}, FOLDS)
    models = {"teacher": "r:ranker", "lora": "r:adapter", "fixed": "input/models/e"}
    found = {"lora_base": root / "input/models/b", "fixed": root / "input/models/e"}
    fold1 = {"teacher": root / "output/r/fold1/merged", "lora": root / "output/r/fold1/adapter"}
    assert find_fold(models, 1) == {**found, **fold1}, "an adapter brings its base"
    shipped = {"teacher": root / "output/r/full/merged", "lora": root / "output/r/fold0/adapter"}
    assert find_shipped(models) == {**found, **shipped}


def test_a_run_that_ships_its_folds_lends_an_ensemble(root: Path) -> None:
    members = {f"fold{k}.ranker": f"output/r/fold{k}/merged" for k in (0, 1)}
    make_run(root, "r", {"encoder": "input/models/e", **members}, FOLDS, "folds")
    assert find_shipped({"teacher": "r:ranker"}) == {
        f"fold{k}.teacher": root / f"output/r/fold{k}/merged" for k in (0, 1)
    }
    assert find_shipped({"e": "r:encoder"}) == {"e": root / "input/models/e"}, "what all members share"


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("r:none", ValueError, r"models\.x = 'r:none': that run has no model 'none', it has .*ranker"),
        ("other:ranker", FileNotFoundError, r"models\.x: other is no complete run"),
        ("input/none", FileNotFoundError, r"models\.x = 'input/none' is no folder"),
        ("r:", ValueError, "write <run>:<model>"),
    ],
)
def test_what_is_not_there_is_named(root: Path, text: str, error: type[Exception], message: str) -> None:
    make_run(root, "r", FOLDS["0"], FOLDS)
    for find in (find_shipped, lambda models: find_fold(models, 0)):
        with pytest.raises(error, match=message):
            find({"x": text})


def test_a_fold_that_was_not_validated_and_weights_that_did_not_come_are_named(root: Path) -> None:
    make_run(root, "r", FOLDS["0"], FOLDS)
    with pytest.raises(ValueError, match="r validated fold 0, 1 and not fold 2"):
        find_fold({"x": "r:ranker"}, 2)
    (root / "output/r/fold1/merged").rmdir()
    with pytest.raises(FileNotFoundError, match="output/r/fold1/merged is not here"):
        find_fold({"x": "r:ranker"}, 1)


def test_a_row_that_the_other_run_trained_on_is_a_leak(root: Path) -> None:
    make_run(root, "r", FOLDS["0"], FOLDS)
    models = {"x": "r:ranker", "fixed": "input/models/e"}
    check_held_out(models, {0: ["b", "a"], 1: ["c"]})
    check_held_out(models, {0: ["a"]})
    with pytest.raises(ValueError, match=r"models\.x is a leak: 1 of the 2 rows of fold 0 \(first \['c'\]\)"):
        check_held_out(models, {0: ["a", "c"]})
    with pytest.raises(ValueError, match=r"1 of the 1 rows of fold 1 \(first \['a'\]\)"):
        check_held_out(models, {0: ["a", "b"], 1: ["a"]})
    with pytest.raises(ValueError, match=r"2 rows of fold 2"):
        check_held_out(models, {2: ["new", "c"]})


def test_a_name_of_ones_own_and_folds_that_do_not_fit_are_refused() -> None:
    own = {"ranker": Path("a"), "fold0.blend": Path("b"), "fold2.blend": Path("c")}
    assert join_models(own, {"x": Path("d")}) == {**own, "x": Path("d")}
    with pytest.raises(ValueError, match=r"models\.ranker: the experiment has a model of this name"):
        join_models(own, {"ranker": Path("d")})
    with pytest.raises(ValueError, match=r"x of fold2 does not ship"):
        join_models(own, {"fold0.x": Path("d")})


def test_a_note_of_a_lender_without_cv_is_passed_on(root: Path) -> None:
    make_run(root, "r", FOLDS["0"], FOLDS, how="full")
    assert describe_cv({"models": {"x": "r:ranker"}}).startswith("r has no CV of its own: the refit")
    make_run(root, "r", FOLDS["0"], FOLDS)
    assert describe_cv({"models": {"x": "r:ranker", "y": "input/models/e"}}) == ""


@dataclass
class Config:
    competition: CompetitionSettings
    models: dict[str, str]


def test_whatever_a_fold_is_made_with_is_the_fold_s_own(root: Path, trained: Workspace) -> None:
    """Also what is fitted on predictions in its training: the shipped model may have seen the fold's rows."""
    make_run(root, "r", {"ranker": "output/r/full/merged"}, FOLDS)
    data = CompetitionSettings("demo-misconceptions", str(trained.root / "input" / "demo-misconceptions"))
    experiment = Experiment(root / "exp", "mine", Config(data, {"teacher": "r:ranker"}), smoke=True)
    made: dict[str, Path] = {}
    for name in ("fold0/blend", "fold1/blend", "average/blend", "full/blend"):

        def make(folder: Path, name: str = name) -> None:
            made[name] = experiment.run({"own": Path("own")}).models["teacher"]

        experiment.step(name, make)
    assert made == {
        **{f"fold{k}/blend": root / f"output/r/fold{k}/merged" for k in (0, 1)},
        **dict.fromkeys(("average/blend", "full/blend"), root / "output/r/full/merged"),
    }
    assert experiment.run({}).models == {"teacher": root / "output/r/full/merged"}, "outside of a step"


LENDER = "exp002_rerank--smoke"
BORROWER = "exp009_borrow"


@pytest.fixture(scope="module")
def borrower(trained: Workspace) -> Workspace:
    """exp001 that also says which model it was lent: wherever a Run is made."""
    exp = trained.root / "exp" / BORROWER
    shutil.copytree(trained.root / "exp" / "exp001_retrieve", exp)
    predict = (exp / "predict.py").read_text()
    told = '    print("teacher", "/".join(run.model("teacher").parts[-4:]))\n    return Retriever('
    (exp / "predict.py").write_text(predict.replace("    return Retriever(", told))
    return trained


def train_borrower(workspace: Workspace, *words: str) -> Any:
    return workspace.train(BORROWER, "--smoke", f"models.teacher={LENDER}:reranker", "run=lent", *words)


@pytest.mark.timeout(280)
def test_a_borrowed_model_is_scored_ships_and_travels(borrower: Workspace) -> None:
    run, path = f"{BORROWER}--lent-smoke", f"output/{LENDER}/fold0/merged"
    leak = train_borrower(borrower)
    assert leak.returncode != 0 and "models.teacher is a leak" in leak.stderr and f"fold 0 of {LENDER}" in leak.stderr
    assert f"teacher {path}" in succeed(train_borrower(borrower, "folds.rows=4"))
    record = json.loads((borrower.output / run / "record.json").read_text())
    assert record["settings"]["ship"] == {"encoder": "input/models/all-MiniLM-L6-v2", "teacher": path}
    assert record["settings"]["fold_models"]["0"]["teacher"] == path
    step = json.loads((borrower.output / run / "fold0" / "oof" / "record.json").read_text())
    assert step["inputs"]["models.teacher"] == records.hash_content(borrower.root / path)
    assert "fold0/oof is complete, reused" in succeed(train_borrower(borrower, "folds.rows=4"))
    succeed(borrower.cli("bundle", run))
    bundle = borrower.output / "bundles" / run
    slug = json.loads((bundle / "MANIFEST.json").read_text())["models"]["teacher"]
    assert (bundle / slug / "model" / "model.safetensors").samefile(borrower.root / path / "model.safetensors")


@pytest.mark.release
@pytest.mark.timeout(600)
def test_a_borrowed_model_answers_offline(borrower: Workspace) -> None:
    succeed(train_borrower(borrower, "folds.rows=4"))
    succeed(borrower.cli("bundle", f"{BORROWER}--lent-smoke"))
    succeed(borrower.cli("rehearse", f"{BORROWER}--lent-smoke", "--replay", "0"))


def test_members_bring_all_that_their_runs_ship_each_under_its_own_number(root: Path) -> None:
    make_run(root, "r", FOLDS["0"], FOLDS)
    make_run(root, "s", {"encoder": "input/models/e"}, {str(k): {"encoder": "input/models/e"} for k in (0, 1)})
    names = name_members(["s", "r"])
    assert names["member0.encoder"] == "s:encoder" and names["member1.ranker"] == "r:ranker"
    fold1 = find_fold(names, 1)
    assert fold1["member1.ranker"] == root / "output/r/fold1/merged"
    assert find_member(fold1, 1) == {name: root / path for name, path in FOLDS["1"].items()}
    assert find_member(fold1, 0) == {"encoder": root / "input/models/e"}
    with pytest.raises(ValueError, match="s stands there twice"):
        name_members(["s", "r", "s"])
    with pytest.raises(FileNotFoundError, match="member0: none is no complete run"):
        name_members(["none"])


def test_the_parity_of_a_lender_holds_a_run_back(root: Path) -> None:
    """Its merged model was never compared with its adapter; the borrower has no stage of its own."""
    make_run(root, "r", FOLDS["0"], FOLDS)
    records.write_json(root / FOLDS["0"]["ranker"] / "weights.json", {})
    make_run(root, "blend", {"member0.ranker": FOLDS["0"]["ranker"], "blend": "output/blend/shipped"}, {})
    record = records.read_record(root / "output" / "blend")
    assert record is not None and find_fault("blend") == ""
    record.settings["config"]["members"] = ["r"]
    records.write_record(root / "output" / "blend", record)
    assert find_fault("blend").startswith("r: parity of output/r/fold0/merged was never checked")
