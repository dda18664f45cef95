"""Runtimes: a pinned Kaggle image, its machine, and the packages that are brought along, each with its reason.

A runtime is a YAML file in runtimes/. A new one is a copy with other pins; nothing else names it.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from kaggle_llm.base.config import load_config

FOLDER = Path(__file__).parent / "runtimes"
# The vLLM whose CPU build the tests here run for real, on the image that Kaggle gives new notebooks. It scores given
# labels in one request, has Marlin kernels on a T4 and chooses a working attention backend by itself. A run without
# vLLM loses nothing by it but the upload.
DEFAULT = "t4x2-vllm032"


@dataclass
class Pin:
    version: str
    why: str


@dataclass
class VllmPin:
    version: str
    why: str
    transformers: str
    """The versions of transformers that its metadata asks for."""


@dataclass
class Image:
    """Kaggle's Docker image and what it comes with."""

    digest: str
    ref: str
    python: str
    glibc: str
    torch: str
    transformers: str
    companions: dict[str, str]
    """What its torch was built or released with: where that torch is used, so are they."""
    why: str


@dataclass
class Gpus:
    count: int
    capability: list[int]
    memory_gb: float
    """Of one card, in GiB, as torch sees it."""
    why: str


@dataclass
class Machine:
    accelerator: str
    gpus: Gpus
    cores: int
    ram_gb: float
    working_gb: float
    """Of /kaggle/working, which becomes the notebook's output."""
    scratch_gb: float
    """Of the disk elsewhere, such as /tmp."""
    driver: str
    """The lowest driver that the CUDA of torch runs on."""
    hours: float
    why: dict[str, str]


@dataclass
class Runtime:
    name: str
    why: str
    image: Image
    machine: Machine
    cuda: str
    """Of the torch that is used."""
    torch: Pin
    transformers: Pin
    vllm: VllmPin | None
    day: str
    """RFC 3339. What nobody pins is never newer: the same pins give the same wheels, whenever they are collected."""
    site_gb: float
    """Disk that the packages take when installed, in GiB: an estimate; 0 where next to nothing is brought."""
    packages: dict[str, Pin] = field(default_factory=dict)
    """What a wheelhouse is made of, beside torch, transformers and vllm where they are not the image's."""

    def brought(self) -> dict[str, str]:
        """Package → version of all that the wheelhouse pins; what the image has in this version stays out."""
        pins: dict[str, Any] = {"torch": self.torch, "transformers": self.transformers, "vllm": self.vllm}
        core = {name: pin.version for name, pin in pins.items() if pin and name not in self.kept()}
        return core | {name: pin.version for name, pin in self.packages.items()}

    def kept(self) -> dict[str, str]:
        """Package → version of what the image has and a wheelhouse never brings beside it."""
        torch = {"torch": self.image.torch, **self.image.companions}
        transformers = {"transformers": self.image.transformers}
        return (torch if self.torch.version == self.image.torch else {}) | (
            transformers if self.transformers.version == self.image.transformers else {}
        )


def list_runtimes() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


@cache
def load_runtime(name: str) -> Runtime:
    """The runtime of this name; raises ValueError with the nearest one for an unknown name."""
    known = list_runtimes()
    if name not in known:
        (nearest,) = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise ValueError(f"no runtime {name!r}, did you mean {nearest!r}? There are: {', '.join(known)}")
    return load_config(FOLDER / f"{name}.yaml", Runtime)


def default_runtime() -> Runtime:
    """What a submission runs on where nothing else is said."""
    return load_runtime(DEFAULT)
