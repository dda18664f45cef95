"""The round trip through the real kaggle CLI, against a server on this machine with a plan of faults."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from kaggle_forks import Forks
from kaggle_server import OWNER, Dataset, Fault, Kaggle, Kernel, environment, serve

from kaggle_llm.base import records
from kaggle_llm.kaggle import client, datasets
from kaggle_llm.kaggle.datasets import (
    BegunUpload,
    RemoteDataset,
    begun_path,
    ensure_dataset,
    list_folder,
    wait_for_begun,
)
from kaggle_llm.kaggle.kernels import ensure_kernel, follow_kernel, write_kernel
from kaggle_llm.kaggle.metadata import describe_kernel
from kaggle_llm.kaggle.notebook import write_notebook
from kaggle_llm.runtime.pins import load_runtime

ROOT = Path(__file__).resolve().parents[1]
SLUG = "demo-weights-0123abcd"


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    forks = Forks(tmp_path_factory.mktemp("home"))
    yield forks
    forks.close()


@pytest.fixture
def forked(forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The CLI in forks, nobody waits, output/ in tmp_path."""
    monkeypatch.setattr(client, "start_program", forks.start_program)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(datasets, "READY_TIMEOUT", 60.0)
    monkeypatch.setattr(client, "READ_TIMEOUT", 2.0)
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    return tmp_path


def talk(kaggle: Kaggle, home: Path, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    for name, value in environment(home, proxy).items():
        monkeypatch.setenv(name, value)


def write_dataset(folder: Path, seed: int = 0, files: int = 3) -> Path:
    """A dataset as a bundle has it: folders, one small file, MANIFEST.json."""
    rng = random.Random(seed)
    for number in range(files):
        path = folder / "model" / f"part{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(rng.randbytes(rng.randint(0, 2000)))
    (folder / "config.yaml").write_text(f"seed: {seed}\n")
    entries = [
        {"path": path.relative_to(folder).as_posix(), "bytes": path.stat().st_size, "sha256": records.hash_file(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("MANIFEST.json", "dataset-metadata.json")
    ]
    records.write_json(folder / "MANIFEST.json", {"slug": folder.name, "kind": "weights", "files": entries})
    return folder


def held_by(kaggle: Kaggle, folder: Path) -> bool:
    """Whether the server's last version is exactly the folder, byte by byte."""
    dataset = kaggle.datasets.get(f"{OWNER}/{folder.name}")
    files = {name: (folder / name).read_bytes() for name in list_folder(folder)}
    return dataset is not None and dataset.versions[-1] == files


def repeated(kaggle: Kaggle) -> int:
    """Versions that hold what the one before them held."""
    return sum(
        first == second
        for dataset in kaggle.datasets.values()
        for first, second in zip(dataset.versions, dataset.versions[1:], strict=False)
    )


def push_all(dataset: Path, root: Path) -> int:
    """A dataset, then a notebook on it, followed to its end; the kernel's version."""
    ensure_dataset(dataset, OWNER)
    runtime = {"image": {"ref": load_runtime("t4x2-vllm032").image.ref}, "accelerator": "NvidiaTeslaT4"}
    metadata = describe_kernel("demo-notebook", OWNER, runtime, "demo", [dataset.name], [])
    write_notebook(ROOT / "submission" / "notebook.py", root / "notebook.ipynb")
    kernel = root / "output" / "pushes" / "demo-notebook" / "kernel"
    stamp = write_kernel(kernel, root / "notebook.ipynb", metadata, records.hash_file(dataset / "MANIFEST.json"))
    version = ensure_kernel(kernel, stamp)
    output = follow_kernel(metadata["id"], version)
    assert (output / "submission.csv").read_bytes() == b"id,x\n1,2\n"
    return version


def finish_well(_: Kaggle, kernel: Kernel) -> None:
    kernel.status, kernel.output, kernel.log = "COMPLETE", {"submission.csv": b"id,x\n1,2\n"}, "done\n"


def test_a_dataset_is_created_once_and_versioned_when_its_content_changes(
    forked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kaggle, folder = Kaggle(), write_dataset(forked / SLUG)
    with serve(kaggle) as proxy:
        talk(kaggle, forked, monkeypatch, proxy)
        assert ensure_dataset(folder, OWNER) == 1 and held_by(kaggle, folder)
        received = kaggle.received
        assert ensure_dataset(folder, OWNER) == 1 and kaggle.received == received, "nothing is sent again"
        write_dataset(folder, seed=1)
        assert ensure_dataset(folder, OWNER) == 2 and held_by(kaggle, folder)
        many = write_dataset(forked / "demo-many-files", files=450)
        assert ensure_dataset(many, OWNER) == 1 and held_by(kaggle, many), "a listing of three pages"
    assert not (folder / "dataset-metadata.json").exists(), "the bundle stays as it is"
    assert kaggle.calls["CreateDataset"] == 2 and kaggle.calls["CreateDatasetVersion"] == 1


REPORTED = {
    # fault → what the first start says, tried in the order of a push
    Fault("GetDatasetStatus", 1, "401"): "Kaggle does not know you",
    Fault("PUT", 1, "refuse"): "did not arrive",
    Fault("PUT", 2, "vanish"): "did not arrive",
    Fault("CreateDataset", 1, "400"): "it stumbled",
    Fault("CreateDataset", 1, "exists"): "already in use",
    Fault("CreateDataset", 1, "never-ready"): "is not ready after 1 min",
    Fault("CreateDataset", 1, "failed"): "has the status failed",
    Fault("SaveKernel", 1, "503"): "503",
    Fault("SaveKernel", 1, "push-error"): "Maximum batch GPU session count",
    Fault("SaveKernel", 1, "no-source"): "dataset_sources lacks",
    Fault("SaveKernel", 1, "fails"): "RuntimeError: no GPU",
}
RARE = ("refuse", "400", "exists", "failed", "503", "no-source", "fails")  # in the slow tests
OVERCOME = [  # those of one start, each at another call
    {"GetDatasetStatus": "429", "StartBlobUpload": "drop", "PUT": "503", "CreateDataset": "unready"},
    {"GetDatasetStatus": "stall", "PUT": "lost", "CreateDataset": "429", "SaveKernel": "lost"},
    {"CreateDataset": "500", "GetKernelSessionStatus": "drop", "ListKernelSessionOutput": "500"},
]


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=pytest.mark.slow if fault.kind in RARE else ()) for fault in REPORTED],
    ids=lambda fault: f"{fault.method}-{fault.kind}",
)
def test_each_fault_has_its_message_and_the_same_command_goes_on(
    forked: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault
) -> None:
    kaggle, folder = Kaggle(faults=(fault,), execute=finish_well), write_dataset(forked / SLUG)
    with serve(kaggle) as proxy:
        talk(kaggle, forked, monkeypatch, proxy)
        with pytest.raises(OSError, match=re.escape(REPORTED[fault])):
            push_all(folder, forked)
        for dataset in kaggle.datasets.values():  # the night is over
            dataset.looks, dataset.status = 0, "READY"
        push_all(folder, forked)
    assert held_by(kaggle, folder) and repeated(kaggle) == 0


@pytest.mark.parametrize(
    "kinds",
    [OVERCOME[0], *(pytest.param(kinds, marks=pytest.mark.slow) for kinds in OVERCOME[1:])],
    ids=lambda kinds: "-".join(kinds.values()),
)
def test_faults_that_pass_are_waited_for(forked: Path, monkeypatch: pytest.MonkeyPatch, kinds: dict[str, str]) -> None:
    faults = (*(Fault(method, 1, kind) for method, kind in kinds.items()), Fault("ListDatasetFiles", 2, "504"))
    kaggle, folder = Kaggle(faults=faults, execute=finish_well), write_dataset(forked / SLUG)
    with serve(kaggle) as proxy:
        talk(kaggle, forked, monkeypatch, proxy)
        push_all(folder, forked)
        push_all(folder, forked)
        assert all(kaggle.calls[fault.method] >= fault.call for fault in faults), "each of them was met"
    assert held_by(kaggle, folder) and repeated(kaggle) == 0


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("answered", [False, True])
def test_an_interrupt_at_any_call_of_the_cli_loses_nothing(
    forked: Path, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    """Ctrl-C before the n-th call, or after it, before anything was noted of its answer; for every n."""
    real, calls = client.start_program, 0

    def interrupt(*words: Any) -> tuple[int, str]:
        nonlocal calls
        calls += 1
        if calls == at and not answered:
            raise KeyboardInterrupt
        answer = real(*words)
        if calls == at:
            raise KeyboardInterrupt
        return answer

    monkeypatch.setattr(client, "start_program", interrupt)
    at = interrupted = 0
    while at == interrupted:
        at, calls = at + 1, 0
        root = forked / str(at)
        monkeypatch.setenv("KAGGLE_LLM_ROOT", str(root))
        kaggle, dataset = Kaggle(execute=finish_well), write_dataset(root / SLUG, at)
        with serve(kaggle) as proxy:
            talk(kaggle, root, monkeypatch, proxy)
            try:
                push_all(dataset, root)
            except KeyboardInterrupt:
                interrupted += 1
                push_all(dataset, root)
        assert held_by(kaggle, dataset) and repeated(kaggle) == 0
        assert len(kaggle.kernels[f"{OWNER}/demo-notebook"]) == 1, f"pushed twice after an interrupt at call {at}"
    assert interrupted > 8, "a push has more calls than that"


RANDOM = {
    "GetDatasetStatus": ("429", "500", "503", "504", "401", "drop", "lost"),
    "GetDataset": ("429", "500", "drop"),
    "StartBlobUpload": ("429", "500", "503", "drop", "lost", "401"),
    "PUT": ("refuse", "vanish", "503", "500", "drop", "lost"),
    "CreateDataset": ("429", "500", "503", "400", "401", "drop", "lost", "exists", "unready", "never-ready", "failed"),
    "CreateDatasetVersion": ("429", "500", "503", "401", "drop", "lost", "unready", "never-ready", "failed"),
    "ListDatasetFiles": ("429", "500", "503", "drop", "401"),
    "SaveKernel": ("429", "500", "503", "401", "drop", "lost", "push-error", "no-source", "fails"),
    "GetKernel": ("429", "500", "drop", "401"),
    "GetKernelSessionStatus": ("429", "500", "503", "drop"),
    "ListKernelSessionOutput": ("429", "500", "503", "drop"),
}


def draw_plan(seed: int) -> tuple[Fault, ...]:
    rng = random.Random(seed)
    methods = rng.choices(list(RANDOM), k=rng.randint(1, 4))
    return tuple(Fault(method, rng.randint(1, 3), rng.choice(RANDOM[method])) for method in methods)


@pytest.mark.timeout(280)
@pytest.mark.parametrize("seeds", [range(2), pytest.param(range(2, 8), marks=pytest.mark.slow)], ids=str)
def test_no_plan_of_faults_ends_in_a_wrong_success(forked: Path, monkeypatch: pytest.MonkeyPatch, seeds: range) -> None:
    try_plans(seeds, forked, monkeypatch)


@pytest.mark.release
@pytest.mark.timeout(280)
@pytest.mark.parametrize("part", range(4))
def test_none_of_200_plans_of_faults_ends_in_a_wrong_success(
    forked: Path, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    try_plans(range(100 + 50 * part, 150 + 50 * part), forked, monkeypatch)


@pytest.mark.release
@pytest.mark.timeout(600)
def test_20_plans_of_faults_of_a_dataset_through_real_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of the CLI is patched; what this project waits is a hundredth."""
    real = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: real(seconds / 100))
    methods = [method for method in RANDOM if "Kernel" not in method]
    failures = 0
    for seed in range(20):
        rng, root = random.Random(seed), tmp_path / str(seed)
        monkeypatch.setenv("KAGGLE_LLM_ROOT", str(root))
        (method,) = rng.choices(methods)
        kinds = [kind for kind in RANDOM[method] if kind != "never-ready"]
        kaggle = Kaggle(faults=(Fault(method, rng.randint(1, 2), rng.choice(kinds)),))
        dataset = write_dataset(root / SLUG, seed)
        with serve(kaggle) as proxy:
            talk(kaggle, root, monkeypatch, proxy)
            try:
                ensure_dataset(dataset, OWNER)
            except OSError:
                failures += 1
                kaggle.datasets.get(f"{OWNER}/{SLUG}", Dataset()).status = "READY"
                ensure_dataset(dataset, OWNER)
        assert held_by(kaggle, dataset) and repeated(kaggle) == 0, f"plan {seed}: {kaggle.faults}"
    assert failures


def try_plans(seeds: range, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each start ends with the server holding the manifest's files, or with an error; no content becomes two versions.

    The CLI itself repeats CreateDatasetVersion when its answer is lost, within one call: only it makes two of one.
    """
    outcomes = []
    for seed in seeds:
        root = folder / str(seed)
        monkeypatch.setenv("KAGGLE_LLM_ROOT", str(root))
        kaggle, dataset = Kaggle(faults=draw_plan(seed), execute=finish_well), write_dataset(root / SLUG, seed)
        if seed % 2:  # an older version is there
            kaggle.datasets[f"{OWNER}/{SLUG}"] = Dataset([{"config.yaml": b"old"}])
        with serve(kaggle) as proxy:
            talk(kaggle, root, monkeypatch, proxy)
            failures = len(outcomes)
            for _ in range(6):
                try:
                    version = push_all(dataset, root)
                except OSError as error:
                    outcomes.append(str(error))
                    assert str(error) and "Traceback" not in str(error)
                    for stored in kaggle.datasets.values():
                        stored.looks, stored.status = 0, "READY"
                    continue
                break
            assert held_by(kaggle, dataset), f"plan {seed}: {kaggle.faults}"
            pushed = kaggle.kernels[f"{OWNER}/demo-notebook"][version - 1].request
            assert pushed["datasetDataSources"] == [f"{OWNER}/{SLUG}"], f"plan {seed}: {kaggle.faults}"
            by_cli = sum((fault.method, fault.kind) == ("CreateDatasetVersion", "lost") for fault in kaggle.faults)
            assert len(outcomes) - failures < 6 and repeated(kaggle) <= by_cli, f"plan {seed}: {kaggle.faults}"
            texts = [kernel.request["text"] for kernel in kaggle.kernels[f"{OWNER}/demo-notebook"]]
            refused = sum(fault.kind in ("no-source", "fails") for fault in kaggle.faults)
            assert len(texts) - len(set(texts)) <= refused, f"plan {seed}: {kaggle.faults}"
    assert len(outcomes) > len(seeds) // 10, "some plans do end in an error first"


@pytest.mark.parametrize("arrived", [True, False])
def test_an_interrupted_upload_is_its_version_where_it_arrived_and_else_the_one_before(
    arrived: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    before, after = RemoteDataset("ready", 3), RemoteDataset("ready", 4)
    states = [before, *([after] if arrived else [])]
    monkeypatch.setattr(datasets, "read_remote", lambda ref: states.pop(0) if len(states) > 1 else states[0])
    monkeypatch.setattr(datasets, "pause", lambda seconds: None)
    records.write_json(begun_path("me/weights"), asdict(BegunUpload("content", 3)))
    assert wait_for_begun("me/weights", "content") == (after if arrived else before)
