"""Quantises a model to 4 or 8 bits with llm-compressor, in a process and environment of its own (`make quantise`).

Leaves weights in compressed-tensors' format, which vLLM and transformers load, with their config.json; tokenizer, chat
template and generation config unchanged; and weights.json, which names parent, settings and calibration rows.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from kaggle_llm.base import paths, records
from kaggle_llm.engines.linear_head import LINEAR_HEAD, find_head_kind
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.quantised import read_quantisation
from kaggle_llm.weights.checkpoint import INDEX, Checkpoint, is_float
from kaggle_llm.weights.shard_writer import copy_text_files

GROUP_SIZES = (128, 64, 32)  # those of vLLM's Marlin kernels, which compute W4A16 on a T4
GROUPWISE = ("gptq", "awq")
EMBEDDING_NAMES = ("embed", "wte", "wpe")  # in names of matrices that are no linear layers
WORKER_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "LLM_COMPRESSOR_LOG_LEVEL": "ERROR",  # until the worker sets up its own log
    "PYTHONUNBUFFERED": "1",
}
PROGRESS_BAR = re.compile(r"\d+%\||it/s|s/it")  # what tqdm writes
CURSOR_UP = "\x1b[A"
LAST_LINES = 25  # lines of the worker's output in an error message


@dataclass
class QuantizeSettings:
    scheme: Literal["none", "gptq", "awq", "smoothquant"] = "none"
    """gptq, awq: W4A16, weights in 4 bits by groups, symmetric for gptq. smoothquant: W8A8, int8 on both sides."""
    group_size: int = 128
    """Columns that share a scale (gptq, awq): 128, 64 or 32."""
    rows: int = 128
    """Training rows whose prompts are used for calibration."""
    tensor_parallel_size: int = 1
    """GPUs that share each layer in the engine that ships: no group may lie on two of them."""
    ignore: list[str] = field(default_factory=lambda: ["lm_head"])
    """Linear layers that are not quantised: names, or re:<regular expression> that matches from the start."""

    def __post_init__(self) -> None:
        if self.group_size not in GROUP_SIZES:
            raise ValueError(f"group_size = {self.group_size}: vLLM's kernels on a T4 take {GROUP_SIZES}")
        if self.rows < 1 or self.tensor_parallel_size < 1:
            raise ValueError(
                f"rows = {self.rows}, tensor_parallel_size = {self.tensor_parallel_size}: both must be 1 or more"
            )


def check_group_size(model: Path, settings: QuantizeSettings) -> None:
    """Raises ValueError where the groups do not divide the columns that a GPU holds of a linear layer.

    Reads headers only. The message names the largest group size that fits all layers.
    """
    if settings.scheme not in GROUPWISE:
        return
    columns = list_linear_layers(model, settings.ignore)
    cards, size = settings.tensor_parallel_size, settings.group_size
    wrong = [name for name, count in columns.items() if count % (cards * size)]
    if not wrong:
        return
    fitting = [other for other in GROUP_SIZES if not any(count % (cards * other) for count in columns.values())]
    divided = f" / {cards} GPUs" if cards > 1 else ""
    shown = ", ".join(f"{name} ({columns[name]}{divided} columns)" for name in wrong[:3])
    way_out = f"set quantize.group_size={fitting[0]}" if fitting else "no size fits: add them to quantize.ignore"
    raise ValueError(
        f"quantize.group_size = {size} does not divide {len(wrong)} of {len(columns)} linear layers of "
        f"{paths.relative(model)}: {shown}; {way_out}"
    )


def list_linear_layers(model: Path, ignore: Sequence[str] = ()) -> dict[str, int]:
    """Linear layer that would be quantised → its columns, from the headers of the safetensors files.

    A head of labels is none of them: it stays in full precision.
    """
    columns, ignore = {}, [*ignore, LINEAR_HEAD]
    for name, tensor in Checkpoint(model).tensors.items():
        layer, _, ending = name.rpartition(".")
        embedding = any(part in layer for part in EMBEDDING_NAMES)
        if ending == "weight" and len(tensor.shape) == 2 and not embedding and not is_ignored(layer, ignore):
            columns[layer] = tensor.shape[1]
    return columns


def is_ignored(layer: str, ignore: Sequence[str]) -> bool:
    """Whether `ignore` names the layer, by the rules of compressed-tensors."""
    return any(re.match(rule[3:], layer) if rule.startswith("re:") else rule == layer for rule in ignore)


def quantize(
    model: Path, ids: Sequence[str], prompts: Sequence[Prompt], settings: QuantizeSettings, folder: Path, seed: int
) -> None:
    """Quantise `model` into `folder`, calibrated on `prompts`, one for each of the training rows `ids`.

    `folder` is complete or absent afterwards. Raises ValueError for a source that is no full-precision causal model, a
    group size that does not fit, and an unusable result; FileNotFoundError without the environment; RuntimeError with
    its last lines where llm-compressor fails.
    """
    if settings.scheme == "none":
        raise ValueError("quantize.scheme = none: nothing to do, set gptq, awq or smoothquant")
    if not prompts or len(ids) != len(prompts) or not all(prompts):
        raise ValueError(f"{len(ids)} ids and {len(prompts)} prompts: each row needs one prompt that is not empty")
    check_source(model)
    check_group_size(model, settings)
    records.make_folder(folder, partial(_fill_quantised, model, list(ids), prompts, settings, seed))


def _fill_quantised(
    model: Path, ids: list[str], prompts: Sequence[Prompt], settings: QuantizeSettings, seed: int, folder: Path
) -> None:
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=".job-", dir=folder) as scratch:  # as large as a model: not in /tmp
        made, versions = Path(scratch, "model"), Path(scratch, "versions.json")
        job = {
            "model": str(model.absolute()),
            "output": str(made.absolute()),
            "versions": str(versions.absolute()),
            "scheme": settings.scheme,
            "group_size": settings.group_size,
            "ignore": [*settings.ignore, LINEAR_HEAD] if find_head_kind(model) else settings.ignore,
            "seed": seed,
            "prompts": [list(prompt) for prompt in prompts],
        }
        run_worker(job, Path(scratch, "job.json"))
        check_result(made, list_linear_layers(model, settings.ignore))
        copy_text_files(model, folder)
        for path in made.iterdir():
            if path.suffix == ".safetensors" or path.name in (INDEX, "config.json"):
                path.replace(folder / path.name)
        about = {
            "stage": "quantised",
            "parents": {"model": paths.relative(model)},
            "settings": asdict(settings),
            "seed": seed,
            "calibration": ids,
            "versions": records.read_json(versions),
            "seconds": round(time.monotonic() - start, 1),
        }
    records.write_json(folder / records.WEIGHTS, about)


def check_source(model: Path) -> None:
    """Raises ValueError for an adapter, quantised weights, and models that are not causal."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    name = paths.relative(model)
    if (model / records.ADAPTER).is_file():
        raise ValueError(f"{name} is an adapter: merge it into its base, and quantise the merged model")
    config = records.read_json(paths.model_folder(str(model.absolute())) / "config.json")
    method = read_quantisation(model).get("quant_method")
    if method:
        raise ValueError(f"{name} is quantised already ({method}): quantise the model that it was made from")
    architectures = config.get("architectures") or ["a model without architectures in its config"]
    if architectures[0] not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values() and find_head_kind(model) is None:
        raise ValueError(f"{name} is {architectures[0]}: llm-compressor quantises causal models here")


# the worker process -------------------------------------------------------------------------------------------------


def find_python() -> Path:
    """Python of the environment with llm-compressor; raises FileNotFoundError where that is missing."""
    python = paths.root() / ".venv-quantise" / "bin" / "python"
    if not python.is_file():
        raise FileNotFoundError(f"{paths.relative(python)} is missing: run `make quantise` for llm-compressor")
    return python


def run_worker(job: Mapping[str, Any], path: Path) -> None:
    """Write the job to `path` and run quantize_worker.py on it; raises RuntimeError with its last lines."""
    command = [str(find_python()), str(Path(__file__).with_name("quantize_worker.py")), str(path)]
    path.write_text(json.dumps(job), encoding="utf-8")
    # Thousands of small operations: threads that spin while they wait would take the cores from those that work.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ, **WORKER_ENVIRONMENT}
    last: deque[str] = deque(maxlen=LAST_LINES)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                show_line(line, last)
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        tail = "\n".join(last)
        raise RuntimeError(f"quantising {job['model']} failed with exit code {process.returncode}:\n{tail}")


def show_line(line: str, last: deque[str]) -> None:
    """Print a line of the worker's output; of its progress bars one line for each part (layer) of the model."""
    line = line.replace(CURSOR_UP, "").strip()
    if PROGRESS_BAR.search(line):
        done = re.match(r"\((\d+/\d+)\): Propagating: *100%", line)
        line = f"quantising: part {done[1]} done" if done else ""
    if line and line not in last:
        print(line, file=sys.stderr, flush=True)
        last.append(line)


def check_result(folder: Path, layers: Mapping[str, int]) -> None:
    """Raises ValueError for another format than compressed-tensors', layers left out, and non-finite values."""
    import torch

    method = read_quantisation(folder).get("quant_method")
    if method != "compressed-tensors":
        raise ValueError(f"llm-compressor left a model with quant_method {method!r}, not compressed-tensors")
    checkpoint = Checkpoint(folder)
    skipped = [layer for layer in layers if f"{layer}.weight_scale" not in checkpoint.tensors]
    if skipped:
        raise ValueError(
            f"llm-compressor did not quantise {len(skipped)} of {len(layers)} linear layers, first {skipped[0]}: "
            f"add them to quantize.ignore if that is intended"
        )
    for name, tensor in checkpoint.tensors.items():
        if is_float(tensor.dtype) and not torch.isfinite(checkpoint.read(name)).all():
            raise ValueError(f"{name} is not finite after quantising: is the source finite, is a prompt too long?")
