"""Merging, time, memory and exactness: python tests/benchmarks/merge.py --json PATH [--gb 2] [--repeat 5]

A random bfloat16 checkpoint of Llama's shape in several shards and an adapter of r = 16 on all linear layers are drawn
into a temporary folder (TMPDIR must be a disk, no memory). Every contender merges them in a process of its own, in
turns, --repeat times; figures are medians. The clock runs around the work alone (imports are over, for each process
merged a model of one layer first) and until what was written has been synced to the disk; all that is read was read
once just before. Peak memory is the process's, imports included. Differences are against W + s·B·A, computed tensor by
tensor in fp32 and rounded once; `differing` counts elements, `differing_from_peft` those that PEFT gives otherwise.

cp copies the base: the floor. mergekit lives in .venv-peers (make peers) and is left out where that is absent. Its
linear, slerp and ties of two checkpoints, computed in fp32 like this project's, stand under "checkpoints", run a fifth
as often: mergekit's ties takes minutes. Of changes
that are equal at TIES's cut, of which bfloat16 has many, this project keeps the first and mergekit some others.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import describe_machine
from random_llama import MEMBERS, compute_reference, list_tensors, make_models

from kaggle_llm.base import records
from kaggle_llm.base.tables import print_table

if TYPE_CHECKING:
    import torch

PEERS = Path(__file__).resolve().parents[2] / ".venv-peers" / "bin" / "python"
SOURCE = Path(__file__).resolve().parents[2] / "src"
METHODS = ("linear", "slerp", "ties")
FEWER = 5  # runs of an adapter merge for one of a method
WARM = "warm"  # models of one layer, which every process merges before the clock runs
COPIES = 6  # of the checkpoint that lie on the disk at the same time, at most
RSS_UNITS_PER_MB = 2**20 if sys.platform == "darwin" else 2**10  # getrusage(2): bytes on macOS, else KiB
Merge = Callable[[Path, Path], None]


# the contenders ---------------------------------------------------------------------------------------------
# Each imports what it needs, then returns the work: (folder of the models, folder to be made) → None.


def prepare_cp() -> Merge:
    return lambda models, out: copy_files(models / "base", out)


def copy_files(source: Path, out: Path) -> None:
    out.mkdir()
    for path in sorted(source.iterdir()):
        shutil.copyfile(path, out / path.name)


def prepare_peft() -> Merge:
    """As its documentation does it; the adapter stays in fp32, the base in bfloat16."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def merge(models: Path, out: Path) -> None:
        model = AutoModelForCausalLM.from_pretrained(models / "base", dtype=torch.bfloat16)
        PeftModel.from_pretrained(model, models / "adapter").merge_and_unload().save_pretrained(out)

    return merge


def prepare_mergekit() -> Merge:
    """base+adapter in its notation: it merges the adapter with PEFT into a cache, and writes that as its output."""
    run = prepare_mergekit_config()

    def merge(models: Path, out: Path) -> None:
        run({"models": [{"model": f"{models / 'base'}+{models / 'adapter'}"}], "merge_method": "passthrough"}, out)

    return merge


def prepare_mergekit_config() -> Callable[[Mapping[str, Any], Path], None]:
    """Computes in what the config says, else in what is stored; writes bfloat16."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    def run(config: Mapping[str, Any], out: Path) -> None:
        cache = out.with_name(f"{out.name}-cache")
        options = MergeOptions(
            lora_merge_cache=str(cache), lora_merge_dtype="bfloat16", copy_tokenizer=False, write_model_card=False
        )
        run_merge(MergeConfiguration.model_validate({"out_dtype": "bfloat16", **config}), str(out), options)
        shutil.rmtree(cache, ignore_errors=True)

    return run


def prepare_mergekit_soup(method: str) -> Merge:
    run = prepare_mergekit_config()
    parameters = {"linear": {"weight": 0.5}, "slerp": {}, "ties": {"weight": 0.5, "density": 0.5}}[method]

    def merge(models: Path, out: Path) -> None:
        members = [{"model": str(models / name), "parameters": parameters} for name in MEMBERS]
        config: dict[str, Any] = {"merge_method": method, "models": members, "dtype": "float32"}
        if method == "slerp":
            config |= {"base_model": str(models / MEMBERS[0]), "parameters": {"t": 0.5}}
        if method == "ties":
            config |= {"base_model": str(models / "base")}
        run(config, out)

    return merge


def prepare_soup(method: Any) -> Merge:
    from kaggle_llm.weights.soup import SoupSettings, merge_checkpoints

    def merge(models: Path, out: Path) -> None:
        base = models / "base" if method == "ties" else None
        merge_checkpoints([models / name for name in MEMBERS], out, SoupSettings(method), base)

    return merge


def prepare_kaggle_llm() -> Merge:
    from kaggle_llm.weights.merge import merge_adapter

    return lambda models, out: merge_adapter(models / "base", models / "adapter", out)


CONTENDERS: dict[str, Callable[[], Merge]] = {
    "cp": prepare_cp,
    "peft": prepare_peft,
    "mergekit": prepare_mergekit,
    "kaggle_llm": prepare_kaggle_llm,
}
SOUPS: dict[str, Callable[[], Merge]] = {
    f"{who}-{method}": functools.partial(prepare, method)
    for method in METHODS
    for who, prepare in (("mergekit", prepare_mergekit_soup), ("kaggle_llm", prepare_soup))
}


# measuring --------------------------------------------------------------------------------------------------


def run_contender(name: str, models: Path, out: Path) -> None:
    """In the contender's own process: prints its figures as the last line."""
    merge = {**CONTENDERS, **SOUPS}[name]()
    warm = out.with_name(f"{out.name}-warm")
    merge(models / WARM, warm)  # libraries import much of themselves at their first use
    shutil.rmtree(warm)
    started = time.perf_counter()
    merge(models, out)
    sync_files(out)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / RSS_UNITS_PER_MB
    print(json.dumps({"seconds": seconds, "peak_rss_mb": peak}))


def sync_files(folder: Path) -> None:
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def call_contender(name: str, models: Path, out: Path) -> dict[str, float]:
    """Its figures, from a process of its own that finds everything in the page cache and nothing left to be synced."""
    for path in models.glob("*/*.safetensors"):
        read_through(path)
    os.sync()
    load = os.getloadavg()[0]
    python = str(PEERS) if name.startswith("mergekit") else sys.executable
    words = [python, __file__, "--contender", name, "--models", str(models), "--out", str(out)]
    done = subprocess.run(words, env=child_environment(), stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**figures, "load_before": load}


def child_environment() -> dict[str, str]:
    """PYTHONPATH: .venv-peers has no kaggle_llm, of which this file needs what is in the standard library only."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(SOURCE)}


def read_through(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(2**24):
            pass


def compare(found: Path, expected: Mapping[str, Callable[[], torch.Tensor]]) -> tuple[float, int]:
    """The largest difference and the number of elements that differ; raises ValueError where tensors are missing."""
    tensors = list_tensors(found)
    if tensors.keys() != expected.keys():
        raise ValueError(f"{found.name} lacks {sorted(expected.keys() - tensors.keys())} or has too many tensors")
    largest, differing = 0.0, 0
    for name, read in tensors.items():
        first, second = read(), expected[name]()
        if first.dtype != second.dtype or first.shape != second.shape:
            raise ValueError(f"{found.name}: {name} is {first.dtype} {first.shape}, not {second.dtype} {second.shape}")
        difference = (first.float() - second.float()).abs()
        largest = max(largest, difference.max().item())
        differing += int((difference > 0).sum())
    return largest, differing


def run_benchmark(gb: float, repeat: int) -> dict[str, Any]:
    known = [name for name in (*CONTENDERS, *SOUPS) if PEERS.is_file() or not name.startswith("mergekit")]
    for name in sorted({*CONTENDERS, *SOUPS} - set(known)):
        print(f"{name} is left out: {PEERS} is absent (make peers)", flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        models = Path(temporary)
        check_space(models, gb)
        words = [sys.executable, __file__, "--make", str(models), "--gb", str(gb)]
        subprocess.run(words, env=child_environment(), check=True)
        adapters = measure_all([name for name in known if name in CONTENDERS], models, repeat)
        compare_adapters(adapters, models)
        soups = measure_all([name for name in known if name in SOUPS], models, max(1, repeat // FEWER))
        shards = [path.stat().st_size for path in (models / "base").glob("*.safetensors")]
    return {
        "benchmark": "merge",
        "machine": describe_machine(),
        "versions": records.package_versions() | peer_versions(),
        "checkpoint": {"bytes": sum(shards), "shards": len(shards), "largest_shard_mb": max(shards) / 2**20},
        "repeat": repeat,
        "contenders": list(adapters.values()),
        "checkpoints": list(soups.values()),
    }


def check_space(folder: Path, gb: float) -> None:
    free, needed = shutil.disk_usage(folder).free, COPIES * max(gb, 0.1) * 1e9
    if free < needed:
        raise OSError(f"{folder} needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} are free: set TMPDIR to another disk")


def measure_all(names: Sequence[str], models: Path, repeat: int) -> dict[str, dict[str, Any]]:
    """In turns, so that a busy minute strikes all alike. The last outputs of adapters stay; a method's are compared."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(repeat):
        for name in names:
            out = models / f"out-{name}"
            print(f"{name}, {number + 1} of {repeat} … (load average {os.getloadavg()[0]:.1f})", flush=True)
            runs[name].append(call_contender(name, models, out))
            if number + 1 < repeat:
                shutil.rmtree(out)
            elif name.startswith("kaggle_llm-"):
                compare_soups(runs, name, models)
    return {name: summarise(name, found) for name, found in runs.items()}


def summarise(name: str, runs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Medians over the runs; what is measured once is in the last run alone."""
    figures = {key: statistics.median(run[key] for run in runs if key in run) for key in runs[-1]}
    return {"name": name, "figures": figures, "runs": list(runs)}


def compare_adapters(contenders: Mapping[str, dict[str, Any]], models: Path) -> None:
    """Adds the differences to the figures."""
    peft = list_tensors(models / "out-peft")
    for name, contender in contenders.items():
        out, figures = models / f"out-{name}", contender["figures"]
        figures["max_abs_diff"], figures["differing"] = compare(out, compute_reference(models, name != "cp"))
        if name != "cp":
            figures["differing_from_peft"] = compare(out, peft)[1]
    for name in contenders:
        shutil.rmtree(models / f"out-{name}")


def compare_soups(runs: dict[str, list[dict[str, float]]], name: str, models: Path) -> None:
    """Adds how far this project's soup is from mergekit's by the same method, and removes both."""
    out, peer = models / f"out-{name}", models / f"out-{name.replace('kaggle_llm', 'mergekit')}"
    if peer.is_dir():
        largest, differing = compare(out, list_tensors(peer))
        runs[name][-1] |= {"max_abs_diff": largest, "differing": differing}
        shutil.rmtree(peer)
    shutil.rmtree(out)


def peer_versions() -> dict[str, str]:
    """Of what mergekit runs with."""
    if not PEERS.is_file():
        return {}
    names = ("mergekit", "torch", "transformers", "peft")
    code = f"import json; from importlib.metadata import version; print(json.dumps(list(map(version, {names}))))"
    done = subprocess.run([str(PEERS), "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    return {f"peers {name}": found for name, found in zip(names, json.loads(done.stdout), strict=True)}


def print_benchmark(report: Mapping[str, Any]) -> None:
    about, floor = report["checkpoint"], report["contenders"][0]["figures"]["seconds"]
    size = f"{about['bytes'] / 1e9:.2f} GB in {about['shards']} shards, the largest {about['largest_shard_mb']:.0f} MB"
    columns = ("", "seconds", "× cp", "peak MB", "largest difference", "elements that differ", "from PEFT's", "load")
    for title, key in (("an adapter", "contenders"), ("two checkpoints (differences: to mergekit)", "checkpoints")):
        rows = []
        for contender in report[key]:
            figures = contender["figures"]
            row = [f"{figures['seconds']:.2f}", f"{figures['seconds'] / floor:.2f}", f"{figures['peak_rss_mb']:.0f}"]
            row.append(f"{figures['max_abs_diff']:.2g}" if "max_abs_diff" in figures else "")
            row += [f"{figures[name]:.0f}" if name in figures else "" for name in ("differing", "differing_from_peft")]
            rows.append([contender["name"], *row, f"{figures['load_before']:.1f}"])
        print_table(f"{title}: {size}", columns, rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", help="where the figures go")
    parser.add_argument("--gb", type=float, default=2.0, help="size of the checkpoint, 10⁹ bytes")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each contender")
    parser.add_argument("--make", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--contender", choices=[*CONTENDERS, *SOUPS], help=argparse.SUPPRESS)
    parser.add_argument("--models", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not (arguments.contender or arguments.make or arguments.json):
        parser.error("--json PATH is needed")
    if arguments.repeat < 1 or arguments.gb <= 0:
        parser.error(f"--repeat {arguments.repeat} --gb {arguments.gb}: 1 or more, and more than 0")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    if arguments.make:
        make_models(arguments.make, arguments.gb)
        (arguments.make / WARM).mkdir()
        make_models(arguments.make / WARM, 0)
    elif arguments.contender:
        run_contender(arguments.contender, arguments.models, arguments.out)
    else:
        report = run_benchmark(arguments.gb, arguments.repeat)
        records.write_json(arguments.json, report)
        print_benchmark(report)


if __name__ == "__main__":
    main()
