"""Whole chains on the real small models, as processes."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from workspace import ROOT, Workspace, make_workspace, succeed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MODELS = ROOT / "input" / "models"


def real_workspace(root: Path, seed: int = 0) -> Workspace:
    return make_workspace(root, MODELS / "SmolLM2-135M-Instruct", MODELS / "all-MiniLM-L6-v2", 600, 40, seed)


@pytest.mark.release
@pytest.mark.parametrize("seed", [0, 1])
def test_the_demo_is_as_hard_as_it_should_be(tmp_path: Path, seed: int) -> None:
    """Set on exp001 alone, frozen before exp002 was tuned, checked on a second seed."""
    workspace = real_workspace(tmp_path, seed)
    succeed(workspace.train("exp001_retrieve"))
    metrics = json.loads((workspace.output / "exp001_retrieve" / "metrics.json").read_text())
    assert 0.35 <= metrics["cv"] <= 0.6
    assert metrics["also"]["recall@8"] >= 0.85


def test_the_packaged_model_answers_and_scores_shared_prefixes_exactly() -> None:
    code = """
import numpy as np, torch
from pathlib import Path
from kaggle_llm_demo.models import check_answer
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.tokenizer import load_tokenizer
folder = Path("input/models/SmolLM2-135M-Instruct")
check_answer(folder)
tokenizer, engine = load_tokenizer(folder), make_engine(folder, EngineSettings())
question = "Question: Dividing fractions. How many scoops of 4/11 of a cup are in 3/5 of a cup?\\nStudent: 20/33\\n"
endings = ["Mistake: adds.\\nTrue?", "Mistake: Turns the wrong fraction upside down.\\nTrue?", "True?"]
prompts = [tokenizer(question)["input_ids"] + tokenizer(ending)["input_ids"] for ending in endings]
labels = [tokenizer(label)["input_ids"] for label in (" Yes", " No")]
found = engine.choices(prompts, labels)
with torch.inference_mode():
    alone = [engine._causal(torch.tensor([p])).logits[0, -1].log_softmax(-1) for p in prompts]
expected = np.array([[row[label[0]].item() for label in labels] for row in alone])
print("difference", np.abs(found - expected).max())
assert np.abs(found - expected).max() < 1e-4
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.release
@pytest.mark.timeout(1500)
def test_lora_merge_gptq_and_vllm_with_a_gate_at_every_stage(tmp_path: Path) -> None:
    """Adapter → merged → GPTQ W4A16, calibrated on the competition's own prompts → vLLM where it has the kernel."""
    if not (ROOT / ".venv-quantise" / ".installed").is_file() or importlib.util.find_spec("vllm") is None:
        pytest.skip("llm-compressor or vLLM is absent: make quantise vllm")
    workspace = replace(real_workspace(tmp_path), timeout=700)
    (workspace.root / ".venv-quantise").symlink_to(ROOT / ".venv-quantise")
    words = ["quantize.scheme=gptq", "quantize.group_size=64", "quantize.rows=32", "training.tokens=2000", "run=gptq"]
    succeed(workspace.train("exp002_rerank", "--smoke", *words, "folds.rows=24"))
    run = workspace.output / "exp002_rerank--gptq-smoke"
    about = json.loads((run / "fold0" / "gptq" / "weights.json").read_text())
    oof = pl.read_parquet(run / "oof.parquet")
    assert len(set(about["calibration"])) == 32 and not set(about["calibration"]) & set(oof["id"])
    if serves_four_bits():
        config = run / "config.yaml"
        served = "engine:\n  kind: vllm\n  dtype: bfloat16"  # vLLM's CPU kernel for 4 bits takes no float32
        config.write_text(config.read_text().replace("engine:\n  kind: transformers\n  dtype: float32", served))
    done = workspace.cli("parity", run.name, "--rows", "24")
    report = json.loads((run / "parity.json").read_text())
    assert "error:" not in done.stderr, done.stderr[-2000:]
    assert done.returncode == 1 and report["status"] == "undecided", "24 rows decide nothing about quantised weights"
    merged, quantised, *vllm = report["steps"]
    assert merged["status"] == "passed" and 0 < merged["differences"]["largest"] <= 1e-4
    assert quantised["status"] == "undecided" and quantised["differences"]["mean"] > 0.001
    rounded = compare_rounded(workspace, run)
    # What GPTQ loses differs between processors; that it loses less than rounding to half as many values does not.
    assert quantised["differences"]["mean"] < rounded["mean"], (quantised["differences"], rounded)
    assert quantised["differences"]["spearman"] > rounded["spearman"], (quantised["differences"], rounded)
    assert all(step["non_finite"] + step["differences"]["other_prompts"] == 0 for step in report["steps"])
    if not serves_four_bits():
        assert not vllm
        pytest.skip("all but vLLM's stage passed: on a CPU without AVX-512 vLLM has no kernel for 4 bits")
    (step,) = vllm
    assert step["after"] == "vllm bfloat16" and step["differences"]["mean"] < 0.1


def compare_rounded(workspace: Workspace, run: Path) -> dict[str, float]:
    """The differences that parity finds where the merged matrices, rounded to 3 bits, stand for those of GPTQ."""
    from safetensors.torch import load_file, save_file

    fold = run / "fold0"
    about = (fold / "gptq" / "weights.json").read_bytes()
    (fold / "gptq").rename(fold / "kept")
    shutil.copytree(fold / "merged", fold / "gptq")
    (fold / "gptq" / "weights.json").write_bytes(about)
    path = fold / "gptq" / "model.safetensors"
    weights = load_file(path)
    path.unlink()
    rounded = {name: round_matrix(weight) if "_proj" in name else weight for name, weight in weights.items()}
    save_file(rounded, path, metadata={"format": "pt"})
    workspace.cli("parity", run.name, "--rows", "24")
    step = json.loads((run / "parity.json").read_text())["steps"][1]
    shutil.rmtree(fold / "gptq")
    (fold / "kept").rename(fold / "gptq")
    return step["differences"]


def round_matrix(weight: Any, bits: int = 3, group: int = 64) -> Any:
    """To the nearest of 2^bits values, symmetric in every `group` of a row."""
    top = 2 ** (bits - 1) - 1
    groups = weight.float().reshape(len(weight), -1, group)
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-9) / top
    return ((groups / scale).round().clamp(-top - 1, top) * scale).reshape(weight.shape).to(weight.dtype)


def serves_four_bits() -> bool:
    """On a CPU, vLLM 0.32 has cpu_gemm_wna16 in its builds for AVX-512 and not in the one for AVX2."""
    import torch

    return "AVX512" in torch.backends.cpu.get_cpu_capability()
