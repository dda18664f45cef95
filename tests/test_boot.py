"""The boot script on hand-made mounts, with a prediction that only waits: layouts, wheels, what is missing, time."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_wheels import write_wheel
from workspace import ROOT

from kaggle_llm.competition.competition import notebook_seconds
from kaggle_llm.runtime.pins import DEFAULT, load_runtime
from kaggle_llm.runtime.wheels import store_name

HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"
CPYTHON = f"cp{HERE.replace('.', '')}"
PREDICT = """
import os, subprocess, sys, time
from pathlib import Path
working = Path(sys.argv[sys.argv.index("--working") + 1])
(working / "prediction.json").write_text('{{"rows": 3, "load_seconds": 1.5, "seconds": 2.5}}')
if {offer}:
    (working / "submission.csv").write_text("id,cell\\n")
worker = subprocess.Popen(["sleep", "{seconds}"], process_group=0)
(working / "worker").write_text(str(worker.pid))
places = [following for word, following in zip(sys.argv, sys.argv[1:]) if word == "--place"]
print("started on", sys.argv[sys.argv.index("--competition") + 1], *sorted(places))
print(os.environ["USE_TF"], os.environ["HF_HUB_OFFLINE"], flush=True)
{more}
time.sleep({seconds})
sys.exit({code})
"""


def mount(
    root: Path, layout: str = "datasets/alice", offer: bool = True, seconds: float = 0, code: int = 0, more: str = ""
) -> Path:
    """input/ with a code dataset `a-code`, a model dataset `a-weights` and the competition `comp`.

    more: lines of the prediction.
    """
    folder = root / "input" / layout / "a-code"
    package = folder / "src" / "kaggle_llm" / "kaggle"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "predict.py").write_text(PREDICT.format(offer=offer, seconds=seconds, code=code, more=more))
    shutil.copytree(ROOT / "src" / "kaggle_llm" / "runtime", package.parent / "runtime")
    shutil.copytree(ROOT / "src" / "kaggle_llm" / "base", package.parent / "base")
    shutil.copytree(ROOT / "submission", folder / "submission")
    runtime = asdict(load_runtime(DEFAULT))
    models = [{"name": "reranker", "folder": "a-weights"}]
    about: dict[str, Any] = {"slug": "a-code", "competition": "comp", "models": models, "runtime": runtime}
    about |= {"kind": "code", "wheels": None}
    (folder / "MANIFEST.json").write_text(json.dumps(about))
    weights = root / "input" / layout / "a-weights"
    weights.mkdir()
    (weights / "MANIFEST.json").write_text('{"slug": "a-weights"}')
    other = root / "input" / layout / "somebody-elses"
    other.mkdir()
    (other / "MANIFEST.json").write_text("[1, 2]")
    (other.parent / "no-json").mkdir()
    (other.parent / "no-json" / "MANIFEST.json").write_text("see README")
    places = {"datasets/alice": "competitions/comp", "": "comp"}
    (root / "input" / places.get(layout, "here/or/there/comp")).mkdir(parents=True)
    (root / "working").mkdir()
    return folder


def change(folder: Path, **values: Any) -> None:
    """Other values in the manifest of a dataset; `python` is the runtime's."""
    path = folder / "MANIFEST.json"
    manifest = json.loads(path.read_text())
    if "python" in values:
        manifest["runtime"]["image"]["python"] = values.pop("python")
    path.write_text(json.dumps(manifest | values))


def boot(
    root: Path, code: Path, limit: float = 60, before: str = "", prepare: Callable[[], None] | None = None, **more: str
) -> subprocess.CompletedProcess[str]:
    """boot.main as the notebook calls it. before: a line of the notebook's; prepare: run in the new process."""
    program = f"import boot; from pathlib import Path\n{before}\nboot.main(Path({str(code)!r}), Path({str(root)!r}))"
    scratch = root / "scratch"
    scratch.mkdir(exist_ok=True)
    environment = {"PYTHONPATH": str(ROOT / "submission"), "KAGGLE_LLM_LIMIT": str(limit), "TMPDIR": str(scratch)}
    command = [sys.executable, "-B", "-c", program]
    how: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60, "check": False}
    return subprocess.run(command, env={**environment, **more}, preexec_fn=prepare, **how)


def run_cells(root: Path) -> subprocess.CompletedProcess[str]:
    """The notebook's cells, one after the other."""
    command = [sys.executable, "-B", "-P", str(ROOT / "submission" / "notebook.py")]
    environment = {"KAGGLE_LLM_KAGGLE": str(root)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def is_running(process: int) -> bool:
    """Where nobody waits for it, a killed process stays as a zombie."""
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE


# what is attached, and where ------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["datasets/alice", "", "some/where/deep"])
def test_every_mount_layout_is_found(tmp_path: Path, layout: str) -> None:
    code = mount(tmp_path, layout)
    done = boot(tmp_path, code)
    assert done.returncode == 0, done.stderr
    competition = {"datasets/alice": "competitions/comp", "": "comp"}.get(layout, "here/or/there/comp")
    assert (
        f"started on {tmp_path / 'input' / competition} a-weights={code.parent / 'a-weights' / 'model'}" in done.stdout
    )
    assert "\n0 1\n" in done.stdout, "no TensorFlow, no network"


@pytest.mark.parametrize("layout", ["datasets/alice", "", "some/where/deep"])
def test_the_notebook_finds_the_one_bundle_in_every_layout(tmp_path: Path, layout: str) -> None:
    code = mount(tmp_path, layout)
    done = run_cells(tmp_path)
    assert done.returncode == 0, done.stderr
    table = done.stdout.splitlines()[-4:]
    assert [line.split() for line in table] == [["rows", "3"], ["seconds", "2.5"], ["load_seconds", "1.5"], ["id,cell"]]
    shutil.copytree(code, code.parent / "another")
    assert "attach exactly one code dataset" in run_cells(tmp_path).stderr
    shutil.rmtree(tmp_path / "input")
    assert "attach exactly one code dataset" in run_cells(tmp_path).stderr


@pytest.mark.parametrize("place", ["models/Owner/Model/pytorch/small/2", "Model/pytorch/small/2"])
def test_a_model_of_kaggles_is_found_however_its_mount_is_spelt(tmp_path: Path, place: str) -> None:
    code = mount(tmp_path)
    source = "owner/model/pyTorch/small/2"
    change(code, models=[{"name": "reranker", "folder": source}])
    (tmp_path / "input" / place.lower()).mkdir(parents=True)
    done = boot(tmp_path, code)
    assert f" {source}={tmp_path / 'input' / place.lower()}\n" in done.stdout, done.stderr
    change(code, models=[{"name": "reranker", "folder": "owner/model/pyTorch/small/3"}])
    assert "model owner/model/pyTorch/small/3 is not attached" in boot(tmp_path, code).stderr


def test_each_place_is_named_once_bases_and_members_too(tmp_path: Path) -> None:
    """An adapter of two folds on one base of Kaggle's, and a model that a member has as well."""
    code = mount(tmp_path)
    source, weights = "owner/model/pytorch/small/2", {"name": "reranker", "base": "owner/model/pytorch/small/2"}
    adapters = [{**weights, "folder": f"adapter{fold}", "fold": fold} for fold in (0, 1)]
    change(code, models=[*adapters, {"name": "encoder", "folder": "a-weights"}])
    for fold in (0, 1):
        (code.parent / f"adapter{fold}").mkdir()
        (code.parent / f"adapter{fold}" / "MANIFEST.json").write_text(json.dumps({"slug": f"adapter{fold}"}))
    (tmp_path / "input" / "models" / source).mkdir(parents=True)
    done = boot(tmp_path, code)
    places = {name: code.parent / name / "model" for name in ("a-weights", "adapter0", "adapter1")}
    places[source] = tmp_path / "input" / "models" / source
    said = [f"{place}={folder}" for place, folder in sorted(places.items())]
    assert f"started on {tmp_path / 'input' / 'competitions' / 'comp'} {' '.join(said)}\n" in done.stdout, done.stderr


def test_rows_of_a_timed_run_take_the_place_of_the_test_set_but_never_in_a_rerun(tmp_path: Path) -> None:
    show = "folder = Path(sys.argv[sys.argv.index('--competition') + 1])\n"
    show += "print({path.name: path.read_text() for path in sorted(folder.iterdir())})"
    code, competition = mount(tmp_path, more=show), tmp_path / "input" / "competitions" / "comp"
    for name in ("test.csv", "train.csv", "sample_submission.csv"):
        (competition / name).write_text("theirs")
    rows, files = code.parent / "my-rows", []
    rows.mkdir()
    for name in ("test.csv", "sample_submission.csv"):
        (rows / name).write_text("ours")
        files.append({"path": name, "bytes": 4, "sha256": hashlib.sha256(b"ours").hexdigest()})
    (rows / "MANIFEST.json").write_text(json.dumps({"slug": "my-rows", "kind": "rows", "files": files}))
    timed = boot(tmp_path, code)
    assert "the rows of my-rows instead of the test set" in timed.stdout, timed.stderr
    assert "{'sample_submission.csv': 'ours', 'test.csv': 'ours', 'train.csv': 'theirs'}" in timed.stdout
    rerun = boot(tmp_path, code, KAGGLE_IS_COMPETITION_RERUN="1")
    assert "'test.csv': 'theirs'" in rerun.stdout and "instead" not in rerun.stdout, rerun.stderr
    (rows / "test.csv").write_text("cut")
    assert f"{rows / 'test.csv'} is not the file of the manifest" in boot(tmp_path, code).stderr


def test_thousands_of_files_of_others_take_no_time(tmp_path: Path) -> None:
    code = mount(tmp_path, "some/where/deep")
    images = tmp_path / "input" / "here" / "or" / "images"
    for folder in range(40):
        (images / f"{folder}").mkdir(parents=True)
        for number in range(100):
            os.mknod(images / f"{folder}/{number}.png")
    find = "start = boot.time.monotonic(); boot.find_datasets(Path({0!r}), {{'a-code'}}); "
    find += "boot.find_competition(Path({0!r}), 'comp'); print('found in', boot.time.monotonic() - start)"
    done = boot(tmp_path, code, before=find.format(str(tmp_path / "input")))
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("found in ")[1].split()[0]) < 2


def test_a_machine_that_will_not_do_stops_the_notebook_on_kaggle_only(tmp_path: Path) -> None:
    code, commands = mount(tmp_path, "datasets/alice"), tmp_path / "commands"
    commands.mkdir()
    (commands / "sleep").symlink_to(shutil.which("sleep") or "")
    here = boot(tmp_path, code, PATH=str(commands))
    assert here.returncode == 0 and "refused GPUs: nvidia-smi says nothing" in here.stdout
    there = boot(tmp_path, code, PATH=str(commands), KAGGLE_KERNEL_RUN_TYPE="Batch")
    assert there.returncode != 0 and "this machine cannot run the bundle (GPUs" in there.stderr
    assert "started" not in there.stdout


def test_what_is_not_attached_is_named(tmp_path: Path) -> None:
    code = mount(tmp_path, "datasets/alice")
    (tmp_path / "input" / "datasets" / "alice" / "a-weights" / "MANIFEST.json").unlink()
    assert "['a-weights'] are not attached; attached are ['a-code']" in boot(tmp_path, code).stderr
    (tmp_path / "input" / "datasets" / "alice" / "a-weights" / "MANIFEST.json").write_text('{"slug": "a-weights"}')
    (tmp_path / "input" / "competitions" / "comp").rmdir()
    assert "competition comp is not attached" in boot(tmp_path, code).stderr


def test_a_full_working_folder_is_named_before_anything_is_done(tmp_path: Path) -> None:
    """A limit on the size of files stands for a disk without room."""
    code = mount(tmp_path)
    done = boot(tmp_path, code, prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)))
    assert done.returncode != 0 and f"{tmp_path / 'working'} takes no file of 1 MB" in done.stderr
    assert "started" not in done.stdout and not list((tmp_path / "working").iterdir())


# wheels ---------------------------------------------------------------------------------------------------------

IMPORT = (
    "import tiny, deeper, fast, local\nprint('packages', tiny.VERSION, deeper.VERSION, fast.VERSION, local.VERSION)"
)


def attach_wheels(code: Path) -> Path:
    """A dataset with a pure wheel, two that are compiled for this Python, and one of a local version; its wheels/."""
    folder = code.parent / "some-wheels"
    (folder / "wheels").mkdir(parents=True)
    more = {"inner/deeper.py": "VERSION = 'in a .pth'\n", "tiny.pth": "inner\n\nimport os\nabsent\n"}
    made = [
        write_wheel(folder, "tiny", "1.0", "py3-none-any", more=more),
        write_wheel(folder, "fast", "2.0", f"{CPYTHON}-{CPYTHON}-manylinux_2_17_x86_64"),
        write_wheel(folder, "stable", "3.0", "cp38-abi3-manylinux2014_x86_64"),
        write_wheel(folder, "local", "1.0+cu128", "py3-none-any"),
    ]
    for path in made:
        path.rename(folder / "wheels" / store_name(path.name))
    write_sums(folder, [path.name for path in made])
    change(code, wheels="some-wheels", python=HERE)
    return folder / "wheels"


def write_sums(folder: Path, names: list[str]) -> None:
    stored = [folder / "wheels" / store_name(name) for name in names]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in stored]
    lines = [f"{d}  {path.name}  {name}\n" for d, path, name in zip(digests, stored, names, strict=True)]
    (folder / "wheels" / "SHA256SUMS").write_text("".join(lines))
    about = {"slug": "some-wheels", "kind": "wheels", "content": hashlib.sha256("".join(lines).encode()).hexdigest()}
    (folder / "MANIFEST.json").write_text(json.dumps(about))


def test_wheels_are_installed_once_and_seen_by_the_prediction_only(tmp_path: Path) -> None:
    code = mount(tmp_path, "some/where/deep", more=IMPORT)
    wheels = attach_wheels(code)
    after = "import atexit\natexit.register(lambda: print('here', __import__('importlib.util').util.find_spec('tiny')))"
    first = boot(tmp_path, code, before=after)
    assert first.returncode == 0, first.stderr
    assert "installing 4 packages" in first.stdout and "installed in" in first.stdout
    assert "packages 1.0 in a .pth 2.0 1.0+cu128" in first.stdout
    assert "here None" in first.stdout, "the notebook's own process has the image's packages"
    shutil.rmtree(wheels)  # nothing is read again
    second = boot(tmp_path, code)
    assert "packages 1.0 in a .pth 2.0 1.0+cu128" in second.stdout and "installed in" not in second.stdout, (
        second.stderr
    )


def test_an_installation_that_was_cut_is_made_again(tmp_path: Path) -> None:
    code = mount(tmp_path, more=IMPORT)
    attach_wheels(code)
    boot(tmp_path, code)
    (stamp,) = (tmp_path / "scratch").glob("kaggle_llm_site-*/INSTALLED")
    stamp.unlink()
    (stamp.parent / "tiny.py").write_text("half a fi")
    done = boot(tmp_path, code)
    assert "packages 1.0" in done.stdout and "installed in" in done.stdout, done.stderr


def test_a_broken_a_missing_an_unpacked_and_a_foreign_wheel_are_named(tmp_path: Path) -> None:
    code = mount(tmp_path)
    wheels = attach_wheels(code)
    wheel = next(wheels.glob("local-*"))
    content = wheel.read_bytes()
    wheel.write_bytes(content[:-1] + b"x")
    assert "wheel local-1.0+cu128-py3-none-any.whl in" in boot(tmp_path, code).stderr
    wheel.unlink()
    assert "local-1.0+cu128-py3-none-any.whl in" in (said := boot(tmp_path, code).stderr) and "missing" in said
    wheel.mkdir()
    assert "local-1.0+cu128-py3-none-any.whl in" in (said := boot(tmp_path, code).stderr) and "unpacked" in said
    foreign = write_wheel(wheels, "foreign", "1.0", "cp27-cp27m-manylinux1_x86_64")
    write_sums(wheels.parent, [foreign.name])
    done = boot(tmp_path, code)
    assert done.returncode != 0 and foreign.name in done.stderr.splitlines()[-1] and "started" not in done.stdout
    foreign.write_bytes(b"no archive")
    write_sums(wheels.parent, [foreign.name])
    assert foreign.name in boot(tmp_path, code).stderr


def test_wheels_of_another_python_are_left_alone_off_kaggle_and_that_is_said(tmp_path: Path) -> None:
    code = mount(tmp_path)
    attach_wheels(code)
    change(code, python="3.99")
    done = boot(tmp_path, code)
    assert done.returncode == 0 and f"the wheels are for Python 3.99, this is {HERE}" in done.stdout, done.stderr
    assert not list((tmp_path / "scratch").glob("kaggle_llm_site-*"))
    change(code, wheels="absent")
    assert "dataset absent is not attached; attached are ['a-code', 'a-weights', 'some-wheels']" in (
        boot(tmp_path, code).stderr
    )


# the prediction and its time ------------------------------------------------------------------------------------


def test_the_time_left_is_said_while_it_runs_and_the_times_are_kept(tmp_path: Path) -> None:
    code = mount(tmp_path, seconds=3)
    done = boot(tmp_path, code, limit=600, before="boot.TICK_SECONDS = 0.5")
    assert done.stdout.count("10 min left") >= 3, done.stdout + done.stderr
    timing = json.loads((tmp_path / "working" / "timing.json").read_text())
    assert list(timing) == ["rows", "install_seconds", "load_seconds", "seconds"] and timing["rows"] == 3
    assert 3 <= timing["seconds"] < 20 and 0 <= timing["install_seconds"] < 20
    around = timing["seconds"] - 2.5  # of prediction.json: what the process takes before and after counts as loading
    assert timing["load_seconds"] == pytest.approx(1.5 + around, abs=0.11)


def test_a_failed_prediction_fails_the_notebook(tmp_path: Path) -> None:
    done = boot(tmp_path, mount(tmp_path, "datasets/alice", code=3))
    assert done.returncode != 0 and "prediction ended with exit code 3" in done.stderr


def test_a_prediction_that_fails_after_it_offered_answers_costs_them_alone(tmp_path: Path) -> None:
    """Kaggle gives no score to a notebook that fails, whatever it wrote."""
    offered = '(working / "offered.json").write_text("{}"); (working / "prediction.json").unlink()'
    done = boot(tmp_path, mount(tmp_path, "datasets/alice", code=3, more=offered))
    assert done.returncode == 0, done.stderr
    assert "WARNING: THE PREDICTION FAILED with exit code 3" in done.stdout and "better answers are lost" in done.stdout
    assert not (tmp_path / "working" / "timing.json").exists()


def test_what_a_prediction_before_this_one_offered_does_not_count(tmp_path: Path) -> None:
    """A cell that is run again."""
    code = mount(tmp_path, "datasets/alice", code=3)
    (tmp_path / "working").mkdir(exist_ok=True)
    (tmp_path / "working" / "offered.json").write_text("{}")
    done = boot(tmp_path, code)
    assert done.returncode != 0 and "prediction ended with exit code 3" in done.stderr


@pytest.mark.parametrize(("manifest", "seconds"), [({"hours": 5.0}, 5 * 3600 - 600), ({}, 9 * 3600 - 600)])
def test_the_limit_is_the_competition_s(tmp_path: Path, manifest: dict[str, float], seconds: float) -> None:
    """KAGGLE_LLM_LIMIT is a rehearsal's."""
    code = mount(tmp_path, more='print("deadline", sys.argv[sys.argv.index("--deadline") + 1])')
    change(code, **manifest)
    start = time.time()
    done = boot(tmp_path, code, KAGGLE_LLM_LIMIT="")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("deadline")]
    assert float(line.split()[1]) - start == pytest.approx(seconds, abs=60)
    assert notebook_seconds(manifest.get("hours", 9.0)) == seconds, "a rehearsal's and submit's are the notebook's"


def test_a_prediction_is_killed_at_the_limit_and_what_it_offered_stays(tmp_path: Path) -> None:
    start = time.monotonic()
    done = boot(tmp_path, mount(tmp_path, "datasets/alice", seconds=50), limit=2)
    assert time.monotonic() - start < 20
    assert done.returncode == 0 and "killed at the limit of 2 s" in done.stdout
    assert not is_running(int((tmp_path / "working" / "worker").read_text())), "in a process group of its own"
    assert (tmp_path / "working" / "submission.csv").is_file()


def test_a_kill_before_any_offer_is_an_error(tmp_path: Path) -> None:
    done = boot(tmp_path, mount(tmp_path, "datasets/alice", offer=False, seconds=50), limit=2)
    assert done.returncode != 0 and "before any submission was written" in done.stderr
