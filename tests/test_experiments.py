"""Experiments as processes, on pico models: what a run leaves, what it reuses, what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from workspace import ROOT, Workspace, copy_workspace, read_answers, succeed

from kaggle_llm.base import records

PACKAGE = ROOT / "src" / "kaggle_llm"
SMOKE = "exp002_rerank--smoke"
# train.py where nothing can be computed by a model, and nothing trained.
WITHOUT_MODELS = """
import os, runpy, sys
import kaggle_llm.experiment.part, kaggle_llm.inference.run, kaggle_llm.weights.recorder
def refuse(*words, **more):
    raise RuntimeError("a model was loaded")
for module in (kaggle_llm.inference.run, kaggle_llm.weights.recorder):
    module.make_engine = refuse
kaggle_llm.experiment.part.fine_tune = refuse
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# train.py that is killed before the call of a function of the package.
KILLED = """
import importlib, os, runpy, signal, sys
module, owner, name = sys.argv[1:4]
def die(*words, **more):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(getattr(importlib.import_module(module), owner), name, die)
sys.argv = sys.argv[4:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def train_without_models(
    workspace: Workspace, experiment: str, *words: str, **more: str
) -> subprocess.CompletedProcess[str]:
    """What needs a model raises an error."""
    train = str(workspace.root / "exp" / experiment / "train.py")
    return workspace.python("-c", WITHOUT_MODELS, train, *words, **more)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, f"{old!r} is not once in {path.name}"
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def retrieved(trained: Workspace) -> Path:
    """A complete smoke run of exp001; read only."""
    return trained.output / "exp001_retrieve--smoke"


def test_a_run_leaves_its_contract(trained: Workspace) -> None:
    folder = trained.output / SMOKE
    assert {p.name for p in folder.iterdir()} - {".lock"} == {
        "config.yaml",
        "decision",
        "fold0",
        "leaks.json",
        "metrics.json",
        "oof.parquet",
        "parity.json",
        "parity.png",
        "record.json",
    }
    steps = {"adapter", "merged"}
    assert {p.name for p in (folder / "fold0").iterdir()} == {*steps, "decision"}
    assert all((folder / "fold0" / step / "record.json").is_file() for step in steps)
    for fitted in (folder / "decision", folder / "fold0" / "decision"):
        assert list(read(fitted / "decision.json")) == ["value", "parts", "rows"]
    assert not any("making" in path.name or path.name.endswith(".old") for path in folder.rglob("*"))
    metrics = read(folder / "metrics.json")
    assert list(metrics) == [
        *("run", "metric", "greater_is_better", "cv", "interval", "before", "folds", "groups", "also", "smoke")
    ]
    assert metrics["run"] == SMOKE and metrics["smoke"] is True and metrics["before"] is not None
    assert metrics["folds"] == [{"fold": 0, "score": metrics["cv"], "rows": 4}]
    assert not any(str(trained.root) in path.read_text() for path in folder.rglob("*.json")), "no absolute paths"


def test_cv_is_the_metric_of_the_out_of_fold_rows(trained: Workspace) -> None:
    from kaggle_llm.competition.competition import CompetitionSettings
    from kaggle_llm.competition.demo_misconceptions import DemoMisconceptions

    data = trained.root / "input" / "demo-misconceptions"
    competition = DemoMisconceptions(CompetitionSettings("demo-misconceptions"), data)
    oof = pl.read_parquet(trained.output / SMOKE / "oof.parquet")
    assert oof.columns == ["id", "items", "scores", "fold", "seed", "prediction"]
    truth = competition.truth(competition.table("train"))
    metrics = read(trained.output / SMOKE / "metrics.json")
    assert metrics["cv"] == pytest.approx(competition.metric.score(oof, truth))
    assert oof["prediction"].to_list() == [" ".join(items) for items in oof["items"].to_list()]


def test_a_second_start_trains_nothing_and_asks_nothing(trained: Workspace) -> None:
    folder, answers = trained.output / SMOKE, read_answers(trained)
    files = ["oof.parquet", "metrics.json", "decision/decision.json", "fold0/decision/decision.json", "parity.json"]
    before = [(folder / name).read_bytes() for name in files]
    adapter = folder / "fold0" / "adapter" / "adapter_model.safetensors"
    made = adapter.stat().st_mtime_ns, read(folder / "record.json")["key"]
    said = succeed(train_without_models(trained, "exp002_rerank", "--smoke"))
    assert all(f"fold0/{step} is complete, reused" in said for step in ("adapter", "merged"))
    assert "…" not in said.replace("…  ", "") and "is made again" not in said
    assert (adapter.stat().st_mtime_ns, read(folder / "record.json")["key"]) == made
    assert [(folder / name).read_bytes() for name in files] == before
    assert answers and read_answers(trained) == answers


def test_what_cannot_be_computed_without_a_model_is_noticed(trained: Workspace) -> None:
    """The two tests around this one would see a model that is loaded, and a training."""
    words = ("--smoke", "run=sabotaged")
    done = train_without_models(trained, "exp001_retrieve", *words, "retrieval.query='{question}'")
    assert done.returncode != 0 and "a model was loaded" in done.stderr
    done = train_without_models(trained, "exp002_rerank", *words, "lora.r=8")
    assert done.returncode != 0 and "a model was loaded" in done.stderr
    assert "fold0/adapter …" in done.stdout


EDITS = {  # of predict.py: what stands there, what takes its place
    "a text": ('"""The weight of the reranker\'s score beside the retrieval\'s rank."""', '"""Said otherwise."""'),
    "post-processing": (
        "    return loaded.reranker.score(",
        "    retrieved = retrieved.with_columns(pl.col('items', 'scores').list.head(20))\n"
        "    return loaded.reranker.score(",
    ),
    "the decision": (
        "def decision(",
        "class Trusting(Blend):\n    def fit(self, scored, truth, metric):\n        return Trusting(3.0)\n\n\n"
        "def decision(",
    ),
    "the decision that is made": ("    return Blend()", "    return Trusting()"),
}


@pytest.mark.slow
def test_edits_behind_the_model_ask_nothing_and_count(trained: Workspace, tmp_path: Path) -> None:
    """One after the other: a text, post-processing and the decision of predict.py, then the competition's metric.

    The adapter ships as it is, so that parity has no stages to ask.
    """
    workspace = copy_workspace(trained, tmp_path)
    words = ("--smoke", "run=edited", "merge.into=nothing", "folds.rows=12")
    predict, run = workspace.root / "exp" / "exp002_rerank" / "predict.py", "exp002_rerank--edited-smoke"
    succeed(workspace.train("exp002_rerank", *words))
    answers, found = read_answers(workspace), {"": describe_run(workspace, run)}
    for what, (old, new) in EDITS.items():
        edit(predict, old, new)
        said = succeed(train_without_models(workspace, "exp002_rerank", *words))
        assert "fold0/adapter is complete, reused" in said, what
        found[what] = describe_run(workspace, run)
    shutil.copytree(PACKAGE, workspace.root / "src" / "kaggle_llm", ignore=shutil.ignore_patterns("__pycache__"))
    competition = workspace.root / "src" / "kaggle_llm" / "competition" / "demo_misconceptions.py"
    edit(competition, "metric = mean_average_precision(CUT)", "metric = mean_average_precision(3)")
    succeed(train_without_models(workspace, "exp002_rerank", *words, PYTHONPATH=str(workspace.root / "src")))
    found["the metric"] = describe_run(workspace, run)
    assert read_answers(workspace) == answers
    assert found[""] == found["a text"] and found[""]["lengths"] == {25}
    assert found["post-processing"]["lengths"] == {20}
    assert found["the decision that is made"]["weight"] == 3.0 != found[""]["weight"]
    assert [one["metric"] for one in found.values()] == ["map@25"] * 5 + ["map@3"]
    assert len({one["code"] for one in found.values()}) == 5, "all but the text are other code than before"


def describe_run(workspace: Workspace, run: str) -> dict[str, Any]:
    folder = workspace.output / run
    return {
        "code": read(folder / "record.json")["inputs"]["code"],
        "lengths": set(pl.read_parquet(folder / "oof.parquet")["items"].list.len()),
        "weight": read(folder / "decision" / "decision.json")["value"]["weight"],
        "metric": read(folder / "metrics.json")["metric"],
    }


def test_another_setting_trains_again_what_depends_on_it_and_says_so(trained: Workspace) -> None:
    run, answers = trained.output / "exp002_rerank--other-smoke", read_answers(trained)
    shutil.copytree(trained.output / SMOKE, run)
    key = read(run / "fold0" / "merged" / "record.json")["key"]
    done = trained.train("exp002_rerank", "--smoke", "run=other", "lora.r=8")
    said = succeed(done)
    assert "fold0/adapter is made again: lora.r: 16 → 8" in said and "training on" in said
    assert "fold0/merged is made again: adapter: " in said
    assert "was made with other settings: lora.r: 16 → 8" in done.stderr
    assert read(run / "fold0" / "adapter" / "adapter_config.json")["r"] == 8
    assert read(run / "fold0" / "merged" / "record.json")["key"] != key
    assert read_answers(trained) > answers, "the new model is asked"


def test_a_setting_behind_the_model_asks_nothing_and_is_said(trained: Workspace, retrieved: Path) -> None:
    run = retrieved.with_name("exp001_retrieve--smoother-smoke")
    shutil.copytree(retrieved, run)
    done = train_without_models(trained, "exp001_retrieve", "--smoke", "run=smoother", "retrieval.smoothing=10")
    succeed(done)
    assert "was made with other settings: retrieval.smoothing: 60.0 → 10.0" in done.stderr
    before, after = (pl.read_parquet(folder / "oof.parquet") for folder in (retrieved, run))
    assert after["id"].equals(before["id"]) and not after["scores"].equals(before["scores"])


def test_scores_of_other_settings_are_no_complete_run(trained: Workspace, retrieved: Path) -> None:
    """Killed between its scores and what ships, a run's record would speak of the scores that were there before."""
    run = retrieved.with_name("exp001_retrieve--halfway-smoke")
    shutil.copytree(retrieved, run)
    train, words = str(trained.root / "exp" / "exp001_retrieve" / "train.py"), ("--smoke", "run=halfway")
    where = ("kaggle_llm.experiment.experiment", "Experiment", "ship")
    killed = trained.python("-c", KILLED, *where, train, *words, "retrieval.k=3")
    assert killed.returncode == -signal.SIGKILL
    assert set(pl.read_parquet(run / "oof.parquet")["items"].list.len()) == {3}
    done = trained.cli("compare", run.name, SMOKE)
    assert done.returncode != 0 and "is no complete run" in done.stderr
    succeed(trained.train("exp001_retrieve", *words, "retrieval.k=3"))
    assert read(run / "record.json")["settings"]["config"]["retrieval"]["k"] == 3


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
    assert f"{run}: complete in" in succeed(workspace.call(sys.executable, "-c", code))


def test_a_half_written_step_is_never_read(trained: Workspace) -> None:
    """What a kill leaves: a folder without a record."""
    whole = trained.output / SMOKE / "fold0" / "merged" / "model.safetensors"
    run = shutil.copytree(trained.output / SMOKE, trained.output / "exp002_rerank--killed-smoke")
    step = run / "fold0" / "merged"
    (step / "record.json").unlink()
    (step / "model.safetensors").write_bytes(b"half")
    said = succeed(trained.train("exp002_rerank", "--smoke", "run=killed"))
    assert "  cv " in said and "  before " in said and "paired 95 % interval" in said, "the scores are printed"
    assert "fold0/adapter is complete, reused" in said and "fold0/merged …" in said
    assert (step / "model.safetensors").read_bytes() == whole.read_bytes()


def test_a_copy_is_a_new_experiment_with_zero_edits(trained: Workspace) -> None:
    source, copy = (trained.root / "exp" / name for name in ("exp001_retrieve", "exp900_copy"))
    outputs = {path.name for path in trained.output.iterdir()}
    shutil.copytree(source, copy)
    succeed(trained.train("exp900_copy", "--smoke", PYTHONDONTWRITEBYTECODE=""))
    difference = subprocess.run(["diff", "-r", "-x", "__pycache__", source, copy], capture_output=True, check=False)
    assert difference.returncode == 0 and not difference.stdout
    assert {path.name for path in trained.output.iterdir()} - outputs == {"exp900_copy--smoke"}


def test_two_trained_models_of_a_part_keep_their_own_folders(trained: Workspace, tmp_path: Path) -> None:
    exp = trained.root / "exp" / "exp901_two"
    shutil.copytree(trained.root / "exp" / "exp002_rerank", exp)
    train = (exp / "train.py").read_text()
    learn = "        part.loaded.reranker.learn(part, draw_candidates)\n"
    second = """        from kaggle_llm.tasks.choice_training import ChoiceTask
        prompts = part.loaded.reranker.prompts
        task = ChoiceTask(part.config.choice, prompts.prompter.labels)
        part.learn("second", task, lambda part: prompts.groups(part.train, draw_candidates(part, 4))[1:])
"""
    assert learn in train
    (exp / "train.py").write_text(train.replace(learn, learn + second))
    succeed(trained.train("exp901_two", "--smoke", "models.second=input/models/SmolLM2-135M-Instruct", "run=a"))
    fold = trained.output / "exp901_two--a-smoke" / "fold0"
    base = trained.root / "input" / "models" / "SmolLM2-135M-Instruct"
    record = json.loads((fold.parent / "record.json").read_text())
    folders = {model["name"]: model["folder"] for model in record["settings"]["ship"]}
    for name, own in (("reranker", fold), ("second", fold / "second")):
        assert folders[name] == (own / "merged").relative_to(trained.root).as_posix()
        inputs = json.loads((own / "merged" / "record.json").read_text())["inputs"]
        assert inputs["adapter"] == records.hash_content(own / "adapter"), f"{name} is merged from its own adapter"
        assert inputs["base"] == records.hash_content(base)


def test_new_copies_and_remembers_the_parent(trained: Workspace) -> None:
    succeed(trained.cli("new", "exp001_retrieve", "exp901_new"))
    assert read(trained.output / "exp901_new" / "parent.json") == {"parent": "exp001_retrieve"}
    again = trained.cli("new", "exp001_retrieve", "exp901_new")
    assert again.returncode != 0 and "exists" in again.stderr and "Traceback" not in again.stderr


BAD = [  # words of train.py, and what it says
    (["lora.rank=8"], "lora.rank: unknown key"),
    (["training.learning_rte=1.0e-4"], "did you mean 'learning_rate'?"),
    (["prompt.labels=[Yes, No]"], "YAML reads Yes, No"),
    (["seed=zero", "lora.r=big"], "2 problem(s)"),
    (["models.encoder=input/models/none"], "model folder input/models/none does not exist"),
    (["prompt.labels=[' Yes', ' Certainly not']"], "tokens"),
    (["competition.dir=input/none"], "does not exist: run `kaggle-llm fetch"),
    (["--fast"], "--fast: arguments are key=value"),
    (["run=a b"], "run = 'a b'"),
    (["run=my-smoke"], "only runs of --smoke have that ending"),
    (["prompt.budgets.quetsion=5"], "budgets of ['quetsion']"),
    (["retrieval.query='{quesion}'"], "asks for ['quesion']"),
    (["quantize.scheme=gptq"], "set quantize.group_size=64"),
    (["quantize.scheme=gptq", "quantize.group_size=64", "merge.into=nothing"], "an adapter is not quantised"),
    (["ship=folds"], "ship = folds, but only fold [0] is validated"),
    (["folds.validate=[7]"], "name one or more of the folds 0 to 4"),
]
# train.py once for each list of words, in one process: exit code, output and errors of each.
EACH = """
import contextlib, io, json, os, runpy, sys
train, results = sys.argv[1], []
sys.path[0] = os.path.dirname(train)
for number, words in enumerate(json.loads(sys.argv[2])):
    sys.argv = [train, "--smoke", f"run=bad{number}", *words]
    if any(word.startswith("run=") for word in words):
        del sys.argv[2]
    code, said, errors = 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(errors):
        try:
            runpy.run_path(train, run_name="__main__")
        except SystemExit as stopped:
            code = stopped.code
        except Exception as error:
            code = 1
            sys.excepthook(type(error), error, error.__traceback__)
    results.append((code, said.getvalue(), errors.getvalue()))
print(json.dumps(results))
"""


@pytest.fixture(scope="module")
def refused(trained: Workspace) -> dict[str, tuple[int, str, str]]:
    train = str(trained.root / "exp" / "exp002_rerank" / "train.py")
    done = trained.python("-c", EACH, train, json.dumps([words for words, _ in BAD]))
    return {said: tuple(result) for (_, said), result in zip(BAD, json.loads(succeed(done)), strict=True)}


@pytest.mark.parametrize("said", [said for _, said in BAD])
def test_bad_input_is_one_clear_error(trained: Workspace, refused: dict[str, tuple[int, str, str]], said: str) -> None:
    code, output, errors = refused[said]
    assert code and said in errors and "Traceback" not in errors, errors[-2000:]
    assert "training on" not in output, "it is said before anything takes long"
    assert not list(trained.output.glob("*bad*/metrics.json"))


def test_a_second_experiment_in_one_process_is_refused(trained: Workspace) -> None:
    code = """
from pathlib import Path
from kaggle_llm.inference.run import import_predict
import_predict(Path("exp/exp001_retrieve"))
import_predict(Path("exp/exp002_rerank"))
"""
    done = trained.python("-c", code)
    assert done.returncode != 0 and "needs a process of its own" in done.stderr


@pytest.mark.slow
def test_more_folds_keep_what_is_there(trained: Workspace) -> None:
    """Fold 0 first, all folds later: what fold 0 needed is not made or asked again."""
    words = ("--smoke", "run=folds", "folds.count=2", "folds.rows=null", "training.tokens=300", "depth=2")
    succeed(trained.train("exp002_rerank", *words, "folds.validate=[0]"))
    before = read_answers(trained)
    said = succeed(trained.train("exp002_rerank", *words, "folds.validate=[0,1]"))
    assert all(f"fold0/{step} is complete, reused" in said for step in ("adapter", "merged"))
    assert "fold1/adapter …" in said and "fold1/merged …" in said
    run = trained.output / "exp002_rerank--folds-smoke"
    metrics = read(run / "metrics.json")
    assert [fold["fold"] for fold in metrics["folds"]] == [0, 1] and sum(f["rows"] for f in metrics["folds"]) == 60
    notes = {read(path)["model"]: path.stem for path in trained.output.glob("cache/answers/*.json")}
    first, second = (notes[f"output/{run.name}/fold{k}/merged"] for k in (0, 1))
    new = {model for model, _ in read_answers(trained) - before}
    assert second in new and first not in new


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
