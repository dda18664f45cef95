"""push, push --rows, push --train and submit, whole: the real kaggle CLI, a server that runs the pushed notebook."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator

import polars as pl
import pytest
from kaggle_server import OWNER, Kaggle, Kernel, environment, serve
from workspace import ROOT, Workspace, copy_workspace, succeed

from kaggle_llm.base import records
from kaggle_llm.kaggle.bundle import seal_dataset
from kaggle_llm.kaggle.hashes import Hashes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RUN = "exp001_retrieve--up"
COMPETITION = "demo-misconceptions"
# kaggle-llm as a command of this shell, that waits for a hundredth of the time.
FAST = "import time; real = time.sleep; time.sleep = lambda s: real(s / 100); from kaggle_llm.cli import main; main()"


def run_notebook(workspace: Workspace) -> object:
    """What a kernel does on the server: its notebook, on its datasets as mounted, by nbclient."""

    def execute(kaggle: Kaggle, kernel: Kernel) -> None:
        root = workspace.root.parent / f"kaggle-{len(list(workspace.root.parent.glob('kaggle-*')))}"
        for ref in kernel.request.get("datasetDataSources", []):
            for name, content in kaggle.datasets[ref].versions[-1].items():
                path = root / "input" / "datasets" / ref / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        shutil.copytree(workspace.root / "input" / COMPETITION, root / "input" / "competitions" / COMPETITION)
        (root / "working").mkdir()
        (root / "working" / "notebook.ipynb").write_text(kernel.request["text"])
        runner = ROOT / "src" / "kaggle_llm" / "rehearsal" / "execute.py"
        command = [sys.executable, str(runner), "notebook.ipynb", "executed.ipynb"]
        kept = {key: value for key, value in os.environ.items() if "KAGGLE" not in key and "proxy" not in key.lower()}
        (root / "tmp").mkdir()
        more = {"KAGGLE_LLM_KAGGLE": str(root), "OMP_NUM_THREADS": "1", "TMPDIR": str(root / "tmp")}
        done = subprocess.run(
            command, cwd=root / "working", env=kept | more, capture_output=True, text=True, timeout=240
        )
        kernel.log = done.stdout + done.stderr
        kernel.status = "ERROR" if done.returncode else "COMPLETE"
        kernel.output = {
            path.relative_to(root / "working").as_posix(): path.read_bytes()
            for path in (root / "working").rglob("*")
            if path.is_file()
        }

    return execute


@pytest.fixture(scope="module")
def shipped(light_master: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A run that is no smoke run, its bundle with wheels (of another Python: the server's machine has its own).

    Without a language model (light.py): what is tested is the way there and back.
    """
    workspace = copy_workspace(light_master, tmp_path_factory.mktemp("shipped"))
    succeed(workspace.train("exp001_retrieve", "folds.validate=[0]", "competition.hidden_rows=3000", "run=up"))
    wheels = workspace.output / "wheels" / "t4x2-transformers" / "t4x2-transformers-wheels"
    records.write_text(wheels / "wheels" / "SHA256SUMS", "")
    seal_dataset(wheels, "wheels", {}, Hashes())
    for path in wheels.iterdir():
        path.rename(wheels.parent / path.name)
    wheels.rmdir()
    succeed(workspace.cli("bundle", RUN, "--runtime", "t4x2-transformers"))
    return workspace


@pytest.fixture
def kaggle(shipped: Workspace) -> Iterator[tuple[Kaggle, dict[str, str]]]:
    server = Kaggle(execute=run_notebook(shipped), score="0.61")  # type: ignore[arg-type]
    with serve(server) as proxy:
        yield server, environment(shipped.root, proxy)
    shutil.rmtree(shipped.output / "pushes", ignore_errors=True)


def call(workspace: Workspace, variables: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
    more = {"KAGGLE_LLM_ROOT": str(workspace.root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FAST, *words]
    return subprocess.run(
        command, cwd=workspace.root, env={**clean, **variables, **more}, capture_output=True, text=True, timeout=600
    )


def test_a_bundle_goes_to_kaggle_is_timed_there_and_submitted_once(
    shipped: Workspace, kaggle: tuple[Kaggle, dict[str, str]]
) -> None:
    server, variables = kaggle
    refused = call(shipped, variables, "submit", RUN, "-m", "first")
    assert refused.returncode == 1 and "was not rehearsed" in refused.stderr and "was not pushed" in refused.stderr
    succeed(shipped.cli("rehearse", RUN))

    said = succeed(call(shipped, variables, "push", RUN))
    kernel = f"{OWNER}/{COMPETITION}-exp001-retrieve-up-notebook"
    assert f"{kernel} version 1: " in said and "have the rehearsal's first item" in said
    request = server.kernels[kernel][0].request
    assert request["enableInternet"] is False and request["isPrivate"] and request["machineShape"] == "NvidiaTeslaT4"
    received = server.received
    succeed(call(shipped, variables, "push", RUN))
    assert server.received == received and len(server.kernels[kernel]) == 1, "nothing is made twice"

    said = succeed(call(shipped, variables, "push", RUN, "--rows", "20"))
    assert "20 held-out rows on Kaggle" in said
    timed = json.loads((shipped.output / "pushes" / f"{kernel.split('/')[1][:-9]}-timed" / "timed.json").read_text())
    assert timed["score"] == pytest.approx(timed["oof"]), "the same code on the same rows"
    assert timed["timing"]["rows"] == 20 and 0 < timed["timing"]["load_seconds"] <= timed["timing"]["seconds"]
    rows = server.datasets[f"{OWNER}/{COMPETITION}-exp001-retrieve-up-rows"].versions[0]
    assert b"misconception_id" not in rows["test.csv"], "labels stay here"

    said = succeed(call(shipped, variables, "submit", RUN, "-m", "first"))
    assert (
        "5 left" in said
        and "public score 0.61" in said
        and " h of 9 h (competition.hours)" in said
        and " for 3000 rows (competition.hidden_rows)" in said
    )
    assert server.submissions[0]["request"] == {
        "competitionName": COMPETITION,
        "kernelOwner": OWNER,
        "kernelSlug": kernel.split("/")[1],
        "kernelVersion": 1,
        "fileName": "submission.csv",
    }
    succeed(call(shipped, variables, "submit", RUN, "-m", "again"))
    assert len(server.submissions) == 1
    (entry,) = json.loads((shipped.output / RUN / "submissions.json").read_text())
    assert (entry["public_score"], entry["status"], entry["version"], entry["message"]) == (
        0.61,
        "COMPLETE",
        1,
        "first",
    )
    (line,) = [run for run in json.loads(succeed(shipped.cli("board", "--json"))) if run["run"] == RUN]
    assert line["lb"] == 0.61

    traced = succeed(
        shipped.cli("trace", str(shipped.output / "pushes" / kernel.split("/")[1] / "v1" / "submission.csv"))
    )
    raw = records.hash_file(shipped.root / "input" / COMPETITION / "train.csv")
    assert f"kernel {kernel} version 1" in traced and f"train.csv  sha256 {raw}" in traced

    predict = shipped.root / "exp" / "exp001_retrieve" / "predict.py"
    predict.write_text(predict.read_text() + "\n# one line more\n")
    succeed(shipped.cli("bundle", RUN, "--runtime", "t4x2-transformers"))
    before, received = {ref: len(found.versions) for ref, found in server.datasets.items()}, server.received
    succeed(call(shipped, variables, "push", RUN))
    changed = {ref for ref, found in server.datasets.items() if len(found.versions) != before[ref]}
    assert changed == {f"{OWNER}/{COMPETITION}-exp001-retrieve-up-code"}
    assert server.received - received < 2e6, "the code alone"
    refused = call(shipped, variables, "submit", RUN, "-m", "not rehearsed")
    assert refused.returncode == 1 and "was not rehearsed" in refused.stderr


def test_a_training_on_kaggle_comes_back_as_if_it_was_made_here(
    shipped: Workspace, kaggle: tuple[Kaggle, dict[str, str]]
) -> None:
    _, variables = kaggle
    succeed(call(shipped, variables, "push", "exp002_rerank", "choice.group_size=3", "run=there", "--smoke", "--train"))
    there, here = "exp002_rerank--there-smoke", "exp002_rerank--here-smoke"
    succeed(shipped.train("exp002_rerank", "--smoke", "choice.group_size=3", "run=here"))
    found, expected = (json.loads((shipped.output / run / "record.json").read_text()) for run in (there, here))
    timed = ("reranker",)  # its log holds seconds
    assert all(found["inputs"][name] == expected["inputs"][name] for name in expected["inputs"] if name not in timed)
    assert found["settings"]["config"] == expected["settings"]["config"]
    oof = [pl.read_parquet(shipped.output / run / "oof.parquet") for run in (there, here)]
    assert oof[0].equals(oof[1])
    texts = [path.read_text() for path in (shipped.output / there).rglob("record.json")]
    assert not [text for text in texts if "/tmp" in text or str(shipped.root) in text]
    again = call(shipped, variables, "push", "exp002_rerank", "choice.group_size=3", "run=there", "--smoke", "--train")
    assert again.returncode == 1 and "is complete here" in again.stderr
    succeed(shipped.cli("bundle", there))
