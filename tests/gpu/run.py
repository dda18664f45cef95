"""What only a GPU can show: `make test-gpu`, on any machine with an NVIDIA card and its own torch; no network.

Random models are made in place. Without a card, what a CPU can do runs on tiny models, and the rest is said to be
skipped. Prints a table and leaves a JSON (--json): machine, versions, and each check's status and figures.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parents[0] / "src"), str(TESTS), str(TESTS / "benchmarks"), str(TESTS / "gpu")]
Figures = dict[str, float | str]


@dataclass(frozen=True)
class Check:
    """packages: without which it is skipped. card: it asks for a GPU."""

    name: str
    run: Callable[[Path], Figures]
    packages: tuple[str, ...] = ("transformers",)
    card: bool = False


@dataclass
class Outcome:
    name: str
    status: str
    """ok, failed or skipped."""
    seconds: float = 0.0
    figures: Figures = field(default_factory=dict)
    why: str = ""


def list_checks() -> list[Check]:
    """In order of value: the first ones decide whether a run on a card ends at all."""
    import memory
    import numbers_alike
    import speed

    train = ("transformers", "peft", "accelerate")
    return [
        Check("hand-over of memory", memory.hand_over, train),
        Check("two passes of fifty trees", speed.two_passes),
        Check("a step of every task", numbers_alike.every_task, train),
        Check("auto dtypes, no TF32", numbers_alike.auto_dtypes),
        Check("parity's reference on a full card", memory.parity_reference, card=True),
        Check("scores as on the CPU", numbers_alike.scores, card=True),
        Check("attention kernels", numbers_alike.kernels),
        Check("vectors alone and in a batch, search", numbers_alike.vectors),
        Check("attention forms", numbers_alike.forms),
        Check("throughput of scoring", speed.scoring),
        Check("throughput of training", speed.training, train),
        Check("memory that is too small, scoring", memory.small_scoring, card=True),
        Check("memory that is too small, training", memory.small_training, train, card=True),
        Check("memory as planned", memory.planned_memory, train, card=True),
        Check("two workers, one killed", memory.two_workers),
        Check("overflow in float16 through a worker", numbers_alike.overflow, card=True),
        Check("a killed training goes on", numbers_alike.resume, train),
        Check("100,000 vectors searched", speed.search, ()),
        Check("vLLM answers as transformers", numbers_alike.vllm, ("transformers", "vllm"), card=True),
        Check("vLLM beside another process", memory.vllm_beside_another, ("transformers", "vllm"), card=True),
    ]


def run_check(check: Check, has_card: bool) -> Outcome:
    missing = [package for package in check.packages if not find_spec(package)]
    if missing:
        return Outcome(check.name, "skipped", why=f"{', '.join(missing)} is not installed")
    if check.card and not has_card:
        return Outcome(check.name, "skipped", why="there is no GPU")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            figures = check.run(Path(folder))
        except Exception as error:  # the next checks are asked all the same
            traceback.print_exc()
            return Outcome(check.name, "failed", time.monotonic() - start, why=f"{type(error).__name__}: {error}"[:300])
    return Outcome(check.name, "ok", time.monotonic() - start, figures)


def describe_card() -> dict[str, Any]:
    """{} without a GPU."""
    import torch

    if not torch.cuda.is_available():
        return {}
    card = torch.cuda.get_device_properties(0)
    capability = f"sm_{card.major}{card.minor}"
    return {
        "card": card.name,
        "cards": torch.cuda.device_count(),
        "capability": capability,
        "gb": card.total_memory / 1e9,
    }


def read_versions() -> dict[str, str]:
    names = ("torch", "transformers", "peft", "accelerate", "bitsandbytes", "sentence-transformers", "vllm")
    installed = {name for distribution in metadata.distributions() if (name := distribution.metadata["Name"])}
    return {name: metadata.version(name) for name in names if name in installed}


def print_outcomes(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        shown = ", ".join(f"{name} {show(value)}" for name, value in outcome.figures.items())
        print(f"{outcome.status:8} {outcome.seconds:6.1f} s  {outcome.name:38} {outcome.why or shown}")


def show(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else value


def main() -> None:
    from machine import describe_machine

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=TESTS / "gpu" / "results.json")
    parser.add_argument("--only", default="", help="checks whose name holds this")
    options = parser.parse_args()
    card = describe_card()
    print(card or "no GPU: what a CPU can do, on tiny models", flush=True)
    outcomes = []
    for check in list_checks():
        if options.only in check.name:
            outcomes.append(run_check(check, bool(card)))
            print_outcomes(outcomes[-1:])
            sys.stdout.flush()
    print("\n" + "=" * 100)
    print_outcomes(outcomes)
    report = {
        "machine": {**describe_machine(), **card},
        "versions": read_versions(),
        "checks": [vars(one) for one in outcomes],
    }
    options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if any(outcome.status == "failed" for outcome in outcomes):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
