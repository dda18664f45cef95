"""What ships: a fold's weights, an ensemble, an average, a refit."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import polars as pl
import pytest
from light import answer_offline
from workspace import Workspace, copy_workspace, succeed

from kaggle_llm.competition.rankings import average_rankings, make_ranking
from kaggle_llm.experiment import experiment
from kaggle_llm.experiment.experiment import Experiment
from kaggle_llm.experiment.part import Part
from kaggle_llm.inference.model import Model, check_folds_match, join_folds, replace_model, split_folds
from kaggle_llm.inference.vectors import load_vectors
from kaggle_llm.weights.ship import describe_cv

RETRIEVER, RERANKER = Model("encoder", Path("encoder")), Model("reranker", Path("base"))


def make_experiment(how: str, fold: Sequence[int], decided: bool = False) -> Experiment:
    """An experiment whose folds are learned: each has a reranker of its own, all have the encoder.

    fold: of each training row. decided: whether predict.py has a decision.
    """
    experiment: Any = Experiment.__new__(Experiment)
    experiment.config = SimpleNamespace(ship=how, models={}, merge=None)
    experiment.folder, experiment.members, experiment.competition = Path("run"), [], None
    experiment.train, experiment.fold = pl.DataFrame({"id": [f"r{n}" for n, _ in enumerate(fold)]}), pl.Series(fold)
    experiment.folds = sorted(set(fold) - {-1})
    experiment.scores = SimpleNamespace(decided=object() if decided else None)
    experiment.fold_parts = [
        learn(Part(experiment, f"fold{k}", k, experiment.train, [RETRIEVER])) for k in experiment.folds
    ]
    experiment._full = learn(Part(experiment, "full", None, experiment.train, [RETRIEVER]))
    return cast(Experiment, experiment)


def learn(part: Part) -> Part:
    part.learned["reranker"] = Path(part.name, "adapter")
    part.models = replace_model(part.models, Model("reranker", Path(part.name)))
    return part


def choose_models(experiment: Experiment) -> list[Model]:
    average = experiment._make_average() if experiment.config.ship == "average" else None
    return experiment._choose_models(average)


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ships of the config's models, and averages, without files."""

    def average(self: Part, parts: Sequence[Part]) -> None:
        named = "-".join(str(part.fold) for part in parts)
        self.models = replace_model(self.models, Model("reranker", Path(f"average-{named}")))

    monkeypatch.setattr(experiment, "find_shipped", lambda models, members: [RETRIEVER, RERANKER])
    monkeypatch.setattr(Part, "average", average)


@pytest.mark.usefixtures("found")
def test_each_way_to_ship_takes_its_models(capsys: pytest.CaptureFixture[str]) -> None:
    def choose(how: str) -> list[Model]:
        return choose_models(make_experiment(how, [-1, 0, 2, 0, 2]))

    assert choose("fold0") == [RETRIEVER, Model("reranker", Path("fold0"))]
    assert choose("average") == [RETRIEVER, Model("reranker", Path("average-0-2"))]
    assert "no row was held out by all 2 members" in capsys.readouterr().out
    assert choose("full") == [RETRIEVER, Model("reranker", Path("full"))]
    folds = [Model("reranker", Path(f"fold{k}"), fold=k) for k in (0, 2)]
    assert choose("folds") == [RETRIEVER, *folds]


@pytest.mark.usefixtures("found")
@pytest.mark.parametrize("how", ["fold0", "folds", "average", "full"])
def test_the_decision_of_all_folds_ships_once(how: str) -> None:
    models = choose_models(make_experiment(how, [0, 2, 0, 2], decided=True))
    assert models[-1] == Model("decision", Path("run", "decision"))
    assert [model.name for model in models].count("decision") == 1


@pytest.mark.parametrize("how", ["folds", "average"])
def test_one_fold_is_no_ensemble_which_is_said_before_anything_is_learned(how: str, workspace: Workspace) -> None:
    done = workspace.train("exp002_rerank", f"ship={how}", f"run={how}")
    assert done.returncode == 1 and "only fold [0] is validated: name two" in done.stderr
    assert not (workspace.output / f"exp002_rerank--{how}" / "fold0").exists() and "Traceback" not in done.stderr


def test_of_a_fold_what_was_learned_ships_and_what_was_lent_as_its_lender_ships_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In CV a fold has the borrowed run's model of that fold; the one that ships may be another."""
    lent = [Model("teacher", Path("other", f"fold{k}"), fold=k) for k in (0, 1)]
    member = Model("reranker", Path("other"), member=0)
    monkeypatch.setattr(experiment, "find_shipped", lambda models, members: [RERANKER, *lent, member])
    mine = make_experiment("fold0", [0, 1])
    mine.fold_parts[0].models.append(Model("teacher", Path("other", "fold0")))
    assert choose_models(mine) == [*lent, member, Model("reranker", Path("fold0"))]


def test_an_ensemble_is_put_together_and_taken_apart() -> None:
    """What all folds share has no fold; the folds stand in their order, as text fold10 would come before fold2."""
    folds = {k: [RETRIEVER, Model("reranker", Path(f"{k}"), Path("base"))] for k in (10, 2, 0)}
    joined = join_folds(folds)
    assert joined[0] == RETRIEVER and [model.fold for model in joined] == [None, 10, 2, 0]
    assert list(split_folds(joined)) == [0, 2, 10] and split_folds(joined) == folds
    assert split_folds([RETRIEVER]) == {None: [RETRIEVER]}
    assert [model.label for model in joined[:2]] == ["encoder", "reranker of fold 10"]


def test_each_fold_of_a_stack_asks_its_members_of_the_same_fold() -> None:
    """Each asked the members of all folds: four times the work for four folds."""
    folds = {
        k: [
            replace(RETRIEVER, member=1),
            Model("linear", Path(f"stack/{k}")),
            Model("body", Path(f"heads/{k}"), member=0),
        ]
        for k in (0, 1)
    }
    assert split_folds(join_folds(folds)) == folds
    of_others = [Model("linear", Path(f"{k}"), fold=k, member=2) for k in (0, 1, 2)]  # that run ships its own three
    assert split_folds([*join_folds(folds), *of_others]) == {k: [*own, *of_others] for k, own in folds.items()}


def test_an_ensemble_whose_folds_do_not_have_the_same_models_is_refused() -> None:
    def on(name: str, *folds: int) -> list[Model]:
        return [Model(name, Path(name), fold=k) for k in folds]

    whole = [RETRIEVER, *on("reranker", 0, 2), *on("teacher", 2, 0), Model("reranker", Path("a"), fold=1, member=0)]
    assert check_folds_match(whole) == whole
    with pytest.raises(ValueError, match="model teacher ships for other folds, but not for fold 2"):
        check_folds_match([*on("reranker", 0, 2), *on("teacher", 0)])


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


TWO_FOLDS = ("--smoke", "folds.validate=[0,1]")


@pytest.mark.release
@pytest.mark.timeout(600)
def test_an_ensemble_of_folds_travels_and_answers_offline(workspace: Workspace, tmp_path: Path) -> None:
    succeed(workspace.train("exp002_rerank", *TWO_FOLDS, "ship=folds", "run=folds"))
    run = "exp002_rerank--folds-smoke"
    report = json.loads((workspace.output / run / "parity.json").read_text())
    steps = [(step["model"], step["after"]) for step in report["steps"]]
    members = ["reranker of fold 0", "reranker of fold 1"]
    assert steps == [(member, "merged") for member in members], "each member has its own gate"
    assert set(report["headroom"]) == set(members)
    succeed(workspace.cli("bundle", run))
    manifest = json.loads((workspace.output / "bundles" / run / "MANIFEST.json").read_text())
    found = [(model["name"], model.get("fold")) for model in manifest["models"]]
    assert sorted(found, key=str) == [("decision", None), ("encoder", None), ("reranker", 0), ("reranker", 1)]
    assert (manifest["ship"], manifest["note"]) == ("folds", "")
    answer_offline(workspace, run, tmp_path / "site")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_average_ships_its_exact_mean_and_says_that_it_has_no_cv(workspace: Workspace) -> None:
    said = succeed(workspace.train("exp002_rerank", *TWO_FOLDS, "ship=average", "run=mean"))
    assert "no row was held out by all 2 members" in said
    run = "exp002_rerank--mean-smoke"
    record = json.loads((workspace.output / run / "record.json").read_text())
    assert {"name": "reranker", "folder": f"output/{run}/average/merged"} in record["settings"]["ship"]
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
    base = "input/models/SmolLM2-135M-Instruct"
    assert {"name": "reranker", "folder": f"output/{run}/full/adapter", "base": base} in shipped
    succeed(workspace.cli("bundle", run))
    answer_offline(workspace, run, tmp_path / "site")


@pytest.fixture
def workspace(bare: Workspace, tmp_path: Path) -> Workspace:
    return copy_workspace(bare, tmp_path / "root")


@pytest.mark.slow
def test_documents_vectors_ship_with_their_encoder_and_the_offline_session_reads_them(
    trained: Workspace, tmp_path: Path
) -> None:
    words = ["retrieval.ship_index=true", "retrieval.index_dtype=float16", "fit_weights=true"]
    succeed(trained.train("exp001_retrieve", "--smoke", "run=indexed", *words))
    run = trained.output / "exp001_retrieve--indexed-smoke"
    shipped = json.loads((run / "record.json").read_text())["settings"]["ship"]
    folders = {model["name"]: trained.root / model["folder"] for model in shipped}
    assert set(folders) == {"encoder", "encoder_index", "lexical_index", "decision"}
    vectors = load_vectors(folders["encoder_index"])
    assert vectors.dtype == "float16" and len(vectors) > 100
    succeed(trained.cli("bundle", run.name))
    checks = answer_offline(trained, run.name, tmp_path / "site", replay=0)
    assert {"notebook", "row independence"} <= checks.keys() and "same lists" in checks["replay"].detail
    said = (tmp_path / "site" / "log.txt").read_text()
    assert f"{len(vectors)} documents' vectors are read from the shipped index" in said
    assert "lexical: the shipped index is read" in said and "again" not in said
