"""What is asked of the GPU and given back to it, on a machine without one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import forks
import pytest

from kaggle_llm.base import device


def test_the_card_is_named_by_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own answer would take a part of the card for the parent process."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text('#!/bin/sh\necho "card ${3#--id=}"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda *_: pytest.fail("torch was asked"))
    assert device.describe_device.__wrapped__() == "card 1"
    monkeypatch.setattr(device, "has_gpu", lambda: False)
    assert device.describe_device.__wrapped__() == "cpu"
    assert device.read_capability.__wrapped__() is None and device.measure_free_share() is None


def install_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """A stand-in for nvidia-smi that gives this answer, and a torch that sees a GPU."""
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\nprintf '{answer}'\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(device, "has_gpu", lambda: True)


def test_the_capability_is_the_drivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_smi(tmp_path, monkeypatch, "12.0\\n")
    assert device.read_capability.__wrapped__() == (12, 0)


def test_the_free_share_is_that_of_the_fullest_card_less_a_context(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_smi(tmp_path, monkeypatch, "15000, 15360\\n8000, 15360\\n")
    assert device.measure_free_share() == pytest.approx((8000 - 0.7 * 1024) / 15360)


def test_kernels_and_allocator_are_chosen() -> None:
    code = """
from kaggle_llm.engines.attention import prepare_device
prepare_device()
import os, torch
print(os.environ["PYTORCH_ALLOC_CONF"], torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cudnn.allow_tf32,
      torch.get_float32_matmul_precision(), torch.backends.cuda.flash_sdp_enabled())
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTORCH_ALLOC_CONF"}
    answer = subprocess.run([forks.python(), "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert answer.stdout.split() == ["expandable_segments:True", "False", "False", "highest", "True"], answer.stderr


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {"device_map": {"": 0}}),
        ({"LOCAL_RANK": "1"}, {"device_map": {"": 1}}),
        ({"LOCAL_RANK": "1", "ACCELERATE_USE_FSDP": "true"}, {}),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, {}),
    ],
)
def test_weights_are_loaded_onto_the_card_of_the_process(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: dict[str, Any]
) -> None:
    for name in ("LOCAL_RANK", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert device.choose_placement() == {}
    monkeypatch.setattr(device, "has_gpu", lambda: True)
    assert device.choose_placement() == expected


def test_memory_is_given_back_only_where_the_gpu_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: calls.append("emptied"))
    device.release_device()
    assert calls == []
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    device.release_device()
    assert calls == ["emptied"]


LAYERS = """
import resource
import numpy as np
from kaggle_llm.base.device import keep_heap
if {keeps}:
    keep_heap()
for layer in range(40):
    if layer == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [np.ones(1_500_000) for _ in range(6)]
    del activations
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc's malloc")
def test_layers_get_the_memory_of_the_ones_before_them() -> None:
    """Pages got anew from the system, after the first layers."""
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", LAYERS.format(keeps=keeps)], capture_output=True, text=True).stdout)
        for keeps in (True, False)
    )
    assert kept < returned / 10, (kept, returned)
