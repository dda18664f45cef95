"""Is the memory right that `kaggle-llm plan` says? python tests/benchmarks/plan_memory.py --json PATH

Random Llamas of a few sizes (and SmolLM2-135M-Instruct where it is) are trained for two steps of two parts in float32
on the CPU, each in a process of its own. Measured is the process's largest resident memory less what it held before,
after a training of a tiny model. Estimated is training/estimate.py's sum. AdamW updates all weights at once, as it does
on a card, with a copy of them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from machine import describe_machine

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
SMOLLM = ROOT / "input" / "models" / "SmolLM2-135M-Instruct"
LENGTH, KEPT, TOKENS = 128, 8, 512  # of a text, of its completion, of a part
SHAPES: dict[str, dict[str, int]] = {
    "40M": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "num_attention_heads": 8},
    "150M": {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12, "num_attention_heads": 16},
}
M_MMAP_THRESHOLD = -3  # of mallopt(3)
WAYS: list[dict[str, Any]] = [
    {"method": "lora"},
    {"method": "full"},
    {"method": "lora", "gradient_checkpointing": True},
    {"method": "full", "gradient_checkpointing": True},
]


def read_status(name: str) -> float:
    """Bytes of a line of /proc/self/status: VmRSS is held now, VmHWM was the most."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(float(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def train_measured(small: Path, base: Path, folder: Path, way: Mapping[str, Any]) -> dict[str, float]:
    """{"measured_mb", "estimated_mb"} of one training in this process.

    small: a model that is trained before, so that libraries and their buffers are there. Every tensor of 64 KiB and
    more is mapped by itself: else the C library keeps what is free between others, which no card does.
    """
    import torch

    from kaggle_llm.engines.footprint import Batch, read_shape
    from kaggle_llm.tasks.writing_training import CompletionExample, GenerationTask
    from kaggle_llm.training import trainer
    from kaggle_llm.training.estimate import estimate_training
    from kaggle_llm.training.settings import LoraSettings, TrainingSettings
    from kaggle_llm.training.trainer import Job, fine_tune

    class CardAdamW(torch.optim.AdamW):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named, foreach=True)

    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
    options = {name: value for name, value in way.items() if name != "method"}
    lora = LoraSettings(way["method"])
    training = TrainingSettings(batch=8, batch_tokens=TOKENS, dtype="float32", learning_rate=1e-5, **options)
    batch = Batch(TOKENS, LENGTH, TOKENS // LENGTH * KEPT)
    estimated = estimate_training(read_shape(base), "causal", lora, training, batch).memory.total
    text = tuple(range(10, 10 + LENGTH))
    examples = [CompletionExample(text[:-KEPT], text[-KEPT:])] * 16
    for name in ("before", "measured"):
        (folder / name).mkdir()
    fine_tune(GenerationTask(), examples, Job(small, folder / "before", lora, training, 0))
    before = read_status("VmRSS")
    train = trainer.run_trainer

    def train_from_here(*given: Any, **named: Any) -> None:
        """VmHWM begins anew when the weights are there: loading maps their file too."""
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        train(*given, **named)

    trainer.run_trainer, trainer.choose_optimizer = train_from_here, lambda name: CardAdamW
    fine_tune(GenerationTask(), examples, Job(base, folder / "measured", lora, training, 0))
    return {"measured_mb": (read_status("VmHWM") - before) / 1e6, "estimated_mb": estimated / 1e6}


def describe_way(name: str, way: Mapping[str, Any]) -> str:
    """ "40M full checkpointed"."""
    return f"{name} {way['method']}{' checkpointed' if way.get('gradient_checkpointing') else ''}"


def list_bases(folder: Path) -> dict[str, Path]:
    from pico import save_llama

    made = {name: save_llama(folder / name, **sizes, num_key_value_heads=4) for name, sizes in SHAPES.items()}
    return {**made, **({"SmolLM2-135M": SMOLLM} if SMOLLM.is_dir() else {})}


def run_benchmark(names: list[str]) -> list[dict[str, Any]]:
    """A row for each model and way of training."""
    from pico import save_llama

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        small = save_llama(folder / "small")
        for name, base in list_bases(folder).items():
            for number, way in enumerate(WAYS if not names or name in names else []):
                output = folder / f"{name}-{number}"
                output.mkdir()
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    figures = pool.apply(train_measured, (small, base, output, way))
                rows.append({"name": describe_way(name, way), "figures": figures})
                ratio = figures["estimated_mb"] / figures["measured_mb"]
                print(f"{name} {way}: {figures}, estimated / measured {ratio:.3f}", flush=True)
    return rows


def main() -> None:
    from kaggle_llm.base import records

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", required=True)
    parser.add_argument("--models", default="", help="some of them, with commas between")
    arguments = parser.parse_args()
    rows = run_benchmark([name for name in arguments.models.split(",") if name])
    report = {
        "benchmark": "plan_memory",
        "machine": describe_machine(),
        "versions": records.package_versions(),
        "contenders": rows,
    }
    arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
