"""What Kaggle's client and server ask of metadata is checked before anything is sent."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from kaggle_llm.base import records
from kaggle_llm.base.accelerators import ACCELERATORS
from kaggle_llm.kaggle.kernels import NOTEBOOK, write_kernel
from kaggle_llm.kaggle.metadata import (
    DATASET,
    KERNEL,
    check_dataset_metadata,
    check_kernel_metadata,
    describe_dataset,
    describe_kernel,
)
from kaggle_llm.kaggle.notebook import write_notebook
from kaggle_llm.runtime.pins import list_runtimes, load_runtime

ROOT = Path(__file__).resolve().parents[1]
SOURCE = "meta/llama/transformers/8b/1"
WRONG = {  # field → values that break a rule
    "id": ("alice", "alice/Abc-def", "alice/abc-def/3", "alice/abc", "alice/" + "x" * 51),
    "docker_image": (None, "gcr.io/kaggle-images/python:latest"),
    "dataset_sources": (["weights"], ["alice/weights/2"], ["alice/We ights"]),
    "model_sources": (["meta/llama/transformers/8b"], ["meta/llama/transformers/8b/latest"]),
    "competition_sources": (["Some Competition"],),
}


def make_kernel(folder: Path, **changes: Any) -> Path:
    runtime = asdict(load_runtime("t4x2-vllm032"))
    metadata = describe_kernel("abc-def", "alice", runtime, "comp", ["weights-1", "code-1"], [SOURCE])
    records.write_json(folder / KERNEL, {**metadata, **changes})
    write_notebook(ROOT / "submission" / "notebook.py", folder / NOTEBOOK)
    return folder


@pytest.mark.parametrize("runtime", list_runtimes())
def test_a_kernel_of_every_runtime_keeps_the_rules(tmp_path: Path, runtime: str) -> None:
    write_notebook(ROOT / "submission" / "notebook.py", tmp_path / "a.ipynb")
    metadata = describe_kernel("abc-def", "alice", asdict(load_runtime(runtime)), "comp", ["b", "a"], [SOURCE])
    stamp = write_kernel(tmp_path / "kernel", tmp_path / "a.ipynb", metadata, "content")
    found = records.read_json(tmp_path / "kernel" / KERNEL)
    closed = {
        "is_private": True,
        "enable_internet": False,
        "enable_tpu": False,
        "docker_image_pinning_type": "original",
    }
    assert closed.items() <= found.items() and found["dataset_sources"] == ["alice/a", "alice/b"]
    assert "@sha256:" in found["docker_image"] and stamp in (tmp_path / "kernel" / NOTEBOOK).read_text()
    assert stamp != write_kernel(tmp_path / "kernel", tmp_path / "a.ipynb", metadata, "other weights")


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_the_metadata_ask_for_the_accelerator(tmp_path: Path, accelerator: str) -> None:
    runtime = asdict(load_runtime("t4x2-vllm032", accelerator))
    described = describe_kernel("abc-def", "alice", runtime, "comp", ["code-1"], [])
    shape = "" if accelerator == "none" else accelerator
    assert (described["machine_shape"], described["enable_gpu"]) == (shape, bool(shape))
    records.write_json(tmp_path / KERNEL, described)
    write_notebook(ROOT / "submission" / "notebook.py", tmp_path / NOTEBOOK)
    check_kernel_metadata(tmp_path)


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in WRONG.items() for value in values])
def test_each_rule_is_said_with_field_and_value(tmp_path: Path, field: str, value: Any) -> None:
    check_kernel_metadata(make_kernel(tmp_path / "right"))
    with pytest.raises(ValueError, match=rf"kernel-metadata\.json: .*{field} = ") as refusal:
        check_kernel_metadata(make_kernel(tmp_path / "wrong", **{field: value}))
    first = value[0] if isinstance(value, list) and value else value
    assert repr(first) in str(refusal.value)


def test_all_broken_rules_are_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)id = .*docker_image"):
        check_kernel_metadata(make_kernel(tmp_path / "wrong", id="alice", docker_image="x"))


def test_a_dataset_keeps_the_rules(tmp_path: Path) -> None:
    folder = tmp_path / "weights-1"
    records.write_text(folder / "a.txt", "x")
    records.write_json(folder / DATASET, describe_dataset("weights-1", "alice"))
    check_dataset_metadata(folder)
    records.write_json(folder / DATASET, describe_dataset("short", "alice"))
    with pytest.raises(ValueError, match="6 to 50"):
        check_dataset_metadata(folder)


def test_more_than_fifty_files_at_the_top_are_refused(tmp_path: Path) -> None:
    for number in range(51):
        records.write_text(tmp_path / f"{number}.txt", "x")
    records.write_json(tmp_path / DATASET, describe_dataset("weights-1", "alice"))
    with pytest.raises(ValueError, match="files = 51: 1 to 50 at the top level"):
        check_dataset_metadata(tmp_path)
