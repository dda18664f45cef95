"""Estimates of memory and operations against what small models really take, and against formulas by hand."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from pico import llama_config, train_bpe
from transformers import AutoModelForCausalLM, BertConfig, LlamaConfig

from kaggle_llm.engines.footprint import (
    Batch,
    Estimate,
    Memory,
    Trace,
    cache_bytes,
    count_parameters,
    estimate_inference,
    extrapolate,
    fit_inference,
    make_counter,
    shorten,
)
from kaggle_llm.training import estimate as estimates
from kaggle_llm.training.base_model import attach_adapter
from kaggle_llm.training.estimate import NF4_BYTES, estimate_training, fit_batch_tokens, trace_training
from kaggle_llm.training.settings import LoraSettings, TrainingSettings

BATCH = Batch(tokens=512, length=128, kept=8)
SIZES = {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 6}


@pytest.fixture(scope="module")
def config() -> LlamaConfig:
    return llama_config(train_bpe(), **SIZES)


@pytest.fixture(scope="module", autouse=True)
def same_traces() -> Iterator[None]:
    """Most tests ask about the same model, and each of its two traces takes long."""
    with pytest.MonkeyPatch.context() as patch:
        made: dict[str, Trace] = {}

        def remember(config: Any, *words: Any) -> Trace:
            key = repr((config.to_json_string(), *words))
            if key not in made:
                made[key] = trace_training(config, *words)
            return made[key]

        patch.setattr(estimates, "trace_training", remember)
        yield


def estimate(config: Any, method: Any = "lora", dtype: Any = "float32", **training: Any) -> Estimate:
    return estimate_training(config, "causal", LoraSettings(method), TrainingSettings(dtype=dtype, **training), BATCH)


@contextmanager
def live_bytes() -> Iterator[Any]:
    """The peak of what really lives, by the same count, on tensors with memory."""
    with make_counter() as counter:
        yield counter


def measure(config: Any, method: Any, checkpointing: bool = False) -> float:
    """Bytes that live in a real forward and backward pass of the whole model beside weights and gradients."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").train()
    if method != "full":
        model = attach_adapter(model, "causal", LoraSettings(method))
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for weight in model.parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
    ids = torch.zeros((BATCH.rows, BATCH.length), dtype=torch.long)
    with live_bytes() as counter:
        logits = model(input_ids=ids, logits_to_keep=BATCH.kept // BATCH.rows, use_cache=False).logits.flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)).backward()
    return float(counter.peak)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_activations_of_all_layers_are_those_of_the_whole_model(config: LlamaConfig, method: Any) -> None:
    lora = LoraSettings(method)
    one, two = (estimates.trace_training(config, "causal", lora, "float32", BATCH, layers) for layers in (1, 2))
    assert extrapolate(one, two, config.num_hidden_layers).activations == pytest.approx(
        measure(config, method), rel=0.02
    )


def test_parameters_and_states_are_counted_exactly(config: LlamaConfig) -> None:
    model = attach_adapter(AutoModelForCausalLM.from_config(config), "causal", LoraSettings())
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    frozen = sum(weight.numel() for weight in model.parameters() if not weight.requires_grad)
    memory = estimate(config).memory
    assert (memory.weights, memory.adapter) == (4 * frozen, 4 * trained)
    assert (memory.gradients, memory.optimizer) == (4 * trained, 8 * trained)
    assert estimate(config, optimizer="adamw_8bit").memory.optimizer == 2 * trained
    full = estimate(config, "full").memory
    assert (full.weights, full.adapter, full.gradients, full.optimizer) == (4 * frozen, 0, 4 * frozen, 8 * frozen)


def test_qlora_packs_the_linear_layers_and_nothing_else(config: LlamaConfig) -> None:
    layer = 128 * 128 * 2 + 128 * 64 * 2 + 128 * 384 * 3  # queries, output; keys, values; the three of the MLP
    saved = estimate(config, dtype="bfloat16").memory.weights - estimate(config, "qlora", "bfloat16").memory.weights
    assert saved == pytest.approx(6 * layer * (2 - NF4_BYTES))


@pytest.mark.parametrize("method", ["lora", "full"])
def test_checkpointing_keeps_the_inputs_of_layers_and_computes_forward_twice(config: LlamaConfig, method: Any) -> None:
    plain, checkpointed = estimate(config, method), estimate(config, method, gradient_checkpointing=True)
    assert checkpointed.memory.activations == pytest.approx(measure(config, method, checkpointing=True), rel=0.02)
    assert checkpointed.memory.activations < 0.4 * plain.memory.activations
    assert checkpointed.operations > 1.2 * plain.operations


def test_operations_are_6_a_parameter_and_4_with_frozen_matrices(config: LlamaConfig) -> None:
    """Of matrices; the vocabulary's is multiplied for 8 of 512 tokens only; attention comes on top."""
    matrices = 6 * (128 * 128 * 2 + 128 * 64 * 2 + 128 * 384 * 3)
    attention = 6 * 4 * 128 * 128 / 2  # 4 · length · width, half of it as it is causal, in 6 layers
    full, frozen = estimate(config, "full").operations, estimate(config).operations
    assert full == pytest.approx(6 * matrices + 3.5 * attention, rel=0.03)
    adapter = estimate(config).memory.adapter / 4
    assert frozen == pytest.approx(4 * matrices + 6 * adapter + 3.5 * attention, rel=0.03)
    assert estimate_inference(config, "causal", "float32", BATCH).operations == pytest.approx(
        2 * matrices + attention, rel=0.03
    )


def test_generating_keeps_the_batchs_keys_and_values(config: LlamaConfig) -> None:
    assert cache_bytes(config, "bfloat16") == 2 * 6 * 2 * 32 * 2
    reading, writing = (estimate_inference(config, "causal", "bfloat16", BATCH, new).memory for new in (1, 8))
    assert writing.activations - reading.activations == 512 * cache_bytes(config, "bfloat16")


@pytest.mark.parametrize("kind", ["sequence", "token", "masked"])
def test_encoders_are_estimated_with_their_heads(kind: Any) -> None:
    config = BertConfig(
        vocab_size=400, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64
    )
    made = estimate_training(config, kind, LoraSettings(), TrainingSettings(dtype="bfloat16"), BATCH)
    assert made.memory.weights == 2 * count_parameters(config, kind) and made.memory.activations > 0


def test_a_model_whose_code_needs_values_is_refused(config: LlamaConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: x * float(x.sum()))
    with pytest.raises(ValueError, match="model_type = llama: not computed"):
        trace_training(config, "causal", LoraSettings(), "float32", BATCH, 1)


def test_parameters_of_a_large_shape_are_counted_without_its_weights() -> None:
    from transformers import Qwen2Config

    shape = Qwen2Config(
        hidden_size=3584,
        intermediate_size=18944,
        num_hidden_layers=28,
        num_attention_heads=28,
        num_key_value_heads=4,
        vocab_size=152064,
        tie_word_embeddings=False,
    )
    assert count_parameters(shape, "causal") == 7_615_616_512  # as Qwen2.5-7B's model card: 7.61B


def test_auto_takes_the_largest_power_of_two_whose_estimate_fits(
    config: LlamaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory of 5 MB and 1 kB a token: 2048 tokens need 7.1 MB, 16384 need 21.8."""

    def plan(config: Any, kind: Any, lora: Any, training: Any, batch: Batch) -> Estimate:
        return Estimate(Memory(5e6, 0.0, 0.0, 0.0, 1024.0 * batch.tokens), 1.0, 1.0)

    monkeypatch.setattr(estimates, "estimate_training", plan)
    training, lora = TrainingSettings(dtype="float32"), LoraSettings()
    rooms = [7.05e6, 7.15e6, 21.7e6, 21.8e6, 1e12]
    made = [fit_batch_tokens(config, "causal", lora, training, room) for room in rooms]
    assert made == [1024, 2048, 8192, 16384, 16384]
    with pytest.raises(ValueError, match=r"auto: 256 tokens need 0.0 GiB, 0.0 are free: set training.gradient_checkp"):
        fit_batch_tokens(config, "causal", lora, training, 5.1e6)


def test_an_engine_takes_the_largest_power_of_two_whose_estimate_fits(config: LlamaConfig) -> None:
    """And its weights where they are quantised; without room the smallest, for the engine to say what is missing."""
    tokens = fit_inference(config, "causal", "float32", 60e6)
    assert tokens in {2**power for power in range(9, 14)}

    def needed(tokens: int) -> float:
        return estimate_inference(config, "causal", "float32", Batch(tokens, 256, tokens // 4), new=2).memory.total

    assert needed(tokens) <= 60e6 < needed(2 * tokens)
    weights = 4 * count_parameters(config, "causal")
    assert fit_inference(config, "causal", "float32", 60e6 - weights, weights=0) == tokens
    assert fit_inference(config, "causal", "float32", 1.0) == 256
    assert fit_inference(config, "causal", "float32", 1e12) == 2**14


def test_experts_and_quantised_weights_are_no_error_where_an_engine_is_made(config: LlamaConfig) -> None:
    """A CPU's product of experts refuses float16, and Mamba's config has no layer types to cut."""
    from transformers import MambaConfig, Qwen3MoeConfig

    sizes = {"vocab_size": 400, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    experts = Qwen3MoeConfig(**sizes, num_key_value_heads=2, num_experts=4, num_experts_per_tok=2)
    assert fit_inference(experts, "causal", "float16", 1e12) == 2**14
    packed = config.__class__(**config.to_dict(), quantization_config={"quant_method": "gptq", "bits": 4})
    assert fit_inference(packed, "causal", "float16", 1e12, weights=1e6) == 2**14
    assert shorten(MambaConfig(num_hidden_layers=4), 1).num_hidden_layers == 1
