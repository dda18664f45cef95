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
    """One card, described in a sentence."""
    count: int
    why: str
    """Where the figures come from."""
    capability: tuple[int, int] | None = None
    memory_gb: float | None = None
    """Memory of one card in GiB, as torch sees it."""
    cuda: str = ""
    """The first CUDA version that knows the capability."""
    cores: int | None = None
    ram_gb: float | None = None
    scratch_gb: float | None = None
    """Size of the disk outside /kaggle/working."""
    hours: float | None = None
    """The shortest limit of a notebook that a competition with it had. The rule itself is competition.hours."""
    half_flops: float | None = None
    """Floating-point operations a second in half precision without sparsity, by the data sheet."""
    float32_flops: float | None = None
    bandwidth: float | None = None
    """Bytes a second of a card's memory."""
    driver_name: str = ""
    """A part of the name that nvidia-smi and torch give the card."""

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
            cores=4,
            ram_gb=29,
            scratch_gb=60,
            hours=9,
            half_flops=65e12,
            float32_flops=8.1e12,
            bandwidth=320e9,
            driver_name="T4",
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
            driver_name="NVIDIA L4",
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
            driver_name="H100 PCIe",
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
            driver_name="RTX PRO 6000",
        ),
        Accelerator(CPU, card="a CPU", count=0, why="A notebook without a GPU; its speed is not known.", hours=9),
    )
}

SHEET = "speeds by the vendor's data sheet, dense products with sums in float32; memory as torch reports it elsewhere."


def _rented(
    name: str,
    card: str,
    capability: tuple[int, int],
    memory: float,
    half: float,
    single: float,
    rate: float,
    say: str,
) -> Accelerator:
    """memory: GiB. half, single: TFLOPS in half precision and float32. rate: GB/s. say: driver_name."""
    return Accelerator(
        name,
        card=card,
        count=1,
        why=SHEET,
        capability=capability,
        memory_gb=memory,
        half_flops=half * 1e12,
        float32_flops=single * 1e12,
        bandwidth=rate * 1e9,
        driver_name=say,
    )


# Cards that people rent one at a time, for `kaggle-llm plan`; no notebook of Kaggle runs on them.
RENTED = {
    card.name: card
    for card in (
        _rented("3090", "an RTX 3090", (8, 6), 23.6, 71, 35.6, 936, "RTX 3090"),
        _rented("4090", "an RTX 4090", (8, 9), 23.6, 165, 82.6, 1008, "RTX 4090"),
        _rented("a100-40", "an A100 of 40 GB", (8, 0), 39.4, 312, 19.5, 1555, "A100-SXM4-40GB"),
        _rented("a100-80", "an A100 of 80 GB", (8, 0), 79.1, 312, 19.5, 2039, "A100-SXM4-80GB"),
        _rented("l40s", "an L40S", (8, 9), 44.4, 362, 91.6, 864, "L40S"),
        _rented("h100", "an H100 SXM", (9, 0), 79.1, 989, 67, 3350, "H100 80GB HBM3"),
        _rented("h200", "an H200", (9, 0), 139.8, 989, 67, 4800, "H200"),
    )
}
KAGGLE_NAMES = {"t4x2": DEFAULT_ACCELERATOR, "l4x4": "NvidiaL4", "rtx-pro-6000": "NvidiaRtxPro6000"}


def find_card(name: str) -> Accelerator:
    """A card of RENTED, or an accelerator of Kaggle by its id or its short name, such as t4x2.

    Raises ValueError for an unknown one and for a CPU, with the names that there are.
    """
    cards = {**RENTED, **{short: ACCELERATORS[full] for short, full in KAGGLE_NAMES.items()}, **ACCELERATORS}
    if name == CPU or name not in cards:
        raise ValueError(f"no card {name!r}: there are {', '.join(sorted(cards.keys() - {CPU}))}")
    return cards[name]


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
