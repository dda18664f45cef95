"""Engine settings that a card refuses: attention, caches, several cards, adapters. One function a rule."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from packaging.version import Version

from kaggle_llm.runtime import facts
from kaggle_llm.runtime.case import Case
from kaggle_llm.runtime.findings import Finding
from kaggle_llm.runtime.model_memory import CONTEXT, weight_bytes

ON = ("1", "true")
SWAP_SPACE_DROPPED = Version("0.20")  # 0.19.1 warns and ignores it
COMFORTABLE_SHARE = 0.8  # of a card: weights below it leave room for the cache


def judge_backend(case: Case) -> Iterator[Finding]:
    """The attention backend that the config names, our engine on a T4, or vLLM elsewhere."""
    if not case.on_vllm:
        return
    config = case.settings.get("attention_config")
    if "attention_backend" in case.settings and isinstance(config, dict) and "backend" in config:
        way = "leave engine.vllm.attention_backend out"
        yield Finding("attention", "refused", f"attention_backend and attention_config.backend are both given: {way}")
    elif case.backend is None:
        why = f"the backend that vLLM {case.version} takes on {case.accelerator.card} is not known"
        yield Finding("attention", "warn", f"{why}, {case.source}: ask where vLLM is installed")
    else:
        yield from (case.is_t4 and judge_t4_backend(case)) or judge_asked_backend(case)


def judge_t4_backend(case: Case) -> list[Finding]:
    """What is known of a T4 without asking vLLM; [] for a backend that may run there."""
    backend, way = case.backend or "", "leave engine.vllm.attention_backend out: TRITON_ATTN is taken on a T4"
    if backend == "FLASHINFER" and case.version >= facts.FLASHINFER_DROPPED:
        why = f"since vLLM {facts.FLASHINFER_DROPPED} it asks for capability 8.0 (#45375)"
        return [Finding("attention", "refused", f"FLASHINFER does not run on a T4: {why}: {way}")]
    if backend == "FLASHINFER":
        return [Finding("attention", "warn", f"FLASHINFER is built when it starts, with nvcc and ninja: {way}")]
    if backend.startswith(("FLASH", "TURBOQUANT")):
        why = "fails on a T4 (#43576)" if backend == "TURBOQUANT" else "asks for capability 8.0 or more, a T4 has 7.5"
        return [Finding("attention", "refused", f"{backend} {why}: {way}")]
    return []


def judge_asked_backend(case: Case) -> Iterator[Finding]:
    """The named backend by vLLM's own check of head size, dtype and so on."""
    answer, default = case.answer("attention"), case.default_backend
    forced = f"; by default vLLM {case.version} would take {default}" if default and default != case.backend else ""
    if answer is None:
        yield Finding("attention", "ok", f"{case.backend}, {case.source}{forced}")
    elif case.backend in answer["valid"]:
        yield Finding("attention", "ok", f"{case.backend} of {', '.join(answer['valid'])}, {case.source}{forced}")
    elif not (case.model.is_mla and case.is_t4):
        reasons = ", ".join(answer["refused"].get(case.backend, ["it does not know it"]))
        valid = ", ".join(answer["valid"]) or "none: set engine.kind=transformers"
        yield Finding("attention", "refused", f"{case.backend}: {reasons} ({case.source}); it can take {valid}")


def judge_mla(case: Case) -> Iterator[Finding]:
    if case.on_vllm and case.is_t4 and case.model.is_mla:
        why = "multi-head latent attention asks vLLM for FlashAttention's prefill, which starts at 8.0 (#34122)"
        yield Finding("attention", "refused", f"{why}: take a model without it, or engine.kind=transformers")


def judge_linear_attention(case: Case) -> Iterator[Finding]:
    if case.on_vllm and case.is_t4 and case.model.has_linear_attention:
        why = (
            "gated delta nets (Qwen3.5, Qwen3-Next) have only Triton kernels on a T4, and gave garbage in some versions"
        )
        yield Finding("linear attention", "warn", f"{why}: try it on a T4 before you rely on it")


def judge_triton(case: Case) -> Iterator[Finding]:
    """Triton multiplies without tensor cores below capability 8.0."""
    if not (case.on_vllm and case.is_t4):
        return
    if case.model.experts[0]:
        yield Finding("experts", "warn", "vLLM's kernels of experts are Triton's, slow on a T4: no tensor cores")
    if case.backend == "TRITON_ATTN" and case.work.longest >= 4096:
        why = f"prompts of {case.work.longest} tokens: attention without tensor cores takes most of the time"
        yield Finding("long prompts", "warn", f"{why}: shorten prompt.budgets, or compare engine.kind=transformers")


def judge_kv_cache(case: Case) -> Iterator[Finding]:
    if not case.on_vllm:
        return
    dtype = case.kv_cache_dtype
    if dtype.startswith("fp8") and case.accelerator.is_below(89):
        why = f"kv_cache_dtype = {dtype} asks for capability 8.9, a T4 has 7.5"
        yield Finding("kv cache", "refused", f"{why}: leave engine.vllm.kv_cache_dtype out")
    elif case.is_t4 and (dtype == "bfloat16" or dtype.startswith("turboquant")):
        why = f"kv_cache_dtype = {dtype} does not run on a T4"
        yield Finding("kv cache", "refused", f"{why}: leave engine.vllm.kv_cache_dtype out")


def judge_environment(case: Case) -> Iterator[Finding]:
    """Environment variables of vLLM that the files that ship set."""
    if not case.on_vllm:
        return
    variables = {name: value.lower() for name, value in case.environment.items()}
    if case.is_t4 and variables.get("VLLM_USE_FLASHINFER_SAMPLER") in ON:
        why = "VLLM_USE_FLASHINFER_SAMPLER=1 makes vLLM stop on a T4"
        yield Finding("sampler", "refused", f"{why}: set it to 0, or leave it out")
    if "VLLM_ATTENTION_BACKEND" in variables:
        why = f"vLLM {case.version} ignores VLLM_ATTENTION_BACKEND (#32812, #50292)"
        yield Finding("attention", "warn", f"{why}: set engine.vllm.attention_backend")
    if variables.get("VLLM_USE_V1") == "0":
        yield Finding("V0", "warn", f"vLLM {case.version} has no V0 engine: VLLM_USE_V1=0 does nothing")


def judge_cards(case: Case) -> Iterator[Finding]:
    """How many cards and processes the settings ask for."""
    if not case.on_vllm:
        return
    cards, settings = case.accelerator.count, case.settings
    if int(settings.get("data_parallel_size", 1)) > 1:
        why = "one LLM object takes no data_parallel_size above 1"
        yield Finding("cards", "refused", f"{why}: leave it out, two processes with one card each do the same")
    asked = case.tensor_parallel * int(settings.get("pipeline_parallel_size", 1))
    if asked > cards:
        why = f"{asked} cards are asked for, the runtime has {cards}"
        yield Finding("cards", "refused", f"{why}: set tensor_parallel_size to {cards} or 1")
    elif case.tensor_parallel > 1:
        yield from judge_tensor_parallel(case)


def judge_tensor_parallel(case: Case) -> Iterator[Finding]:
    """Whether tensor parallel is needed, and whether its settings suit Kaggle's cards."""
    card = case.card_bytes
    fits = card and weight_bytes(case) * case.tensor_parallel < COMFORTABLE_SHARE * (card - CONTEXT)
    if fits and case.model.tensors:
        link = (
            "whose cards have no peer access (#51513)" if case.is_t4 else "where the link of these cards is not known"
        )
        why = f"the model fits one card: tensor parallel may hang on Kaggle, {link}"
        yield Finding("cards", "warn", f"{why}; without it one process a card shares the rows")
    if case.is_t4 and case.settings.get("disable_custom_all_reduce") is False:
        why = "Kaggle's cards have no peer access, so vLLM's own all-reduce does not work"
        yield Finding("cards", "warn", f"{why}: leave disable_custom_all_reduce out")


def judge_division(case: Case) -> Iterator[Finding]:
    """Tensor parallel splits heads, columns and groups of quantised weights: the cards must divide each."""
    cards, model = case.tensor_parallel, case.model
    if cards <= 1:
        return
    parts = {"attention heads": model.heads, "columns of the MLP": model.intermediate}
    if model.kv_heads >= cards:  # fewer are copied to every card
        parts["key/value heads"] = model.kv_heads
    uneven = [f"{count} {name}" for name, count in parts.items() if count % cards]
    for group in {group["group_size"] for group in model.groups if group["group_size"] > 0}:
        rows = {"rows of o_proj": model.heads * model.head_size, "rows of down_proj": model.intermediate}
        uneven += [
            f"{rows[name] // cards} {name} on a card by groups of {group}"
            for name in rows
            if rows[name] % cards or (group < rows[name] and rows[name] // cards % group)
        ]
    if uneven:
        way = "set tensor_parallel_size=1" + (", or quantise with a smaller group_size" if model.groups else "")
        yield Finding(
            "division", "refused", f"tensor_parallel_size = {cards} does not divide {', '.join(uneven)}: {way}"
        )


def judge_settings(case: Case) -> Iterator[Finding]:
    """Settings that vLLM does not know, or no longer has."""
    if not case.on_vllm:
        return
    if "swap_space" in case.settings:
        dropped = case.version >= SWAP_SPACE_DROPPED
        why = f"vLLM {case.version} {'has no' if dropped else 'ignores'} swap_space"
        way = "leave it out; engine.vllm.cpu_offload_gb moves weights to memory"
        yield Finding("settings", "refused" if dropped else "warn", f"{why}: {way}")
    known = case.answer("settings") or []
    for name in case.settings if known else ():
        if name not in known and name != "swap_space":
            (nearest,) = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
            why = f"engine.vllm.{name} is unknown, {case.source}"
            yield Finding("settings", "refused", f"{why}: did you mean {nearest!r}?")
    if case.settings.get("enable_prefix_caching") is False:
        why = "without prefix caching the shared beginning of a row's prompts is computed for each of them"
        yield Finding("prefix caching", "warn", f"{why}: leave enable_prefix_caching out")


def judge_adapter(case: Case) -> Iterator[Finding]:
    """LoRA at run time: ranks and variants that vLLM does not serve."""
    adapter, way = case.model.adapter, "merge it (merge: … in config.yaml)"
    if not adapter or not case.on_vllm:
        return
    ranks = case.answer("lora_ranks") or list(facts.LORA_RANKS)
    rank = max(int(adapter.get("r", 0)), *(adapter.get("rank_pattern") or {}).values(), 0)
    limit = case.settings.get("max_lora_rank")
    if rank > max(ranks):
        yield Finding("adapter", "refused", f"rank {rank}, vLLM serves up to {max(ranks)} ({case.source}): {way}")
    elif limit is not None and (limit not in ranks or limit < rank):
        why = f"max_lora_rank = {limit} for an adapter of rank {rank}, allowed are {ranks}"
        yield Finding(
            "adapter", "refused", f"{why}: set it to {min(size for size in ranks if size >= rank)}, or leave it out"
        )
    unserved = [name for name in ("use_dora", "lora_bias", "layer_replication") if adapter.get(name)]
    saved = [name for name in adapter.get("modules_to_save") or [] if name not in ("classifier", "score")]
    unserved += [f"modules_to_save of {name}" for name in saved]
    if unserved:
        yield Finding("adapter", "refused", f"vLLM serves no adapter with {', '.join(unserved)}: {way}")
    if case.is_t4:
        why = "adapters at run time use Triton kernels, without tensor cores on a T4"
        yield Finding("adapter", "warn", f"{why}: {way}")


RULES = (
    judge_backend,
    judge_mla,
    judge_linear_attention,
    judge_triton,
    judge_kv_cache,
    judge_environment,
    judge_cards,
    judge_division,
    judge_settings,
    judge_adapter,
)
