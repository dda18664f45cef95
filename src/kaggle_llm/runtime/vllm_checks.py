"""Ask the installed vLLM's own checks about a case, in a process of its own; find variables that files set."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kaggle_llm.runtime.case import Case
from kaggle_llm.runtime.rules_numbers import integer_weights

PROBE_TIMEOUT = 180.0  # seconds; it takes about ten
# os.environ["A"] = "1", {"A": "1"}, setdefault("A", "1"), export A=1
SET_VARIABLE = re.compile(r"""\b((?:VLLM|NCCL)_[A-Z0-9_]+)["']?\]?\s*[=:,]\s*["']?([A-Za-z0-9_.]+)""")
# Bits → vLLM's names of weights with zero points, and of symmetric ones.
WITH_ZERO_POINTS, SYMMETRIC = {4: "uint4", 8: "uint8"}, {4: "uint4b8", 8: "uint8b128"}


def ask_vllm(case: Case) -> dict[str, Any]:
    """The answers of vllm_probe about `case`; {} without vLLM, {"error": …} where it did not answer."""
    if not find_spec("vllm"):
        return {}
    return dict(json.loads(_ask(json.dumps(make_question(case), sort_keys=True))))


@functools.cache
def _ask(question: str) -> str:
    command = [sys.executable, "-m", "kaggle_llm.runtime.vllm_probe"]
    try:
        done = subprocess.run(
            command, input=question, capture_output=True, text=True, timeout=PROBE_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return json.dumps({"error": f"it took more than {PROBE_TIMEOUT:.0f} s"})
    if done.returncode:
        return json.dumps({"error": (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]})
    return done.stdout


def make_question(case: Case) -> dict[str, Any]:
    model, card = case.model, case.accelerator
    method = case.settings.get("quantization")  # quantises weights of full precision when they are loaded
    attention = {
        "head_size": model.head_size,
        "kv_cache_dtype": case.kv_cache_dtype,
        "use_mla": model.is_mla,
        "has_sliding_window": model.has_sliding_window,
        "has_sink": "gpt_oss" in model.types,
    }
    return {
        "capability": card.capability,
        "memory_gb": card.memory_gb,
        "dtype": case.engine.dtype,
        "attention": attention,
        "quantisation": model.quantisation or ({"quant_method": method} if method else None),
        "layers": list_layers(case),
    }


def list_layers(case: Case) -> dict[str, dict[str, Any]]:
    """One matrix of integer weights of each shape: as a whole, and one card's part under tensor parallel."""
    group, model, cards = integer_weights(case), case.model, case.tensor_parallel
    if group is None or group["bits"] not in WITH_ZERO_POINTS:
        return {}
    hidden, inner, width = model.hidden, model.heads * model.head_size, model.intermediate
    shapes = {  # rows in, columns out, which of the two is split
        "q_proj": (hidden, inner, 1),
        "o_proj": (inner, hidden, 0),
        "gate_proj": (hidden, width, 1),
        "down_proj": (width, hidden, 0),
    }
    common = {
        "weight_type": (SYMMETRIC if group["symmetric"] else WITH_ZERO_POINTS)[group["bits"]],
        "group_size": group["group_size"],
        "zero_points": not group["symmetric"],
    }
    return {
        name: {
            **common,
            "full_weight_shape": [rows, columns],
            "partition_weight_shape": [
                rows // cards if split == 0 else rows,
                columns // cards if split == 1 else columns,
            ],
        }
        for name, (rows, columns, split) in shapes.items()
    }


def read_environment(folders: Iterable[Path]) -> dict[str, str]:
    """Variables of vLLM and NCCL that the Python files directly in `folders` set, by a search in their text."""
    texts = [path.read_text(encoding="utf-8") for folder in folders for path in sorted(folder.glob("*.py"))]
    return {match[1]: match[2] for text in texts for match in SET_VARIABLE.finditer(text)}
