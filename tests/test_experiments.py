"""Experiments as processes, on pico models: what a run leaves, what it reuses, what it refuses."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from workspace import Workspace, copy_workspace, succeed

SMOKE = "exp002_rerank--smoke"


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def retrieved(trained: Workspace) -> Path:
    """A complete smoke run of exp001; read only."""
    return trained.output / "exp001_retrieve--smoke"


def test_a_run_leaves_its_contract(trained: Workspace) -> None:
    folder = trained.output / SMOKE
    assert {p.name for p in folder.iterdir()} - {".lock"} == {
        "config.yaml",
        "fold0",
        "leaks.json",
        "metrics.json",
        "oof.parquet",
        "parity.json",
        "parity.png",
        "record.json",
    }
    steps = {"adapter", "merged", "blend", "oof", "blend_before", "before"}
    assert {p.name for p in (folder / "fold0").iterdir()} == steps
    assert all((folder / "fold0" / step / "record.json").is_file() for step in steps)
    metrics = read(folder / "metrics.json")
    assert list(metrics) == [
        *("run", "metric", "greater_is_better", "cv", "interval", "before", "folds", "groups", "also", "smoke")
    ]
    assert metrics["run"] == SMOKE and metrics["smoke"] is True and metrics["before"] is not None
    assert metrics["folds"] == [{"fold": 0, "score": metrics["cv"], "rows": 4}]
    assert not any(str(trained.root) in path.read_text() for path in folder.rglob("*.json")), "no absolute paths"


def test_cv_is_the_metric_of_the_out_of_fold_rows(trained: Workspace) -> None:
    from kaggle_llm.competition import CompetitionSettings
    from kaggle_llm.competitions.demo_misconceptions import DemoMisconceptions

    data = trained.root / "input" / "demo-misconceptions"
    competition = DemoMisconceptions(CompetitionSettings("demo-misconceptions"), data)
    oof = pl.read_parquet(trained.output / SMOKE / "oof.parquet")
    assert oof.columns == ["id", "items", "scores", "fold", "seed", "prediction"]
    truth = competition.truth(competition.table("train"))
    metrics = read(trained.output / SMOKE / "metrics.json")
    assert metrics["cv"] == pytest.approx(competition.metric.score(oof, truth))
    assert oof["prediction"].to_list() == [" ".join(items) for items in oof["items"].to_list()]


def test_a_second_start_reuses_every_step(trained: Workspace) -> None:
    adapter = trained.output / SMOKE / "fold0" / "adapter" / "adapter_model.safetensors"
    before = adapter.stat().st_mtime_ns, read(trained.output / SMOKE / "record.json")["key"]
    said = succeed(trained.train("exp002_rerank", "--smoke"))
    assert "…" not in said.replace("…  ", "") and said.count("is complete, reused") >= 6
    assert (adapter.stat().st_mtime_ns, read(trained.output / SMOKE / "record.json")["key"]) == before


def test_another_setting_makes_what_depends_on_it_again_and_says_so(trained: Workspace, retrieved: Path) -> None:
    shutil.copytree(retrieved, retrieved.with_name("exp001_retrieve--other-smoke"))
    done = trained.train("exp001_retrieve", "--smoke", "run=other", "retrieval.smoothing=10")
    assert "fold0/oof is made again: retrieval.smoothing: 60.0 → 10.0" in succeed(done)
    assert "was made with other settings" in done.stderr


def test_what_needs_no_model_loads_no_torch(rehearsed: Workspace, tmp_path: Path) -> None:
    """Commands one after the other in one interpreter, and the start of a run that is complete."""
    workspace, run = copy_workspace(rehearsed, tmp_path / "fresh"), "exp001_retrieve--smoke"
    code = f"""
import runpy, sys
import kaggle_llm.kaggle.predict
from kaggle_llm.cli import main

assert not {{"numpy", "polars", "omegaconf"}} & sys.modules.keys(), "a prediction begins with its manifest"

def call(program, *words):
    sys.argv = [str(program), *words]
    try:
        program() if callable(program) else runpy.run_path(program, run_name="__main__")
    except SystemExit as stopped:
        assert not stopped.code, (words, stopped.code)
    assert not {{"torch", "transformers", "sentence_transformers"}} & sys.modules.keys(), words

for words in ("board", "new exp001_retrieve exp905_next", "trace {run}", "bundle {run}", "compare {run} {run}"):
    call(main, *words.split())
sys.modules["vllm"] = None  # not installed: where it is, torch is asked for a GPU
sys.path.insert(0, "exp/exp001_retrieve")
call("exp/exp001_retrieve/train.py", "--smoke")
"""
    assert "fold0/oof is complete, reused" in succeed(workspace.call(sys.executable, "-c", code))


def test_a_half_written_step_is_never_read(trained: Workspace, retrieved: Path) -> None:
    """What a kill leaves: a folder without a record."""
    step = shutil.copytree(retrieved, retrieved.with_name("exp001_retrieve--killed-smoke")) / "fold0" / "oof"
    (step / "record.json").unlink()
    (step / "ranking.parquet").write_bytes(b"half")
    assert "fold0/oof …" in succeed(trained.train("exp001_retrieve", "--smoke", "run=killed"))
    assert pl.read_parquet(step / "ranking.parquet").height == 8


def test_a_copy_is_a_new_experiment_with_zero_edits(trained: Workspace) -> None:
    source, copy = (trained.root / "exp" / name for name in ("exp001_retrieve", "exp900_copy"))
    outputs = {path.name for path in trained.output.iterdir()}
    shutil.copytree(source, copy)
    succeed(trained.train("exp900_copy", "--smoke", PYTHONDONTWRITEBYTECODE=""))
    difference = subprocess.run(["diff", "-r", "-x", "__pycache__", source, copy], capture_output=True, check=False)
    assert difference.returncode == 0 and not difference.stdout
    assert {path.name for path in trained.output.iterdir()} - outputs == {"exp900_copy--smoke"}


def test_new_copies_and_remembers_the_parent(trained: Workspace) -> None:
    succeed(trained.cli("new", "exp001_retrieve", "exp901_new"))
    assert read(trained.output / "exp901_new" / "parent.json") == {"parent": "exp001_retrieve"}
    again = trained.cli("new", "exp001_retrieve", "exp901_new")
    assert again.returncode != 0 and "exists" in again.stderr and "Traceback" not in again.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lora.rank=8"], "lora.rank: unknown key"),
        (["training.learning_rte=1.0e-4"], "did you mean 'learning_rate'?"),
        (["prompt.labels=[Yes, No]"], "YAML reads Yes, No"),
        (["seed=zero", "lora.r=big"], "2 problem(s)"),
        (["retrieval.encoder=input/models/none"], "model folder input/models/none does not exist"),
        (["prompt.labels=[' Yes', ' Certainly not']"], "tokens"),
        (["competition.dir=input/none"], "does not exist: run `kaggle-llm fetch"),
        (["--fast"], "--fast: arguments are key=value"),
        (["run=a b"], "run = 'a b'"),
        (["run=my-smoke"], "a run of --smoke is named so"),
        (["prompt.budgets.quetsion=5"], "budgets of ['quetsion']"),
        (["retrieval.query='{quesion}'"], "asks for ['quesion']"),
    ],
)
def test_bad_input_is_one_clear_error(trained: Workspace, words: list[str], said: str) -> None:
    name = [] if any(word.startswith("run=") for word in words) else ["run=bad"]
    done = trained.train("exp002_rerank", "--smoke", *words, *name)
    assert done.returncode != 0 and said in done.stderr and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert not list(trained.output.glob("*bad*/metrics.json"))


def test_a_second_experiment_in_one_process_is_refused(trained: Workspace) -> None:
    code = """
from pathlib import Path
from kaggle_llm.run import import_predict
import_predict(Path("exp/exp001_retrieve"))
import_predict(Path("exp/exp002_rerank"))
"""
    done = trained.python("-c", code)
    assert done.returncode != 0 and "needs a process of its own" in done.stderr


@pytest.mark.slow
def test_more_folds_keep_what_is_there(trained: Workspace) -> None:
    """Fold 0 first, all folds later: what fold 0 needed is not made again."""
    words = ("--smoke", "run=folds", "folds.count=2", "folds.rows=null", "training.tokens=300", "reranker.depth=2")
    succeed(trained.train("exp002_rerank", *words, "folds.validate=[0]"))
    said = succeed(trained.train("exp002_rerank", *words, "folds.validate=[0,1]"))
    assert all(f"fold0/{step} is complete, reused" in said for step in ("adapter", "merged", "blend", "oof"))
    assert "fold1/adapter …" in said
    metrics = read(trained.output / "exp002_rerank--folds-smoke" / "metrics.json")
    assert [fold["fold"] for fold in metrics["folds"]] == [0, 1] and sum(f["rows"] for f in metrics["folds"]) == 60


def test_two_starts_of_one_run_do_not_meet(trained: Workspace) -> None:
    import fcntl

    folder = trained.output / "exp001_retrieve--locked-smoke"
    folder.mkdir()
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = trained.train("exp001_retrieve", "--smoke", "run=locked")
    assert done.returncode != 0 and "is being made by another process" in done.stderr


def test_compare_prints_the_paired_interval(trained: Workspace, retrieved: Path) -> None:
    said = succeed(trained.cli("compare", SMOKE, retrieved.name))
    assert "paired 95 % interval" in said and " all " in said
