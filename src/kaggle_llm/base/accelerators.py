"""The machines that Kaggle gives a notebook: a table, read by configs, doctor, bundles and the notebook's first cell.

Standard library only. Sources: Kaggle's documentation, metadata of public notebooks, the vendor's data sheets. None
means that it is not known; nothing of it was measured on Kaggle by this project.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

DEFAULT_ACCELERATOR = "NvidiaTeslaT4"
CPU = "none"
Half = Literal["float16", "bfloat16"]


@dataclass(frozen=True)
class Accelerator:
    name: str
    """Kaggle's id: machine_shape of a kernel, --accelerator of its CLI."""
    card: str
    """Of one card, in a sentence."""
    count: int
    why: str
    """Where the figures are from."""
    capability: tuple[int, int] | None = None
    memory_gb: float | None = None
    """Of one card, in GiB, as torch sees it."""
    cuda: str = ""
    """The first CUDA version that knows the capability."""
    seen_driver: str | None = None
    """The newest driver that was seen on Kaggle's machines with it."""
    cores: int | None = None
    ram_gb: float | None = None
    scratch_gb: float | None = None
    """Of the disk outside /kaggle/working."""
    hours: float | None = None
    """The shortest limit of a notebook that a competition with it had. The rule itself is competition.hours."""
    half_flops: float | None = None
    """Floating-point operations a second in half precision without sparsity, by the data sheet."""
    float32_flops: float | None = None
    bandwidth: float | None = None
    """Bytes a second of a card's memory."""

    @property
    def half(self) -> Half:
        """The dtype of half precision that the card multiplies fast."""
        return "float16" if self.is_below(80) else "bfloat16"

    def is_below(self, capability: int) -> bool:
        """Whether the card's capability is below this one, written as vLLM does: 75, 80, 89. A CPU has none."""
        return self.capability is not None and 10 * self.capability[0] + self.capability[1] < capability


ACCELERATORS = {
    accelerator.name: accelerator
    for accelerator in (
        Accelerator(
            DEFAULT_ACCELERATOR,
            card="a T4",
            count=2,
            why="nvidia-smi says 15360 MiB, torch finds 15 636 037 632 bytes.",
            capability=(7, 5),
            memory_gb=14.56,
            cuda="10.0",
            seen_driver="580.178.04",
            cores=4,
            ram_gb=29,
            scratch_gb=60,
            hours=9,
            half_flops=65e12,
            float32_flops=8.1e12,
            bandwidth=320e9,
        ),
        Accelerator(
            "NvidiaL4",
            card="an L4",
            count=4,
            why="nvidia-smi says 23034 MiB, torch 22.03 GiB, on other clouds; Kaggle's cores and memory are not known.",
            capability=(8, 9),
            memory_gb=22.03,
            cuda="11.8",
            half_flops=121e12,
            float32_flops=30.3e12,
            bandwidth=300e9,
        ),
        Accelerator(
            "NvidiaH100",
            card="an H100",
            count=1,
            why="nvidia-smi says 81559 MiB on other clouds; speeds are the PCIe card's, as Kaggle's form is not known.",
            capability=(9, 0),
            memory_gb=79.1,
            cuda="11.8",
            hours=5,
            half_flops=756e12,
            float32_flops=51e12,
            bandwidth=2.0e12,
        ),
        Accelerator(
            "NvidiaRtxPro6000",
            card="an RTX PRO 6000",
            count=1,
            why="nvidia-smi says 97887 MiB, CUDA 94.97 GiB, elsewhere; its dense half-precision rate is not known.",
            capability=(12, 0),
            memory_gb=94.97,
            cuda="12.8",
            float32_flops=125e12,
            bandwidth=1.792e12,
        ),
        Accelerator(CPU, card="a CPU", count=0, why="A notebook without a GPU; its speed is not known.", hours=9),
    )
}


def find_accelerator(name: str) -> Accelerator:
    """The accelerator of this name. Raises ValueError for an unknown one, with the nearest."""
    if name not in ACCELERATORS:
        (nearest,) = difflib.get_close_matches(name, ACCELERATORS, n=1, cutoff=0.0)
        raise ValueError(f"no accelerator {name!r}, did you mean {nearest!r}? There are: {', '.join(ACCELERATORS)}")
    return ACCELERATORS[name]


def check_allowed(name: str, allowed: list[str]) -> None:
    """Raises ValueError for an accelerator that is unknown, or that a competition does not give. []: it gives all."""
    for known in (name, *allowed):
        find_accelerator(known)
    if allowed and name not in allowed:
        raise ValueError(
            f"engine.accelerator = {name}, and the competition gives {', '.join(allowed)} (competition.accelerators): "
            f"set engine.accelerator={allowed[0]}"
        )
