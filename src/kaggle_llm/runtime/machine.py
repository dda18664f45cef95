"""Compare the real machine with the runtime, in the notebook's first cell. Standard library only.

The runtime comes as the mapping that a manifest holds (dataclasses.asdict of a Runtime): no YAML is read here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kaggle_llm.base.accelerators import Accelerator, find_accelerator
from kaggle_llm.runtime.findings import Finding, Level

QUERY = "name,compute_cap,memory.total,driver_version"
NVIDIA_SMI_TIMEOUT = 60.0  # seconds
GIB = 2**30
OUTPUT_GB = 1.0  # needed in the folder of the notebook's output: submission.csv and logs
TURN_ON = (
    "turn on the accelerator {} in the notebook's settings, or machine_shape in kernel-metadata.json; where only the "
    "competition's own notebooks get it, copy one of those once and push to its slug"
)


def check_machine(runtime: Mapping[str, Any], scratch: Path, working: Path) -> list[Finding]:
    """Findings named GPUs, capability, driver, image, disk and Python.

    scratch: where packages are installed; working: where the submission is written.
    """
    machine, findings = find_accelerator(runtime["accelerator"]), []
    if machine.count:
        findings += check_cards(machine, runtime["driver"]["version"])
    findings.append(check_image(runtime["image"]))
    findings += check_free_space(runtime, scratch, working)
    return [*findings, check_python(runtime["image"]["python"])]


def check_cards(machine: Accelerator, lowest: str) -> list[Finding]:
    try:
        return list(check_gpus(query_gpus(), machine, lowest))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        way = TURN_ON.format(machine.name)
        return [Finding("GPUs", "refused", f"nvidia-smi says nothing ({error}): {way}")]


def query_gpus() -> list[dict[str, str]]:
    """name, compute_cap, memory.total (MiB) and driver_version of each GPU, by nvidia-smi.

    Raises OSError or SubprocessError where it is missing or fails, ValueError for an answer of another form.
    """
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT, check=True)
    names = QUERY.split(",")
    lines = [[part.strip() for part in line.split(",")] for line in done.stdout.splitlines() if line.strip()]
    if any(len(line) != len(names) for line in lines):
        raise ValueError(f"not {QUERY}: {done.stdout!r}")
    return [dict(zip(names, line, strict=True)) for line in lines]


def check_gpus(cards: list[dict[str, str]], machine: Accelerator, lowest: str) -> Iterator[Finding]:
    """lowest: the lowest driver that the runtime's CUDA runs on."""
    names = ", ".join(card["name"] for card in cards) or "none"
    level: Level = "ok" if len(cards) >= machine.count else "refused"
    way = TURN_ON.format(machine.name)
    yield Finding("GPUs", level, f"{names}; the runtime has {machine.count}" + ("" if level == "ok" else f": {way}"))
    if not cards:
        return
    capability = ".".join(map(str, machine.capability or ()))
    others = sorted({card["compute_cap"] for card in cards} - {capability})
    text = f"capability {others[0] if others else capability}, the runtime is made for {capability}"
    way = f": kernels and dtypes were chosen for {machine.name}; set engine.accelerator and run doctor"
    yield Finding("capability", "refused" if others else "ok", text + (way if others else ""))
    memory = min(float(card["memory.total"]) for card in cards) / 1024
    small = memory < (machine.memory_gb or 0)
    text = f"{memory:.2f} GB a card, the runtime counts on {machine.memory_gb}"
    yield Finding("GPU memory", "refused" if small else "ok", text + (": models may not fit" if small else ""))
    driver = cards[0]["driver_version"]
    old = read_version(driver) < read_version(lowest)
    text = f"{driver}, the runtime's CUDA asks for {lowest}"
    yield Finding("driver", "refused" if old else "ok", text + (": take a runtime of an older CUDA" if old else ""))


def check_image(image: Mapping[str, Any]) -> Finding:
    """Judged by KAGGLE_DOCKER_IMAGE, which Kaggle sets: the registry in it may differ, the digest may not."""
    running, digest = os.environ.get("KAGGLE_DOCKER_IMAGE", ""), image["digest"]
    if digest in running:
        return Finding("image", "ok", digest)
    if not running:
        return Finding("image", "warn", f"KAGGLE_DOCKER_IMAGE is not set; the runtime is made for {digest}")
    way = "put the runtime's image into docker_image of kernel-metadata.json"
    return Finding("image", "warn", f"{running}, the runtime is made for {digest}: {way}")


def check_free_space(runtime: Mapping[str, Any], scratch: Path, working: Path) -> Iterator[Finding]:
    for name, folder, needed in (("disk", scratch, runtime["site_gb"]), ("output disk", working, OUTPUT_GB)):
        free = shutil.disk_usage(folder).free / GIB
        text = f"{free:.1f} GB free in {folder}, {needed:.1f} are needed"
        way = ": install elsewhere, or bring fewer packages"
        yield Finding(name, "ok" if free >= needed else "refused", text + ("" if free >= needed else way))


def check_python(wanted: str) -> Finding:
    """The minor version has to match: wheels are built for one."""
    running = ".".join(map(str, sys.version_info[:2]))
    if running == wanted:
        return Finding("Python", "ok", running)
    way = "its wheels do not install: pin the image in kernel-metadata.json"
    return Finding("Python", "refused", f"{running}, the runtime is made for {wanted}: {way}")


def read_version(text: str) -> tuple[int, ...]:
    """580.65.06 → (580, 65, 6)."""
    return tuple(int(part) for part in text.split("."))
