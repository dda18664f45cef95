"""A bundle of unchanged weights made again: python tests/benchmarks/bundle.py --json PATH [--gigabytes 1]

A repository of its own with the demo competition, a smoke run of exp001_retrieve on a pico encoder, and beside the
encoder's weights a file of random bytes. Contenders: cp-sha256, which copies that file and hashes the copy, as scripts
do that pack a folder for Kaggle; kaggle_llm, `bundle_run` called twice, whose first call hashes it. The search for
secrets is timed on a vocabulary of 50 MB of text.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from machine import describe_machine

from kaggle_llm.base import records
from kaggle_llm.base.tables import print_table
from kaggle_llm.kaggle.bundle import bundle_run
from kaggle_llm.kaggle.hashes import FRESH
from kaggle_llm.kaggle.secrets import check_secrets

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pico import save_encoder, save_llama
from workspace import make_workspace, succeed

RUN = "exp001_retrieve--smoke"
WORDS = 1_700_000  # of the vocabulary: 50 MB
BLOCK = 2**24


def run_benchmark(gigabytes: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        large = prepare_run(Path(folder), gigabytes)
        copied = measure(lambda: copy_and_hash(large, Path(folder) / "copy"))
        time.sleep(FRESH / 1e9)
        bundled = {"seconds_first": measure(lambda: bundle_run(RUN)), "seconds": measure(lambda: bundle_run(RUN))}
        bundled["secrets_seconds_per_100_mb"] = measure_secrets(Path(folder) / "vocabulary")
    contenders = [{"name": "cp-sha256", "figures": {"seconds": copied}}, {"name": "kaggle_llm", "figures": bundled}]
    return {
        "benchmark": "bundle",
        "gigabytes": gigabytes,
        "machine": describe_machine(),
        "versions": records.package_versions(),
        "contenders": contenders,
    }


def prepare_run(folder: Path, gigabytes: float) -> Path:
    """The large file; $KAGGLE_LLM_ROOT is a repository in which RUN is complete and ships it."""
    (folder / "models").mkdir()
    llm, encoder = save_llama(folder / "models" / "pico-llm"), save_encoder(folder / "models" / "pico-encoder")
    large = encoder / "more.safetensors"
    with large.open("wb") as file:
        for _ in range(round(gigabytes * 2**30 / BLOCK)):
            file.write(os.urandom(BLOCK))
    workspace = make_workspace(folder / "repository", llm, encoder)
    succeed(workspace.train("exp001_retrieve", "--smoke"))
    os.environ["KAGGLE_LLM_ROOT"] = str(workspace.root)
    return large


def copy_and_hash(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    records.hash_file(target)


def measure_secrets(folder: Path) -> float:
    rng = random.Random(0)
    folder.mkdir()
    records.write_json(folder / "tokenizer.json", {f"{rng.getrandbits(60):x}": n for n in range(WORDS)})
    seconds = measure(lambda: check_secrets(folder))
    return seconds * 1e8 / (folder / "tokenizer.json").stat().st_size


def measure(do: Callable[[], object]) -> float:
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def print_benchmark(report: Mapping[str, Any]) -> None:
    rows = [
        [contender["name"], figure, f"{value:.2f}"]
        for contender in report["contenders"]
        for figure, value in contender["figures"].items()
    ]
    print_table(f"bundle of {report['gigabytes']} GB of weights", ("contender", "figure", ""), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", required=True, help="where the figures go")
    parser.add_argument("--gigabytes", type=float, default=1.0, help="of the large file")
    arguments = parser.parse_args()
    report = run_benchmark(arguments.gigabytes)
    records.write_json(arguments.json, report)
    print_benchmark(report)


if __name__ == "__main__":
    main()
