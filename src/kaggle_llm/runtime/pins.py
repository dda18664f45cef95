"""Runtimes: a pinned Kaggle image and the packages that a wheelhouse brings, each with its reason, on a machine.

The pins are a YAML file in runtimes/. A new one is a copy with other pins; nothing else names it. The machine is an
accelerator of base/accelerators.py: the same pins serve all whose CUDA they have.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from kaggle_llm.base.accelerators import ACCELERATORS, DEFAULT_ACCELERATOR, Accelerator, check_allowed, find_accelerator
from kaggle_llm.base.config import load_config

RUNTIMES_FOLDER = Path(__file__).parent / "runtimes"
# Its vLLM is the one whose CPU build the tests run, on the image that Kaggle gives new notebooks. It scores label
# tokens in one request, has Marlin kernels on a T4 and chooses a working attention backend by itself. A run without
# vLLM only pays for the larger upload.
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
    """Kaggle's Docker image and the packages in it."""

    digest: str
    ref: str
    python: str
    glibc: str
    torch: str
    transformers: str
    companions: dict[str, str]
    """Packages built or released with its torch: used wherever that torch is used."""
    why: str


@dataclass
class Pins:
    """What a YAML file of runtimes/ holds."""

    name: str
    why: str
    image: Image
    driver: Pin
    """The lowest driver that the CUDA of torch runs on."""
    cuda: str
    """CUDA version of the torch that is used."""
    torch: Pin
    transformers: Pin
    vllm: VllmPin | None
    day: str
    """RFC 3339. Packages without a pin are never newer than this, so the same pins always give the same wheels."""
    site_gb: float
    """Disk that the installed packages take, in GiB: an estimate."""
    packages: dict[str, Pin] = field(default_factory=dict)
    """Pins of the wheelhouse beside torch, transformers and vllm."""

    def brought(self) -> dict[str, str]:
        """Package → version of all that the wheelhouse pins; what the image has in the pinned version is left out."""
        pins: dict[str, Any] = {"torch": self.torch, "transformers": self.transformers, "vllm": self.vllm}
        core = {name: pin.version for name, pin in pins.items() if pin and name not in self.kept()}
        return core | {name: pin.version for name, pin in self.packages.items()}

    def kept(self) -> dict[str, str]:
        """Package → version of what the image has and the wheelhouse must not bring again."""
        torch = {"torch": self.image.torch, **self.image.companions}
        transformers = {"transformers": self.image.transformers}
        return (torch if self.torch.version == self.image.torch else {}) | (
            transformers if self.transformers.version == self.image.transformers else {}
        )


@dataclass(kw_only=True)
class Runtime(Pins):
    """Pins on a machine."""

    accelerator: str
    """Always named: without a machine shape Kaggle may give another GPU."""

    @property
    def machine(self) -> Accelerator:
        return find_accelerator(self.accelerator)


def list_runtimes() -> list[str]:
    return sorted(path.stem for path in RUNTIMES_FOLDER.glob("*.yaml"))


@cache
def load_runtime(name: str, accelerator: str = DEFAULT_ACCELERATOR) -> Runtime:
    """The runtime of this name on this accelerator. Raises ValueError for an unknown name, with the nearest one."""
    names = list_runtimes()
    if name not in names:
        (nearest,) = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        raise ValueError(f"no runtime {name!r}, did you mean {nearest!r}? There are: {', '.join(names)}")
    pins = load_config(RUNTIMES_FOLDER / f"{name}.yaml", Pins)
    return Runtime(**vars(pins), accelerator=find_accelerator(accelerator).name)


def choose_accelerator(config: Mapping[str, Any], named: str | None = None) -> str:
    """The named accelerator or the config's; raises ValueError for one that the competition does not give."""
    name = named or str(config.get("engine", {}).get("accelerator", DEFAULT_ACCELERATOR))
    check_allowed(name, list(config.get("competition", {}).get("accelerators", [])))
    return name


def list_served(runtime: Pins) -> list[str]:
    """The accelerators whose capability the runtime's CUDA knows; one without a card needs none."""
    return [name for name, accelerator in ACCELERATORS.items() if knows_card(runtime, accelerator)]


def knows_card(runtime: Pins, accelerator: Accelerator) -> bool:
    from packaging.version import Version

    return Version(runtime.cuda) >= Version(accelerator.cuda or "0")
