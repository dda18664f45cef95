"""Memory and time of one contrastive batch, with its texts computed a part at a time (GradCache) and all at once.

    python tests/benchmarks/gradcache.py --json tests/benchmarks/gradcache.json

MiniLM, 256 dialogues and their summaries (`make data`), forward and backward, without dropout, on one thread.
Contenders, each in a process of its own: at-once (sentence-transformers' MultipleNegativesRankingLoss), kaggle_llm (as
exp010 trains, 2,048 tokens at a time). max_abs_diff: of the gradients, beside the largest one of at-once.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "real"))
from machine import describe_machine
from sources import ROOT, require

TEXTS = ROOT / "input" / "demo-dialogues" / "train.csv"
MODEL = ROOT / "input" / "models" / "all-MiniLM-L6-v2"
CONTENDERS = ("at-once", "kaggle_llm")
MAX_TOKENS, PART_TOKENS, TEMPERATURE = 128, 2048, 0.05
RSS_UNITS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10


def read_pairs(count: int) -> list[list[str]]:
    """The first dialogues, and their summaries."""
    with TEXTS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))[:count]
    return [[row[column] for row in rows] for column in ("dialogue", "summary")]


def make_loss(name: str, model: Any) -> Any:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    from kaggle_llm.tasks import embedding

    if name == "at-once":
        return MultipleNegativesRankingLoss(model, scale=1 / TEMPERATURE)
    settings = embedding.EmbeddingSettings(max_tokens=MAX_TOKENS, temperature=TEMPERATURE)
    return embedding.make_loss(model, settings, PART_TOKENS)


def measure_batch(name: str, count: int, folder: Path) -> None:
    """In the contender's own process: its figures and its gradient go into the folder."""
    from sentence_transformers import SentenceTransformer

    from kaggle_llm.engines.texts import encode_texts
    from kaggle_llm.training.padding import pad_right

    model = SentenceTransformer(str(MODEL), device="cpu").eval()
    features = [pad_right(model, encode_texts(model.tokenizer, texts, MAX_TOKENS)) for texts in read_pairs(count)]
    start = time.process_time()
    loss = make_loss(name, model)(features, None)
    loss.backward()
    figures = {
        "seconds": time.process_time() - start,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / RSS_UNITS_PER_MB,
        "loss": loss.item(),
    }
    (folder / f"{name}.json").write_text(json.dumps(figures), encoding="utf-8")
    gradients = [weight.grad.flatten().numpy() for weight in model.parameters() if weight.grad is not None]
    np.save(folder / f"{name}.npy", np.concatenate(gradients))


def call_contender(name: str, count: int, folder: Path) -> dict[str, Any]:
    words = [sys.executable, __file__, "--contender", name, "--pairs", str(count), "--folder", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    subprocess.run(words, env=environment, check=True)
    figures = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    expected = np.load(folder / f"{CONTENDERS[0]}.npy")
    figures["max_abs_diff"] = float(np.abs(np.load(folder / f"{name}.npy") - expected).max())
    figures["largest_gradient"] = float(np.abs(expected).max())
    print(f"{name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures.items()), flush=True)
    return {"name": name, "figures": figures}


def run_benchmark(count: int) -> dict[str, Any]:
    from kaggle_llm.base import records

    with tempfile.TemporaryDirectory(prefix="kaggle-llm-gradcache-") as temporary:
        contenders = [call_contender(name, count, Path(temporary)) for name in CONTENDERS]
    return {
        "benchmark": "gradcache",
        "machine": describe_machine(),
        "versions": records.package_versions(),
        "pairs": count,
        "contenders": contenders,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="where the figures go")
    parser.add_argument("--pairs", type=int, default=256)
    for word in ("contender", "folder"):
        parser.add_argument(f"--{word}", type=Path if word == "folder" else str, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    require(TEXTS)
    if arguments.contender:
        measure_batch(arguments.contender, arguments.pairs, arguments.folder)
    elif arguments.json is None:
        parser.error("--json PATH is needed")
    else:
        report = run_benchmark(arguments.pairs)
        arguments.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
