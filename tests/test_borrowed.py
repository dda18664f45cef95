"""Models of other runs: which one predicts a fold and which one ships, and what leaks is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sqlite3
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import polars as pl
import pytest
from workspace import Workspace, succeed

from kaggle_llm.base import records
from kaggle_llm.competition.competition import CompetitionSettings, load_competition
from kaggle_llm.competition.folds import FoldSettings, split_rows
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.experiment.experiment import Experiment
from kaggle_llm.inference.borrowed import (
    check_held_out,
    check_member_runs,
    check_not_itself,
    find_fold,
    find_shipped,
    list_borrowed_runs,
)
from kaggle_llm.inference.model import (
    Model,
    check_folds_match,
    describe_models,
    join_folds,
    read_models,
    select_member_models,
    split_folds,
)
from kaggle_llm.weights.parity import find_fault
from kaggle_llm.weights.ship import describe_cv
from kaggle_llm_demo.misconceptions import build_competition

OOF = {"id": ["a", "b", "c"], "fold": [0, 0, 1]}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    return tmp_path


def make_run(
    root: Path,
    name: str,
    ship: Sequence[Model],
    folds: Mapping[int, Sequence[Model]],
    how: str = "fold0",
    oof: Mapping[str, Any] = OOF,
    **config: Any,
) -> None:
    """A complete run with these models, all of them there."""
    folder = root / "output" / name
    folder.mkdir(parents=True, exist_ok=True)
    for model in [*ship, *(model for models in folds.values() for model in models)]:
        for path in model.folders:
            records.write_text(path / "config.json", "{}")
    pl.DataFrame(oof).write_parquet(folder / "oof.parquet")
    settings: dict[str, Any] = {"config": {"ship": how, **config}, "ship": describe_models(ship)}
    settings["fold_models"] = {str(k): describe_models(models) for k, models in folds.items()}
    records.write_record(folder, records.make_record("run", settings, {}, 0, {}, 0.0))


def make_models(root: Path, k: int | str) -> list[Model]:
    """An encoder that is the same in all folds, a model of each fold, and an adapter of each on a base."""
    return [
        Model("encoder", root / "input/models/e"),
        Model("ranker", root / f"output/r/{k}/merged"),
        Model("adapter", root / f"output/r/{k}/adapter", root / "input/models/b"),
    ]


@pytest.fixture
def folds(root: Path) -> dict[int, list[Model]]:
    return {k: make_models(root, f"fold{k}") for k in (0, 1)}


def test_a_fold_is_predicted_by_the_model_that_held_it_out_and_the_shipped_one_ships(
    root: Path, folds: dict[int, list[Model]]
) -> None:
    make_run(root, "r", make_models(root, "full"), folds)
    models = {"teacher": "r:ranker", "lora": "r:adapter", "fixed": "input/models/e"}

    def expected(k: str) -> list[Model]:
        lora = Model("lora", root / f"output/r/{k}/adapter", root / "input/models/b")
        return [Model("teacher", root / f"output/r/{k}/merged"), lora, Model("fixed", root / "input/models/e")]

    assert find_fold(models, [], 1) == expected("fold1"), "an adapter brings its base"
    assert find_shipped(models) == expected("full")


def test_a_run_that_ships_its_folds_lends_an_ensemble(root: Path, folds: dict[int, list[Model]]) -> None:
    make_run(root, "r", join_folds(folds), folds, "folds")
    expected = [Model("teacher", root / f"output/r/fold{k}/merged", fold=k) for k in (0, 1)]
    assert find_shipped({"teacher": "r:ranker"}) == expected
    assert find_shipped({"e": "r:encoder"}) == [Model("e", root / "input/models/e")], "what all members share"
    same = [Model("x", root / "input/models/e", fold=k) for k in (0, 1)]
    make_run(root, "s", same, folds, "folds")
    assert find_shipped({"e": "s:x"}) == [Model("e", root / "input/models/e")], "and what is the same in all of them"
    found = split_folds(find_shipped({"teacher": "r:ranker", "e": "r:encoder"}))
    assert [[model.label for model in models] for models in found.values()] == [["teacher", "e"]] * 2
    assert list(found) == [0, 1]


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("r:none", ValueError, r"models\.x = 'r:none': that run has no model 'none', it has .*ranker"),
        ("other:ranker", FileNotFoundError, r"models\.x = 'other:ranker': other is no complete run"),
        ("input/none", FileNotFoundError, "model folder input/none does not exist"),
        ("output", FileNotFoundError, "model folder output has no config.json"),
        ("r:", ValueError, "write <run>:<model>"),
    ],
)
def test_what_is_not_there_is_named(
    root: Path, folds: dict[int, list[Model]], text: str, error: type[Exception], message: str
) -> None:
    make_run(root, "r", folds[0], folds)
    for find in (find_shipped, lambda models: find_fold(models, [], 0)):
        with pytest.raises(error, match=message):
            find({"x": text})


def test_a_fold_that_was_not_validated_and_weights_that_did_not_come_are_named(
    root: Path, folds: dict[int, list[Model]]
) -> None:
    make_run(root, "r", folds[0], folds)
    with pytest.raises(ValueError, match="r validated fold 0, 1 and not fold 2"):
        find_fold({"x": "r:ranker"}, [], 2)
    shutil.rmtree(root / "output/r/fold1/merged")
    with pytest.raises(FileNotFoundError, match="output/r/fold1/merged is not here"):
        find_fold({"x": "r:ranker"}, [], 1)
    shutil.rmtree(root / "input/models/b")
    with pytest.raises(FileNotFoundError, match="model x: input/models/b is not here"):
        find_fold({"x": "r:adapter"}, [], 1)


def test_a_row_that_the_other_run_trained_on_is_a_leak(root: Path, folds: dict[int, list[Model]]) -> None:
    make_run(root, "r", folds[0], folds)
    models = {"x": "r:ranker", "fixed": "input/models/e"}
    check_held_out(models, {0: ["b", "a"], 1: ["c"]})
    check_held_out(models, {0: ["a"]})
    with pytest.raises(ValueError, match=r"models\.x is a leak: 1 of the 2 rows of fold 0 \(first \['c'\]\)"):
        check_held_out(models, {0: ["a", "c"]})
    with pytest.raises(ValueError, match=r"1 of the 1 rows of fold 1 \(first \['a'\]\)"):
        check_held_out(models, {0: ["a", "b"], 1: ["a"]})
    with pytest.raises(ValueError, match=r"2 rows of fold 2"):
        check_held_out(models, {2: ["new", "c"]})


def test_folds_that_do_not_fit_each_other_are_refused() -> None:
    """Of one's own folds 0 and 2 and a borrowed run that ships other ones."""
    own = [Model("encoder", Path("e")), *(Model("ranker", Path(f"{k}"), fold=k) for k in (0, 2))]
    fitting = [*own, *(Model("x", Path(f"x{k}"), fold=k) for k in (0, 2)), Model("x", Path("m"), member=1)]
    assert check_folds_match(fitting) == fitting
    with pytest.raises(ValueError, match="model x ships for other folds, but not for fold 2"):
        check_folds_match([*own, Model("x", Path("x0"), fold=0)])
    with pytest.raises(ValueError, match="model ranker ships for other folds, but not for fold 1"):
        check_folds_match([*own, *(Model("x", Path(f"x{k}"), fold=k) for k in (0, 1, 2))])


def test_models_are_written_down_as_they_are(root: Path, folds: dict[int, list[Model]]) -> None:
    models = [*join_folds(folds), Model("ranker", root / "output/s/full", member=3)]
    described = describe_models(models)
    assert read_models(json.loads(json.dumps(described))) == models
    assert described[0] == {"name": "encoder", "folder": "input/models/e"}, "one for all folds; paths are relative"
    assert [len(one) for one in described] == [2, 3, 4, 3, 4, 3]


def test_a_note_of_a_lender_without_cv_is_passed_on(root: Path, folds: dict[int, list[Model]]) -> None:
    make_run(root, "r", folds[0], folds, how="full")
    for config in ({"models": {"x": "r:ranker"}}, {"models": {}, "members": ["r"]}):
        assert describe_cv(config).startswith("r has no CV of its own: the refit")
    make_run(root, "s", folds[0], folds, models={"x": "r:ranker"})
    assert describe_cv({"models": {"x": "s:ranker"}}).startswith("s has r has no CV of its own")
    make_run(root, "r", folds[0], folds)
    assert describe_cv({"models": {"x": "r:ranker", "y": "input/models/e"}}) == ""


def test_lenders_are_the_runs_of_models_and_members_each_once() -> None:
    config = {"models": {"a": "r:x", "b": "input/models/e", "c": "s:x", "d": "r:y"}, "members": ["t", "s"]}
    assert list_borrowed_runs(config) == ["r", "s", "t"] and list_borrowed_runs({}) == []


PREDICT = """
from dataclasses import dataclass
from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.competition.rankings import make_ranking
Config = BaseConfig
ASKED = []
def load(run):
    return run.competition.table(run.competition.documents)["id"].to_list()
def score(rows, loaded, run):
    ASKED.append(run.model("teacher"))
    return make_ranking(rows["id"].to_list(), [loaded[:3]] * rows.height, [[3, 2, 1]] * rows.height)
"""


@pytest.fixture
def predict(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """exp/mine/predict.py, as this process has it."""
    path = root / "exp" / "mine" / "predict.py"
    records.write_text(path, PREDICT)
    spec = importlib.util.spec_from_file_location("predict", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, "predict", module)
    return module


@pytest.mark.parametrize("how", ["full", "average", "folds", "fold0"])
def test_whatever_a_fold_is_made_with_is_the_fold_s_own(
    root: Path, folds: dict[int, list[Model]], predict: ModuleType, how: str
) -> None:
    """Also what is made for its training: the shipped model may have seen the fold's rows."""
    settings, data = CompetitionSettings("demo-misconceptions"), root / "input" / "demo-misconceptions"
    build_competition(data, root / "hidden", train_rows=24, hidden_rows=3)
    competition = load_competition(settings)
    train = competition.table("train")
    fold = split_rows(competition, train, FoldSettings(count=2))
    make_run(root, "r", make_models(root, "full"), folds, oof={"id": train["id"], "fold": fold})
    engine, models = EngineSettings("transformers"), {"teacher": "r:ranker"}
    config = predict.Config(competition=settings, models=models, folds=FoldSettings(count=2), engine=engine, ship=how)
    experiment = Experiment(root / "exp" / "mine", "mine", config, smoke=False)
    made = {part.name: (part.run.model("teacher"), part.train.height) for part in experiment.parts()}
    asked = [root / f"output/r/fold{k}/merged" for k in (0, 1)]
    full = root / "output/r/full/merged"
    assert made == {
        **{f"fold{k}": (asked[k], (fold != k).sum()) for k in (0, 1)},
        **({"full": (full, train.height)} if how == "full" else {}),
    }
    assert asked == predict.ASKED
    experiment.score()
    experiment.ship()
    record = records.read_record(root / "output" / "mine")
    assert record is not None
    assert {k: read_models(one) for k, one in record.settings["fold_models"].items()} == {
        str(k): [Model("teacher", path)] for k, path in enumerate(asked)
    }
    ensemble = [Model("teacher", path, fold=k) for k, path in enumerate(asked)]
    assert read_models(record.settings["ship"]) == (ensemble if how == "folds" else [Model("teacher", full)])


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


def count_answers(workspace: Workspace) -> int:
    """That are kept, of all models."""
    count = 0
    for path in (workspace.output / "cache" / "answers").glob("*.sqlite"):
        database = sqlite3.connect(path)
        count += database.execute("SELECT COUNT(*) FROM answers").fetchone()[0]
        database.close()
    return count


def train_borrower(workspace: Workspace, *words: str) -> Any:
    return workspace.train(BORROWER, "--smoke", f"models.teacher={LENDER}:reranker", "run=lent", *words)


@pytest.mark.timeout(280)
def test_a_borrowed_model_is_scored_ships_and_travels(borrower: Workspace) -> None:
    run, path = f"{BORROWER}--lent-smoke", f"output/{LENDER}/fold0/merged"
    leak = train_borrower(borrower)
    assert leak.returncode != 0 and "models.teacher is a leak" in leak.stderr and f"fold 0 of {LENDER}" in leak.stderr
    assert f"teacher {path}" in succeed(train_borrower(borrower, "folds.rows=4"))
    record = json.loads((borrower.output / run / "record.json").read_text())
    models = [{"name": "encoder", "folder": "input/models/all-MiniLM-L6-v2"}, {"name": "teacher", "folder": path}]
    assert record["settings"]["ship"] == models and record["settings"]["fold_models"] == {"0": models}
    assert record["inputs"]["teacher"] == records.hash_content(borrower.root / path)
    asked = count_answers(borrower)
    assert f"teacher {path}" in succeed(train_borrower(borrower, "folds.rows=4"))
    assert count_answers(borrower) == asked > 0, "a second run asks nothing"
    succeed(borrower.cli("bundle", run))
    bundle = borrower.output / "bundles" / run
    bundled = {one["name"]: one["folder"] for one in json.loads((bundle / "MANIFEST.json").read_text())["models"]}
    slug = bundled["teacher"]
    assert (bundle / slug / "model" / "model.safetensors").samefile(borrower.root / path / "model.safetensors")


@pytest.mark.release
@pytest.mark.timeout(600)
def test_a_borrowed_model_answers_offline(borrower: Workspace) -> None:
    succeed(train_borrower(borrower, "folds.rows=4"))
    succeed(borrower.cli("bundle", f"{BORROWER}--lent-smoke"))
    succeed(borrower.cli("rehearse", f"{BORROWER}--lent-smoke", "--replay", "0"))


def test_members_bring_all_that_their_runs_ship_each_under_its_own_number(
    root: Path, folds: dict[int, list[Model]]
) -> None:
    encoder = Model("encoder", root / "input/models/e")
    make_run(root, "r", join_folds(folds), folds, competition={"name": "c"})
    make_run(root, "s", [encoder], {k: [encoder] for k in (0, 1)}, competition={"name": "c"})
    members = ["s", "r"]
    check_member_runs(members, "c")
    fold1 = find_fold({"own": "input/models/e"}, members, 1)
    assert Model("own", root / "input/models/e") in fold1 and len(fold1) == 5
    assert select_member_models(fold1, 1) == folds[1] and select_member_models(fold1, 0) == [encoder]
    shipped = find_shipped({}, members)
    assert select_member_models(shipped, 1) == join_folds(folds) and select_member_models(shipped, 0) == [encoder]
    assert split_folds(shipped) == {None: shipped}, "a member's folds are the member's own ensemble"
    assert list(split_folds(select_member_models(shipped, 1))) == [0, 1]


def test_members_that_cannot_be_are_refused(root: Path, folds: dict[int, list[Model]]) -> None:
    make_run(root, "r", folds[0], folds, competition={"name": "c"})
    make_run(root, "s", folds[0], folds, competition={"name": "d"})
    with pytest.raises(ValueError, match="members: r is listed twice"):
        check_member_runs(["r", "r"], "c")
    with pytest.raises(FileNotFoundError, match="members: none is no complete run"):
        check_member_runs(["none"], "c")
    with pytest.raises(ValueError, match="members: s is of d, not of c"):
        check_member_runs(["r", "s"], "c")
    with pytest.raises(ValueError, match="members: r: r validated fold 0, 1 and not fold 2"):
        find_fold({}, ["r"], 2)
    make_run(root, "blend", folds[0], folds, competition={"name": "c"}, members=["r", "s"])
    with pytest.raises(ValueError, match="blend has members of its own: name these in its place: r, s"):
        check_member_runs(["r", "blend"], "c")


def test_a_run_is_no_source_of_its_own_models() -> None:
    """Its training would remove the record that says which models these are, and the run with it."""
    for config in ({"members": ["other", "mine"]}, {"models": {"encoder": "mine:encoder"}}):
        check_not_itself("another", config)
        with pytest.raises(ValueError, match=r"mine is named in its own members or models: .* run=NAME"):
            check_not_itself("mine", config)


def test_a_model_of_a_stack_is_not_taken_for_its_members(root: Path, folds: dict[int, list[Model]]) -> None:
    own = Model("linear", root / "output/stack/linear")
    make_run(root, "stack", [Model("linear", root / "output/r/linear", member=0), own], folds)
    assert find_shipped({"mine": "stack:linear"}) == [Model("mine", own.folder)]


def test_the_parity_of_a_lender_holds_a_run_back(root: Path, folds: dict[int, list[Model]]) -> None:
    """Its merged model was never compared with its adapter; the borrower has no stage of its own."""
    make_run(root, "r", folds[0], folds)
    records.write_json(root / "output/r/fold0/merged/weights.json", {})
    ship = [
        Model("ranker", root / "output/r/fold0/merged", member=0),
        Model("decision", root / "output/blend/decision"),
    ]
    make_run(root, "blend", ship, {})
    assert find_fault("blend") == ""
    make_run(root, "blend", ship, {}, members=["r"])
    assert find_fault("blend").startswith("r: parity of output/r/fold0/merged was never checked")
