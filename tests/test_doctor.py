"""What doctor says of models whose files are written here by hand; the installed vLLM's own checks are asked too."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import forks
import pytest

from kaggle_llm.base.config import read_saved_config
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.inference.model import Model, describe_model
from kaggle_llm.runtime import facts, model_memory, rules_engine, rules_numbers, rules_runtime
from kaggle_llm.runtime.case import Case
from kaggle_llm.runtime.doctor import examine, examine_case, load_in_turn, read_shipped
from kaggle_llm.runtime.findings import Finding
from kaggle_llm.runtime.model_facts import ModelFacts, read_model_facts
from kaggle_llm.runtime.pins import Runtime, load_runtime
from kaggle_llm.runtime.speed import judge_time
from kaggle_llm.runtime.vllm_checks import ask_vllm, read_environment
from kaggle_llm.runtime.work import Work, plan_work

ROOT = Path(__file__).resolve().parents[1]
SMOLLM2 = ROOT / "input" / "models" / "SmolLM2-135M-Instruct"
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True}
WEIGHTS = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 128}
W4A16 = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}},
    "ignore": ["lm_head"],
}
MIB = 2**20
needs_vllm = pytest.mark.skipif(not find_spec("vllm"), reason="vLLM is not installed here")


def write_weights(path: Path, tensors: dict[str, tuple[str, list[int], int]]) -> None:
    """A safetensors file by its definition; the numbers are a hole in the file, so that it may have any size."""
    header, end = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def write_model(folder: Path, config: dict[str, Any], gigabytes: float = 0.25) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    rows = int(gigabytes * 2**30) // 2 // 1024
    write_weights(folder / "model.safetensors", {"model.layers.0.w.weight": ("BF16", [rows, 1024], rows * 2048)})
    return folder


def make_case(
    folder: Path,
    config: dict[str, Any] | None = None,
    runtime: Runtime | None = None,
    dtype: Any = "float16",
    **more: Any,
) -> Case:
    """A Llama of a billion weights on vLLM 0.32, but for what is given."""
    gigabytes, environment, work = more.pop("gigabytes", 0.25), more.pop("environment", {}), more.pop("work", Work())
    model = read_model_facts("m", write_model(folder / "model", LLAMA | (config or {}), gigabytes))
    engine = EngineSettings(more.pop("kind", "vllm"), dtype, vllm=more)
    return Case(model, engine, runtime or load_runtime("t4x2-vllm032"), work, environment=environment)


def judge(case: Case) -> Iterator[Finding]:
    yield from model_memory.judge_memory(case)
    for rule in (*rules_runtime.RULES, *rules_numbers.RULES, *rules_engine.RULES):
        yield from rule(case)
    yield from rules_runtime.judge_pins(case.runtime)


def refused(case: Case) -> list[str]:
    return [f"{one.name}: {one.detail}" for one in judge(case) if one.level == "refused"]


def warned(case: Case) -> list[str]:
    return [f"{one.name}: {one.detail}" for one in judge(case) if one.level == "warn"]


def with_vllm(version: str, **changes: Any) -> Runtime:
    runtime = load_runtime("t4x2-vllm032")
    assert runtime.vllm
    return replace(runtime, vllm=replace(runtime.vllm, version=version, **changes))


# what is refused, one by one ------------------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["t4x2-vllm032", "t4x2-vllm019", "t4x2-transformers"])
def test_a_plain_model_is_not_refused(tmp_path: Path, runtime: str) -> None:
    case = make_case(tmp_path, runtime=load_runtime(runtime), kind="auto")
    assert refused(case) == []
    assert case.on_vllm == (runtime != "t4x2-transformers")


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {  # name → config, settings, what is said
    "bfloat16": ({}, {"dtype": "bfloat16"}, "no bfloat16: set engine.dtype=float16"),
    "bfloat16 on transformers": ({}, {"dtype": "bfloat16", "kind": "transformers"}, "no bfloat16"),
    "gemma2 in float16": ({"model_type": "gemma2"}, {}, "refuses gemma2 in float16.*engine.kind=transformers"),
    "gemma3 in float16": ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}}, {}, "refuses gemma3"),
    "glm4 in float16": ({"model_type": "glm4"}, {}, "refuses glm4"),
    "head of 512": ({"global_head_dim": 512}, {}, "heads of 512.*64 KB"),
    "float32 with heads of 256": ({"head_dim": 256}, {"dtype": "float32"}, "heads of 256 in float32.*shared memory"),
    "float32 with 4 bits": ({"quantization_config": AWQ}, {"dtype": "float32"}, "no float32: set engine.dtype=float16"),
    "mxfp4": ({"model_type": "gpt_oss", "quantization_config": {"quant_method": "mxfp4"}}, {}, "mxfp4.*8.0"),
    "bitsandbytes": ({"quantization_config": {"quant_method": "bitsandbytes"}}, {}, "bitsandbytes is gone.*vllm019"),
    "bitsandbytes on the fly": ({}, {"quantization": "bitsandbytes"}, "bitsandbytes is gone"),
    "8-bit experts": ({"quantization_config": {"quant_method": "experts_int8"}}, {}, "experts_int8 .asks for 8.0."),
    "fbgemm": ({"quantization_config": {"quant_method": "fbgemm_fp8"}}, {}, "fbgemm_fp8 .asks for 8.0."),
    "fp8 cache": ({}, {"kv_cache_dtype": "fp8"}, "kv_cache_dtype = fp8 asks for capability 8.9"),
    "bfloat16 cache": ({}, {"kv_cache_dtype": "bfloat16"}, "kv_cache_dtype = bfloat16 does not run"),
    "turboquant cache": ({}, {"kv_cache_dtype": "turboquant_k8v4"}, "turboquant_k8v4 does not run"),
    "latent attention": ({"kv_lora_rank": 512}, {}, "multi-head latent attention.*#34122"),
    "flashinfer": ({}, {"attention_backend": "FLASHINFER"}, "FLASHINFER does not run.*since vLLM 0.24"),
    "flash attention": ({}, {"attention_backend": "FLASH_ATTN"}, "FLASH_ATTN asks for capability 8.0"),
    "turboquant": ({}, {"attention_config": {"backend": "TURBOQUANT"}}, "TURBOQUANT fails"),
    "two backends": ({}, {"attention_backend": "TRITON_ATTN", "attention_config": {"backend": "X"}}, "both given"),
    "heads over cards": ({"num_attention_heads": 9}, {"tensor_parallel_size": 2}, "does not divide 9 attention heads"),
    "kv heads over cards": (
        {"num_attention_heads": 12, "num_key_value_heads": 3},
        {"tensor_parallel_size": 2},
        "does not divide 3 key/value heads",
    ),
    "columns over cards": ({"intermediate_size": 8191}, {"tensor_parallel_size": 2}, "8191 columns of the MLP"),
    "groups over cards": (
        {"intermediate_size": 8192 + 128, "quantization_config": AWQ},
        {"tensor_parallel_size": 2},
        "4160 rows of down_proj on a card by groups of 128.*smaller group_size",
    ),
    "too many cards": ({}, {"tensor_parallel_size": 4}, "4 cards are asked for, the runtime has 2"),
    "pipelines of cards": ({}, {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}, "4 cards"),
    "data parallel": ({}, {"data_parallel_size": 2}, "no data_parallel_size above 1.*two processes"),
    "swap space": ({}, {"swap_space": 4}, "no swap_space.*cpu_offload_gb"),
    "flashinfer's sampler": (
        {},
        {"environment": {"VLLM_USE_FLASHINFER_SAMPLER": "1"}},
        "VLLM_USE_FLASHINFER_SAMPLER=1",
    ),
    "no vLLM": ({}, {"runtime": load_runtime("t4x2-transformers")}, "t4x2-transformers has no vLLM"),
    "transformers too new": (
        {},
        {"runtime": with_vllm("0.32.0", transformers=">=5.16.1,<5.19")},
        "transformers 5.19.0 is outside",
    ),
    "another torch": ({}, {"runtime": with_vllm("0.19.1")}, "built for torch 2.10.0, pinned is 2.13.0"),
    "CUDA 12": ({}, {"runtime": replace(load_runtime("t4x2-vllm032"), cuda="12.8")}, "libcudart.so.13"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_known_failure_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    config, settings, said = CASES[name]
    found = refused(make_case(tmp_path, config, **settings))
    assert found and re.search(said, " | ".join(found)), found


@pytest.mark.parametrize(("embedder", "kind"), [("vllm", "transformers"), ("transformers", "vllm")])
def test_a_sentence_encoder_needs_vllm_where_the_embedder_says_so(tmp_path: Path, embedder: Any, kind: Any) -> None:
    case = make_case(tmp_path, runtime=load_runtime("t4x2-transformers"), kind=kind)
    (case.model.folder / "modules.json").write_text("[]")
    case = replace(case, engine=replace(case.engine, embedder=embedder))
    expected = ["engine.embedder = vllm, and t4x2-transformers has no vLLM"] if embedder == "vllm" else []
    assert [finding.split(": ")[1] for finding in refused(case)] == expected
    assert refused(replace(case, runtime=load_runtime("t4x2-vllm032"))) == []


def test_a_file_of_llama_cpp_is_refused_where_its_loader_is_gone(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    (case.model.folder / "model-q4.gguf").write_bytes(b"GGUF")
    assert "gguf is gone from vLLM 0.32.0" in refused(case)[0]
    assert refused(replace(case, runtime=load_runtime("t4x2-vllm019"))) == []


@pytest.mark.parametrize(
    ("config", "settings", "said"),
    [
        ({"model_type": "qwen2"}, {}, '"!!!!"'),
        ({"model_type": "qwen3_next"}, {}, "gated delta nets"),
        ({"layer_types": ["linear_attention", "full_attention"]}, {}, "states are no keys and values"),
        ({"sliding_window": 1024}, {}, "sliding windows"),
        ({"text_config": {"num_hidden_layers": 8}}, {}, "vision or audio"),
        ({"model_type": "gemma2"}, {"kind": "transformers"}, "overflows in float16"),
        ({}, {"dtype": "float32"}, "no tensor cores"),
        ({}, {"quantization": "fp8"}, "no floats of 8 bits"),
        ({"quantization_config": {"quant_method": "fp8"}}, {}, "no floats of 8 bits"),
        ({}, {"tensor_parallel_size": 2}, "may hang"),
        ({}, {"tensor_parallel_size": 2, "disable_custom_all_reduce": False}, "no peer access, so vLLM's own"),
        ({}, {"enable_prefix_caching": False}, "computed for each of them"),
        ({"num_experts": 8, "num_experts_per_tok": 2}, {}, "kernels of experts"),
        ({}, {"work": Work(own=4096)}, "prompts of 4097 tokens"),
        ({}, {"environment": {"VLLM_ATTENTION_BACKEND": "XFORMERS"}}, "ignores VLLM_ATTENTION_BACKEND"),
        ({}, {"environment": {"VLLM_USE_V1": "0"}}, "no V0 engine"),
        ({}, {"swap_space": 4, "runtime": load_runtime("t4x2-vllm019")}, "ignores swap_space"),
        ({}, {"attention_backend": "FLASHINFER", "runtime": load_runtime("t4x2-vllm019")}, "nvcc and ninja"),
    ],
)
def test_what_may_go_wrong_is_a_warning(tmp_path: Path, config: dict[str, Any], settings: Any, said: str) -> None:
    assert said in " | ".join(warned(make_case(tmp_path, config, **settings)))


def test_key_value_heads_fewer_than_cards_are_copied(tmp_path: Path) -> None:
    assert refused(make_case(tmp_path, {"num_key_value_heads": 1}, tensor_parallel_size=2)) == []


@pytest.mark.parametrize(
    ("adapter", "settings", "said"),
    [
        ({"r": 513}, {}, "rank 513, vLLM serves up to 512"),
        ({"r": 8, "rank_pattern": {"q_proj": 600}}, {}, "rank 600"),
        ({"r": 24}, {"max_lora_rank": 24}, "set it to 32"),
        ({"r": 24}, {"max_lora_rank": 16}, "max_lora_rank = 16 for an adapter of rank 24"),
        ({"r": 8, "use_dora": True}, {}, "no adapter with use_dora: merge it"),
        ({"r": 8, "modules_to_save": ["embed_tokens"]}, {}, "modules_to_save of embed_tokens"),
    ],
)
def test_adapters_that_vllm_cannot_serve_are_refused(
    tmp_path: Path, adapter: dict[str, Any], settings: dict[str, Any], said: str
) -> None:
    case = make_case(tmp_path, **settings)
    fine = write_adapter(tmp_path / "fine", r=24)
    served = read_model_facts("a", fine, case.model.folder)
    assert refused(replace(case, model=served, engine=EngineSettings("vllm", "float16"))) == []
    model = read_model_facts("a", write_adapter(tmp_path / "adapter", **adapter), case.model.folder)
    assert said in " | ".join(refused(replace(case, model=model)))


def write_adapter(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"task_type": "CAUSAL_LM", **config}))
    return folder


# other accelerators ---------------------------------------------------------------------------------------------


ON_T4_ONLY: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"dtype": "bfloat16"}),
    ({"global_head_dim": 512}, {}),
    ({"kv_lora_rank": 512}, {}),
    ({}, {"kv_cache_dtype": "bfloat16"}),
    ({}, {"attention_backend": "FLASH_ATTN"}),
    ({"quantization_config": {"quant_method": "experts_int8"}}, {}),
    ({}, {"environment": {"VLLM_USE_FLASHINFER_SAMPLER": "1"}}),
]


@pytest.mark.parametrize(("config", "settings"), ON_T4_ONLY)
def test_what_a_t4_refuses_a_newer_card_takes(tmp_path: Path, config: dict[str, Any], settings: dict[str, Any]) -> None:
    runtime = load_runtime("t4x2-vllm032", "NvidiaL4")
    assert refused(make_case(tmp_path / "a", config, **settings))
    assert refused(make_case(tmp_path / "b", config, runtime, **settings)) == []


def test_a_card_with_a_floor_of_its_own_is_held_to_it(tmp_path: Path) -> None:
    config = {"quantization_config": {"quant_method": "fp_quant"}}
    for name, said in (("NvidiaH100", "fp_quant (asks for 10.0) does not run on an H100"), ("NvidiaRtxPro6000", "")):
        case = make_case(tmp_path / name, config, load_runtime("t4x2-vllm032", name), dtype="bfloat16")
        assert said in " | ".join(refused(case)) and bool(refused(case)) == bool(said)


def test_a_model_that_fits_no_t4_fits_a_larger_card(tmp_path: Path) -> None:
    for accelerator, fits in (("NvidiaTeslaT4", False), ("NvidiaL4", False), ("NvidiaH100", True)):
        case = make_case(tmp_path / accelerator, None, load_runtime("t4x2-vllm032", accelerator), gigabytes=40.0)
        assert (finding(case, "fits").level == "ok") == fits
    assert model_memory.vllm_batch(case, 80.0 * 2**30) == (16384, 1024), "vLLM's defaults from 70 GB on"


def test_what_is_not_known_of_a_machine_is_said(tmp_path: Path) -> None:
    case = make_case(tmp_path / "a", None, load_runtime("t4x2-vllm032", "NvidiaL4"), dtype="bfloat16")
    assert case.backend is None and case.processes == 4
    assert "the memory of the machine with NvidiaL4 is not known" in finding(case, "loading").detail
    assert "the backend that vLLM 0.32.0 takes on an L4 is not known" in finding(case, "attention").detail
    cpu = make_case(tmp_path / "b", None, load_runtime("t4x2-vllm032", "none"), kind="auto")
    assert not cpu.on_vllm and refused(cpu) == [] and "float16 is slow on a CPU" in " | ".join(warned(cpu))
    (time,) = judge_time(cpu)
    assert time.level == "warn" and "no estimate" in time.detail
    with_vllm = make_case(tmp_path / "c", None, load_runtime("t4x2-vllm032", "none"), dtype="float32")
    assert "on a machine without a GPU" in " | ".join(refused(with_vllm))


def test_a_shorter_limit_that_was_seen_is_a_warning(tmp_path: Path) -> None:
    case = make_case(tmp_path, None, load_runtime("t4x2-vllm032", "NvidiaH100"), dtype="bfloat16")
    assert "competition.hours = 9, and a competition with NvidiaH100 gave 5" in " | ".join(warned(case))
    assert "hours" not in " | ".join(warned(replace(case, hours=5.0)))


@needs_vllm
@pytest.mark.timeout(300)
@pytest.mark.slow
@pytest.mark.parametrize(
    "accelerator",
    ["NvidiaRtxPro6000", *(pytest.param(name, marks=pytest.mark.release) for name in ("NvidiaL4", "NvidiaH100"))],
)
def test_vllm_is_asked_about_each_card(tmp_path: Path, accelerator: str) -> None:
    runtime = load_runtime("t4x2-vllm032", accelerator)
    case = make_case(tmp_path, {"quantization_config": W4A16}, runtime, dtype="bfloat16")
    case = replace(case, answers=ask_vllm(case))
    assert "bfloat16" in case.answers["dtypes"] and case.backend == case.answers["attention"]["valid"][0]
    assert finding(case, "attention").detail.endswith("says so") and finding(case, "quantisation").level == "ok"
    assert refused(case) == []


# models that are loaded together --------------------------------------------------------------------------------


def make_encoder(folder: Path, gigabytes: float) -> ModelFacts:
    return read_model_facts("encoder", write_model(folder, LLAMA | {"architectures": ["BertModel"]}, gigabytes))


def test_vllm_gets_what_the_encoder_leaves(tmp_path: Path) -> None:
    """14.56 GB: 4 for the encoder's weights and 0.9 for its batch and CUDA; 0.7 for vLLM's own CUDA."""
    case = make_case(tmp_path / "llm")
    alone = list(load_in_turn([case]))
    encoder = replace(case, model=make_encoder(tmp_path / "encoder", 4.0))
    first, second = load_in_turn([case, encoder])
    assert [first.model.name, second.model.name] == ["encoder", "m"], "retrieval comes before reading"
    assert first.taken == alone[0].taken == 0 and 4.7 < second.taken / 2**30 < 5.2
    share = model_memory.vllm_share(second, 14.56 * 2**30)
    assert share == pytest.approx((14.56 - second.taken / 2**30 - 0.7) / 14.56)
    found = finding(second, "fits")
    assert found.level == "ok" and "held by the run's other models" in found.detail
    large = replace(case, model=make_encoder(tmp_path / "large", 13.0))
    assert finding(list(load_in_turn([case, large]))[1], "fits").level == "refused", "each alone would fit"
    assert finding(case, "fits").level == finding(large, "fits").level == "ok"


def test_a_share_that_the_config_names_must_be_free(tmp_path: Path) -> None:
    case = make_case(tmp_path / "llm", gpu_memory_utilization=0.9)
    encoder = replace(case, model=make_encoder(tmp_path / "encoder", 4.0))
    found = finding(list(load_in_turn([case, encoder]))[1], "fits")
    assert found.level == "refused" and "set engine.vllm.gpu_memory_utilization to 0.6" in found.detail


# memory ---------------------------------------------------------------------------------------------------------


def test_the_bytes_of_weights_are_those_of_their_headers_in_the_engines_dtype(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", LLAMA)
    tensors = {
        "model.embed_tokens.weight": ("F32", [10, 4], 160),
        "lm_head.weight": ("F32", [10, 4], 160),  # tied: the same once more
        "model.layers.0.mlp.up_proj.weight_packed": ("I32", [8, 2], 64),
        "model.layers.0.mlp.up_proj.weight_scale": ("BF16", [8, 1], 16),
        "model.layers.0.mlp.up_proj.weight_shape": ("I64", [2], 16),
    }
    write_weights(folder / "model.safetensors", tensors)
    model = read_model_facts("m", folder)
    assert model.loaded_bytes("float16") == 80 + 64 + 16 + 16
    assert model.loaded_bytes("float32") == 160 + 64 + 32 + 16
    assert model.parameters == 40 + 8 * 2 * 8, "eight weights of 4 bits in a number"
    assert model.active_parameters == 128


def test_keys_and_values_of_a_token_are_counted_as_published(tmp_path: Path) -> None:
    """Llama-3-8B: 2 · 32 layers · 8 heads · 128 · 2 bytes = 128 KiB a token; half of it on each of two cards."""
    llama = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8}
    assert model_memory.kv_bytes(make_case(tmp_path / "a", llama)) == 128 * 1024
    assert model_memory.kv_bytes(make_case(tmp_path / "b", llama, tensor_parallel_size=2)) == 64 * 1024
    assert model_memory.kv_bytes(make_case(tmp_path / "c", llama, dtype="float32")) == 256 * 1024
    assert model_memory.kv_bytes(make_case(tmp_path / "d", llama, kv_cache_dtype="int8_per_token_head")) == 64 * 1024


def finding(case: Case, name: str) -> Finding:
    (found,) = [one for one in judge(case) if one.name == name]
    return found


def test_a_model_larger_than_a_card_is_refused_and_fits_two(tmp_path: Path) -> None:
    large = make_case(tmp_path / "a", gigabytes=14.0)
    found = finding(large, "fits")
    assert found.level == "refused" and "engine.vllm.tensor_parallel_size=2" in found.detail
    assert finding(make_case(tmp_path / "b", gigabytes=14.0, tensor_parallel_size=2), "fits").level == "ok"
    assert finding(make_case(tmp_path / "c", gigabytes=30.0, tensor_parallel_size=2), "fits").level == "refused"
    assert finding(make_case(tmp_path / "d", gigabytes=14.0, cpu_offload_gb=6), "fits").level == "ok"


def test_a_context_that_does_not_fit_is_refused_with_the_length_that_is_needed(tmp_path: Path) -> None:
    """131072 tokens · 2 · 16 · 8 · 64 · 2 bytes = 4 GiB, beside 9 GiB of weights."""
    work = Work(shared=100, own=900, new=1)
    case = make_case(tmp_path / "a", {"max_position_embeddings": 131072}, gigabytes=9.0, work=work)
    found = finding(case, "fits")
    assert found.level == "refused" and found.detail.endswith("set engine.vllm.max_model_len=1008")
    case = make_case(tmp_path / "b", {"max_position_embeddings": 131072}, gigabytes=9.0, work=work, max_model_len=1008)
    assert finding(case, "fits").level == "ok"


def test_room_for_few_sequences_is_a_warning(tmp_path: Path) -> None:
    case = make_case(tmp_path, kv_cache_memory_bytes=128 * MIB, max_model_len=2048, work=Work(own=2000))
    found = finding(case, "fits")
    assert found.level == "warn" and "2 sequences of 2001 tokens" in found.detail, "4096 tokens of 32 KiB"


def test_two_loaders_share_the_machines_memory(tmp_path: Path) -> None:
    """Tensors go to the cards one after the other (the model has one large one); what is offloaded stays."""
    assert finding(make_case(tmp_path / "b", kind="transformers", gigabytes=4.0), "loading").level == "ok"
    offloaded = make_case(tmp_path / "c", cpu_offload_gb=14)
    assert "a smaller engine.vllm.cpu_offload_gb" in finding(offloaded, "loading").detail


def test_weights_unpacked_by_transformers_count_as_such(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", LLAMA | {"quantization_config": W4A16})
    write_weights(folder / "model.safetensors", {"model.layers.0.up.weight_packed": ("I32", [2**20, 2**10], 2**32)})
    model = read_model_facts("m", folder)
    runtime = load_runtime("t4x2-vllm032")
    assert model_memory.weight_bytes(Case(model, EngineSettings("vllm", "float16"), runtime)) == 2**32
    assert model_memory.weight_bytes(Case(model, EngineSettings("transformers", "float16"), runtime)) == 4 * 2**32


def test_a_file_that_is_cut_short_and_a_missing_shard_are_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", LLAMA)
    weights = folder / "model.safetensors"
    whole = weights.stat().st_size
    with weights.open("r+b") as file:
        file.truncate(whole - 1)
    with pytest.raises(ValueError, match=r"truncated or no safetensors file.* not fully covered; download"):
        read_model_facts("m", folder)
    weights.write_bytes((2**40).to_bytes(8, "little"))
    with pytest.raises(ValueError, match="is truncated or no safetensors file"):
        read_model_facts("m", folder)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"lacks model-00002\.safetensors"):
        read_model_facts("m", folder)
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        read_model_facts("m", tmp_path)


# time -----------------------------------------------------------------------------------------------------------


def test_time_is_twice_the_weights_for_each_token_over_two_cards(tmp_path: Path) -> None:
    """2 · 2^27 weights · 1 000 000 tokens / (16.25 TFLOPS · 2 cards) = 8 s, attention 0.01 s, and 180 s to load."""
    work = Work(shared=0, own=10, prompts=10, new=1, rows=10_000, note="x")
    (found,) = judge_time(make_case(tmp_path, work=work))
    assert found.level == "ok" and found.detail.startswith("about 3 min for 10000 rows, an estimate that was not run")
    (late,) = judge_time(make_case(tmp_path / "b", work=replace(work, rows=100_000_000)))
    assert late.level == "warn" and "about 23." in late.detail and "the limit is 9 h" in late.detail
    short = replace(make_case(tmp_path / "c", work=work), hours=0.01)
    (late,) = judge_time(short)
    assert late.level == "warn" and "the limit is 0.01 h" in late.detail
    (long,) = judge_time(replace(make_case(tmp_path / "d", work=replace(work, rows=100_000_000)), hours=24.0))
    assert long.level == "ok", "a competition may give more than 9 h"


def test_prompts_are_as_long_as_their_budgets() -> None:
    prompt = {"shared": "Question: {question}\n", "candidate": "{text}", "chat": False, "budgets": {"question": 90}}
    work = plan_work({"prompt": prompt}, 50, prompts=8)
    assert (work.shared, work.own, work.prompts, work.rows) == (90 + 3, 256, 8, 50)
    assert work.tokens == 50 * (93 + 8 * 256) and work.longest == 93 + 256 + 1


def test_lists_in_several_orders_and_texts_that_are_written_count() -> None:
    prompt = {"shared": "", "candidate": "{text}", "ending": "Best:", "labels": ["A", "B", "C"], "chat": False}
    prompt["budgets"] = {"text": 50}
    for orders, prompts in (("given", 1), ("both", 2), ("rotations", 3)):
        work = plan_work({"prompt": prompt, "orders": {"orders": orders}}, 10)
        assert (work.shared, work.own, work.prompts) == (0, 3 * 50 + 2, prompts)
    written = plan_work({"prompt": {"shared": "{text}", "chat": False}, "writing": {"max_tokens": 48}}, 10)
    assert written.new == 48 and written.prompts == 1


# the installed vLLM's own checks --------------------------------------------------------------------------------


@needs_vllm
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_vllm_is_asked_about_a_gpu_that_is_not_here(tmp_path: Path) -> None:
    """A group of weights that lies on both cards is refused by vLLM's kernels, and by the sum here."""
    config: dict[str, Any] = {"hidden_size": 768, "num_attention_heads": 12, "num_key_value_heads": 4}
    config["intermediate_size"] = 2176
    groups = {"group_0": {"targets": ["Linear"], "weights": {**WEIGHTS, "symmetric": False}}}
    config["quantization_config"] = {**W4A16, "config_groups": groups}
    case = make_case(tmp_path, config, tensor_parallel_size=2, max_modellen=4)
    answers = ask_vllm(case)
    assert answers["dtypes"] == ["float16", "float32"]
    assert answers["attention"]["valid"][0] == "TRITON_ATTN"
    assert "compute capability not supported" in answers["attention"]["refused"]["FLASH_ATTN"]
    assert answers["quantisation"]["schemes"] == {"CompressedTensorsWNA16": 75}
    assert set(answers["float16_refused"]) <= set(facts.FLOAT16_REFUSED)
    assert answers["lora_ranks"] == list(facts.LORA_RANKS)
    assert {name for name, kernel in answers["kernels"].items() if kernel == "MarlinLinearKernel"} == {
        "q_proj",
        "o_proj",
        "gate_proj",
    }
    found = {one.split(":")[0]: one for one in refused(replace(case, answers=answers))}
    assert set(found) == {"kernel", "division", "settings"}
    assert "1088 is not divisible by group_size = 128" in found["kernel"] and "down_proj" in found["kernel"]
    assert "1088 rows of down_proj on a card by groups of 128" in found["division"]
    assert "engine.vllm.max_modellen is unknown" in found["settings"] and "'max_model_len'?" in found["settings"]
    answers["kernels"].pop("down_proj")
    said = " ".join(one.detail for one in judge(replace(case, answers=answers)))
    assert f"Marlin for gate_proj, o_proj, q_proj, vLLM {answers['version']} says so" in said


@needs_vllm
@pytest.mark.slow
@pytest.mark.timeout(200)
def test_vllm_says_which_scheme_it_takes_for_floats_of_8_and_4_bits(tmp_path: Path) -> None:
    """Eight bits are computed as weights only; mxfp4's floor is above a T4."""
    eight = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
    inputs = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}
    four = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "group", "group_size": 32}
    groups = {
        "group_0": {"targets": ["Linear"], "weights": eight, "input_activations": inputs, "format": "float-quantized"},
        "group_1": {
            "targets": ["re:.*down_proj"],
            "weights": {**four, "scale_dtype": "torch.uint8"},
            "format": "mxfp4-pack-quantized",
        },
    }
    quantisation = {"quant_method": "compressed-tensors", "format": "mixed-precision", "config_groups": groups}
    case = make_case(tmp_path, {"quantization_config": quantisation})
    assert refused(case) and "mxfp4-pack-quantized (asks for 8.0)" in refused(case)[0], "by the table"
    case = replace(case, answers=ask_vllm(case))
    assert "CompressedTensorsW4A4Mxfp4 (asks for 8.0)" in " | ".join(refused(case))
    assert "vLLM unpacks the weights" in " | ".join(warned(case))


@pytest.mark.timeout(60)
def test_a_vllm_that_cannot_be_asked_is_said_and_the_table_speaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A package of that name that is too old to have a platform."""
    (tmp_path / "old" / "vllm").mkdir(parents=True)
    (tmp_path / "old" / "vllm" / "__init__.py").write_text('__version__ = "0.2.0"')
    monkeypatch.syspath_prepend(str(tmp_path / "old"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "old"))
    case = make_case(tmp_path, {"quantization_config": AWQ})
    found = {one.name: one for one in examine_case(case)}
    assert found["vllm"].level == "warn" and "did not answer: " in found["vllm"].detail
    assert found["attention"].detail == "TRITON_ATTN, by the table of known facts, for vLLM 0.32.0"
    assert found["quantisation"].detail == "awq runs on a T4, by the table of known facts, for vLLM 0.32.0"
    assert found["kernel"].detail.startswith("Marlin, by the table")


def test_another_vllm_than_the_runtimes_is_said(tmp_path: Path) -> None:
    case = make_case(tmp_path, runtime=load_runtime("t4x2-vllm019"))
    assert case.source == "by the table of known facts, for vLLM 0.19.1"
    case = replace(case, answers={"version": "0.32.0"})
    assert case.source == "vLLM 0.32.0 says so, but the runtime has 0.19.1: ask that one too"
    assert replace(case, answers={"version": "0.19.1+cpu"}).source == "vLLM 0.19.1+cpu says so"


# runs -----------------------------------------------------------------------------------------------------------


def test_variables_are_found_in_what_ships(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        'os.environ["VLLM_USE_FLASHINFER_SAMPLER"] = "1"\n'
        'more = {"NCCL_P2P_DISABLE": "1"}\nos.environ.setdefault("VLLM_USE_V1", "0")\nname = "VLLM_CACHE_ROOT"\n'
    )
    expected = {"VLLM_USE_FLASHINFER_SAMPLER": "1", "NCCL_P2P_DISABLE": "1", "VLLM_USE_V1": "0"}
    assert read_environment([tmp_path]) == expected


def test_adapters_go_with_their_bases_and_what_is_no_model_is_left_out(tmp_path: Path) -> None:
    base, adapter = write_model(tmp_path / "base", LLAMA), write_adapter(tmp_path / "adapter", r=8)
    (tmp_path / "decision").mkdir()
    shipped = [Model("a", adapter, base, fold=0), Model("b", base), Model("decision", tmp_path / "decision")]
    found = {model.name: (model.folder, model.base) for model in read_shipped(shipped)}
    assert found == {"a of fold 0": (adapter, base), "b": (base, None)}
    with pytest.raises(FileNotFoundError, match=r"gone has no config\.json"):
        list(read_shipped([Model("c", tmp_path / "gone")]))


def doctor(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command, how = [forks.python(), "-m", "kaggle_llm.cli", "doctor", *words], {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=how, capture_output=True, text=True, timeout=200, check=False)


@pytest.mark.timeout(200)
def test_the_command_ends_with_1_where_something_is_refused(tmp_path: Path) -> None:
    fine, bad = write_model(tmp_path / "fine", LLAMA), write_model(tmp_path / "bad", LLAMA, gigabytes=20)
    done = doctor("--runtime", "t4x2-transformers", "--model", str(fine), "--json")
    report = json.loads(done.stdout)
    assert done.returncode == 0 and not report["refused"] and report["runtime"] == "t4x2-transformers"
    (engine,) = [one for one in report["findings"] if one["name"] == "engine"]
    assert engine["model"] == "fine" and engine["level"] == "ok"
    assert engine["detail"].startswith("transformers, float16; auto:")
    done = doctor("--runtime", "t4x2-transformers", "--model", str(bad))
    assert done.returncode == 1 and "refused" in done.stdout and "20.0 GB weights" in done.stdout
    done = doctor("exp002_rerank", "--runtime", "t4x2-vllm32")
    assert done.returncode == 1 and "did you mean 't4x2-vllm032'?" in done.stderr


def test_nothing_to_examine_is_said() -> None:
    with pytest.raises(ValueError, match="give a run, or a model folder by --model"):
        examine(None)


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="make models was not run")
def test_the_packaged_model_fits_on_a_card_of_its_own(tmp_path: Path) -> None:
    """134.5 million weights: 269 MB in float16, 538 in float32."""
    diagnosis = examine(None, "t4x2-transformers", SMOLLM2)
    assert not diagnosis.refused
    model = read_model_facts("m", SMOLLM2)
    assert model.parameters == 134_515_008 and model.loaded_bytes("float16") == 269_030_016


@pytest.fixture
def repository(tmp_path: Path, pico_llm: Path, pico_encoder: Path) -> Path:
    """exp002_rerank beside pico models: not trained."""
    root = tmp_path / "repository"
    for folder in ("exp/exp002_rerank", "submission"):
        shutil.copytree(ROOT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, model in {"SmolLM2-135M-Instruct": pico_llm, "all-MiniLM-L6-v2": pico_encoder}.items():
        shutil.copytree(model, root / "input" / "models" / name)
    return root


def read_config(root: Path, experiment: str) -> dict[str, Any]:
    """What a record has of its config.yaml, but for what has a default."""
    config = read_saved_config(root / "exp" / experiment / "config.yaml")
    config.pop("smoke", None)
    return config


def write_run(root: Path, run: str, config: dict[str, Any], ship: Sequence[Model]) -> None:
    """A complete run's record."""
    described = [describe_model(model, lambda folder: folder.relative_to(root).as_posix()) for model in ship]
    settings = {"config": config, "ship": described}
    record = {"kind": "run", "key": "", "settings": settings, "inputs": {}, "files": {}, "seed": 0, "git": {}}
    folder = root / "output" / run
    folder.mkdir(parents=True)
    (folder / "record.json").write_text(json.dumps({**record, "versions": {}, "seconds": 0}))


@pytest.mark.timeout(200)
def test_a_run_is_judged_by_its_config_and_then_by_what_it_ships(repository: Path) -> None:
    def ask(run: str) -> dict[str, list[str]]:
        done = doctor(run, "--runtime", "t4x2-transformers", "--rows", "100", "--json", KAGGLE_LLM_ROOT=str(repository))
        found: dict[str, list[str]] = {}
        for one in json.loads(done.stdout)["findings"]:
            found.setdefault(one["model"], []).append(f"{one['name']} {one['level']}: {one['detail']}")
        return found

    found = ask("exp002_rerank")
    assert set(found) == {"t4x2-transformers", "models.encoder", "models.reranker"}
    assert found["models.reranker"][0].startswith("engine ok: transformers, float16"), "what auto is on a T4"
    assert "for 100 rows" in found["models.reranker"][-1] and "8 prompts a row" in found["models.reranker"][-1]

    adapter = write_adapter(repository / "output" / "adapter", r=8)
    ship = [Model("reranker", adapter, repository / "input" / "models" / "SmolLM2-135M-Instruct")]
    config = read_config(repository, "exp002_rerank") | {"depth": 5}
    config["engine"] = {"kind": "transformers", "dtype": "bfloat16", "batch_tokens": 4096, "vllm": {}}
    write_run(repository, "exp002_rerank", config, ship)
    found = ask("exp002_rerank")
    assert set(found) == {"t4x2-transformers", "reranker"}
    assert any(one.startswith("dtype refused: a T4 has no bfloat16") for one in found["reranker"])
    assert "5 prompts a row" in found["reranker"][-1], "as it was trained, not as config.yaml says now"
    write_run(repository, "exp002_rerank--old", {**config, "rerank": {"depth": 5}}, ship)
    done = doctor("exp002_rerank--old", KAGGLE_LLM_ROOT=str(repository))
    assert done.returncode == 1 and "does not say how many prompts a row has: - rerank: unknown key" in done.stderr


@pytest.mark.timeout(200)
def test_an_ensemble_is_judged_member_by_member(repository: Path) -> None:
    """Each with the prompts of its own experiment."""
    for experiment in ("exp001_retrieve", "exp007_blend"):
        shutil.copytree(ROOT / "exp" / experiment, repository / "exp" / experiment)
    runs = ("exp002_rerank--seed0", "exp001_retrieve--other", "exp002_rerank--lexical")
    settings = repository / "exp" / "exp007_blend" / "config.yaml"
    settings.write_text(settings.read_text().replace("exp002_rerank--seed1", runs[1]))
    base = repository / "input" / "models" / "SmolLM2-135M-Instruct"
    for run in runs[:2]:
        write_run(repository, run, read_config(repository, run.split("--")[0]), [Model("reranker", base)])
    words = ("exp007_blend", "--runtime", "t4x2-transformers", "--json")
    done = doctor(*words, KAGGLE_LLM_ROOT=str(repository))
    assert "exp007_blend has members that are not trained: exp002_rerank--lexical" in done.stderr
    config = read_config(repository, "exp002_rerank") | {"depth": 3}
    write_run(repository, runs[2], config, [Model("reranker", base)])
    done = doctor(*words, KAGGLE_LLM_ROOT=str(repository))
    found = {one["model"]: one["detail"] for one in json.loads(done.stdout)["findings"] if one["name"] == "time"}
    assert list(found) == [f"{run}: reranker" for run in runs], done.stderr
    for run, said in zip(
        runs, ("8 prompts a row", "assumed: there is no prompt section", "3 prompts a row"), strict=True
    ):
        assert said in found[f"{run}: reranker"]
