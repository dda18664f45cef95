"""The installed vLLM's own checks, asked about a case in a process of its own, and the variables that files set."""

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

PATIENCE = 180.0  # seconds; it takes about ten
# os.environ["A"] = "1", {"A": "1"}, setdefault("A", "1"), export A=1
VARIABLE = re.compile(r"""\b((?:VLLM|NCCL)_[A-Z0-9_]+)["']?\]?\s*[=:,]\s*["']?([A-Za-z0-9_.]+)""")
ROUND, SHIFTED = {4: "uint4", 8: "uint8"}, {4: "uint4b8", 8: "uint8b128"}  # vLLM's names, by bits


def ask_vllm(case: Case) -> dict[str, Any]:
    """What the installed vLLM says of `case`: see vllm_probe. {} without vLLM, {"error": …} where it did not answer."""
    if not find_spec("vllm"):
        return {}
    found: dict[str, Any] = json.loads(_ask(json.dumps(make_question(case), sort_keys=True)))
    return found


@functools.cache
def _ask(question: str) -> str:
    command = [sys.executable, "-m", "kaggle_llm.runtime.vllm_probe"]
    try:
        done = subprocess.run(command, input=question, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return json.dumps({"error": f"it took more than {PATIENCE:.0f} s"})
    if done.returncode:
        return json.dumps({"error": (done.stderr.strip().splitlines() or ["no word"])[-1]})
    return done.stdout


def make_question(case: Case) -> dict[str, Any]:
    model, gpus = case.model, case.runtime.machine.gpus
    method = case.given.get("quantization")  # of weights in full precision, when they are loaded
    attention = {
        "head_size": model.head_size,
        "kv_cache_dtype": case.kv_cache_dtype,
        "use_mla": model.is_mla,
        "has_sliding_window": model.has_sliding_window,
        "has_sink": "gpt_oss" in model.types,
    }
    return {
        "capability": gpus.capability,
        "memory_gb": gpus.memory_gb,
        "dtype": case.engine.dtype,
        "attention": attention,
        "quantisation": model.quantisation or ({"quant_method": method} if method else None),
        "layers": list_layers(case),
    }


def list_layers(case: Case) -> dict[str, dict[str, Any]]:
    """The matrices of integer weights that differ: as a whole, and as tensor parallel cuts them for one card."""
    group, model, cards = integer_weights(case), case.model, case.tensor_parallel
    if group is None or group["bits"] not in ROUND:
        return {}
    hidden, inner, width = model.hidden, model.heads * model.head_size, model.intermediate
    shapes = {  # rows in, columns out, which of the two is cut
        "q_proj": (hidden, inner, 1),
        "o_proj": (inner, hidden, 0),
        "gate_proj": (hidden, width, 1),
        "down_proj": (width, hidden, 0),
    }
    common = {
        "weight_type": (SHIFTED if group["symmetric"] else ROUND)[group["bits"]],
        "group_size": group["group_size"],
        "zero_points": not group["symmetric"],
    }
    return {
        name: {
            **common,
            "full_weight_shape": [rows, columns],
            "partition_weight_shape": [columns_of(rows, cards, cut == 0), columns_of(columns, cards, cut == 1)],
        }
        for name, (rows, columns, cut) in shapes.items()
    }


def columns_of(size: int, cards: int, is_cut: bool) -> int:
    return size // cards if is_cut else size


def read_environment(folders: Iterable[Path]) -> dict[str, str]:
    """Variables of vLLM and NCCL that the Python files directly in `folders` set, as far as their text tells."""
    texts = [path.read_text(encoding="utf-8") for folder in folders for path in sorted(folder.glob("*.py"))]
    return {found[1]: found[2] for text in texts for found in VARIABLE.finditer(text)}
