"""The boot script on hand-made mounts, with a prediction that only waits: layouts, what is missing, the time limit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from workspace import ROOT

from kaggle_llm.runtime.pins import default_runtime

PREDICT = """
import subprocess, sys, time
from pathlib import Path
working = Path(sys.argv[sys.argv.index("--working") + 1])
(working / "prediction.json").write_text('{{"rows": 3, "load_seconds": 1.5, "seconds": 2.5}}')
if {offer}:
    (working / "submission.csv").write_text("id,cell\\n")
worker = subprocess.Popen(["sleep", "{seconds}"], process_group=0)
(working / "worker").write_text(str(worker.pid))
print("started", flush=True)
time.sleep({seconds})
sys.exit({code})
"""


def mount(root: Path, layout: str, offer: bool = True, seconds: float = 0, code: int = 0) -> Path:
    """input/ with a code dataset `a-code`, a model dataset `a-weights` and the competition `comp`."""
    folder = root / "input" / layout / "a-code"
    package = folder / "src" / "kaggle_llm" / "kaggle"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("")
    (package / "predict.py").write_text(PREDICT.format(offer=offer, seconds=seconds, code=code))
    shutil.copytree(ROOT / "src" / "kaggle_llm" / "runtime", package.parent / "runtime")
    runtime = asdict(default_runtime())
    about = {"slug": "a-code", "competition": "comp", "models": {"reranker": "a-weights"}, "runtime": runtime}
    about |= {"kind": "code", "wheels": None}
    (folder / "MANIFEST.json").write_text(json.dumps(about))
    weights = root / "input" / layout / "a-weights"
    weights.mkdir()
    (weights / "MANIFEST.json").write_text('{"slug": "a-weights"}')
    other = root / "input" / layout / "somebody-elses"
    other.mkdir()
    (other / "MANIFEST.json").write_text("[1, 2]")
    (root / "input" / ("competitions/comp" if layout else "comp")).mkdir(parents=True)
    (root / "working").mkdir()
    return folder


def boot(root: Path, code: Path, limit: float = 60, **more: str) -> subprocess.CompletedProcess[str]:
    program = f"import boot; from pathlib import Path; boot.main(Path({str(code)!r}), Path({str(root)!r}))"
    environment = {"PYTHONPATH": str(ROOT / "submission"), "KAGGLE_LLM_LIMIT": str(limit), **more}
    command = [sys.executable, "-B", "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def is_running(process: int) -> bool:
    """Where nobody waits for it, a killed process stays as a zombie."""
    return psutil.pid_exists(process) and psutil.Process(process).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("layout", ["datasets/alice", ""])
def test_both_mount_layouts_are_found(tmp_path: Path, layout: str) -> None:
    done = boot(tmp_path, mount(tmp_path, layout))
    assert done.returncode == 0, done.stderr
    assert "started" in done.stdout


def test_a_machine_that_will_not_do_stops_the_notebook_on_kaggle_only(tmp_path: Path) -> None:
    code, commands = mount(tmp_path, "datasets/alice"), tmp_path / "commands"
    commands.mkdir()
    (commands / "sleep").symlink_to(shutil.which("sleep") or "")
    here = boot(tmp_path, code, PATH=str(commands))
    assert here.returncode == 0 and "refused GPUs: nvidia-smi says nothing" in here.stdout
    there = boot(tmp_path, code, PATH=str(commands), KAGGLE_KERNEL_RUN_TYPE="Batch")
    assert there.returncode != 0 and "this machine will not do (GPUs" in there.stderr
    assert "started" not in there.stdout


def test_what_is_not_attached_is_named(tmp_path: Path) -> None:
    code = mount(tmp_path, "datasets/alice")
    (tmp_path / "input" / "datasets" / "alice" / "a-weights" / "MANIFEST.json").unlink()
    assert "['a-weights'] are not attached; attached are ['a-code']" in boot(tmp_path, code).stderr
    (tmp_path / "input" / "datasets" / "alice" / "a-weights" / "MANIFEST.json").write_text('{"slug": "a-weights"}')
    (tmp_path / "input" / "competitions" / "comp").rmdir()
    assert "competition comp is not attached" in boot(tmp_path, code).stderr


def test_a_failed_prediction_fails_the_notebook(tmp_path: Path) -> None:
    done = boot(tmp_path, mount(tmp_path, "datasets/alice", code=3))
    assert done.returncode != 0 and "prediction ended with exit code 3" in done.stderr


def test_a_prediction_is_killed_at_the_limit_and_what_it_offered_stays(tmp_path: Path) -> None:
    start = time.monotonic()
    done = boot(tmp_path, mount(tmp_path, "datasets/alice", seconds=50), limit=2)
    assert time.monotonic() - start < 20
    assert done.returncode == 0 and "killed at the limit of 2 s" in done.stdout
    assert not is_running(int((tmp_path / "working" / "worker").read_text())), "in a process group of its own"
    assert (tmp_path / "working" / "submission.csv").is_file()


def test_a_kill_before_any_offer_is_an_error(tmp_path: Path) -> None:
    done = boot(tmp_path, mount(tmp_path, "datasets/alice", offer=False, seconds=50), limit=2)
    assert done.returncode != 0 and "before any submission was offered" in done.stderr
