"""What a T4 refuses of an engine's settings: attention, caches, two cards, adapters. One rule a function."""

from __future__ import annotations

import difflib
from collections.abc import Iterator

from packaging.version import Version

from kaggle_llm.runtime import facts
from kaggle_llm.runtime.case import Case
from kaggle_llm.runtime.findings import Finding, Level
from kaggle_llm.runtime.model_memory import CONTEXT, GIB, weight_bytes

ON = ("1", "true")
NO_ENVIRONMENT_BACKEND = Version("0.15")  # VLLM_ATTENTION_BACKEND is ignored without a word (#32812, #50292)
NO_SWAP_SPACE = Version("0.20")  # 0.19.1 warns and ignores it
COMFORTABLE = 0.8  # share of a card that weights may take and leave room


def judge_backend(case: Case) -> Iterator[Finding]:
    """The attention backend that is named, or that our engine names on a T4."""
    if not case.on_vllm:
        return
    backend, way = case.backend, "leave engine.vllm.attention_backend out: TRITON_ATTN is taken on a T4"
    config = case.given.get("attention_config")
    if "attention_backend" in case.given and isinstance(config, dict) and "backend" in config:
        yield Finding("attention", "refused", f"attention_backend and attention_config.backend are both given: {way}")
    elif backend == "FLASHINFER" and (reason := facts.refuse_flashinfer(case.version)):
        yield Finding("attention", "refused", f"FLASHINFER does not run on a T4: {reason}: {way}")
    elif backend == "FLASHINFER":
        yield Finding("attention", "warn", f"FLASHINFER is built at start, with nvcc and ninja: {way}")
    elif backend and (backend.startswith("FLASH") or backend.startswith("TURBOQUANT")):
        why = "fails on a T4 (#43576)" if backend == "TURBOQUANT" else "asks for capability 8.0 or more, a T4 has 7.5"
        yield Finding("attention", "refused", f"{backend} {why}: {way}")
    else:
        yield from judge_asked_backend(case)


def judge_asked_backend(case: Case) -> Iterator[Finding]:
    """The named backend by vLLM's own check of head size, dtype and the rest."""
    found = case.answer("attention")
    alone = facts.choose_backend(case.version)
    forced = "" if alone == case.backend else f"; alone vLLM {case.version} would take {alone}"
    if found is None:
        yield Finding("attention", "ok", f"{case.backend}, {case.source}{forced}")
    elif case.backend in found["valid"]:
        yield Finding("attention", "ok", f"{case.backend} of {', '.join(found['valid'])}, {case.source}{forced}")
    elif not case.model.is_mla:
        reasons = ", ".join(found["refused"].get(case.backend, ["it does not know it"]))
        valid = ", ".join(found["valid"]) or "none: set engine.kind=transformers"
        yield Finding("attention", "refused", f"{case.backend}: {reasons} ({case.source}); it can take {valid}")


def judge_mla(case: Case) -> Iterator[Finding]:
    if case.on_vllm and case.model.is_mla:
        why = "multi-head latent attention asks vLLM for FlashAttention's prefill, which starts at 8.0 (#34122)"
        yield Finding("attention", "refused", f"{why}: take a model without it, or engine.kind=transformers")


def judge_linear_attention(case: Case) -> Iterator[Finding]:
    if case.on_vllm and case.model.has_linear_attention:
        why = (
            "gated delta nets (Qwen3.5, Qwen3-Next) have Triton kernels only on a T4, and gave garbage in some versions"
        )
        yield Finding("linear attention", "warn", f"{why}: try it on a T4 before you rely on it")


def judge_triton(case: Case) -> Iterator[Finding]:
    """Triton multiplies without tensor cores below capability 8.0."""
    if not case.on_vllm:
        return
    if case.model.experts[0]:
        yield Finding("experts", "warn", "vLLM's kernels of experts are Triton's, without tensor cores on a T4: slow")
    if case.backend == "TRITON_ATTN" and case.work.longest >= 4096:
        why = f"prompts of {case.work.longest} tokens: attention without tensor cores takes most of the time"
        yield Finding("long prompts", "warn", f"{why}: shorten prompt.budgets, or compare engine.kind=transformers")


def judge_kv_cache(case: Case) -> Iterator[Finding]:
    if not case.on_vllm:
        return
    kind = case.kv_cache_dtype
    if kind.startswith("fp8"):
        why = f"kv_cache_dtype = {kind} asks for capability 8.9, a T4 has 7.5"
        yield Finding("kv cache", "refused", f"{why}: leave engine.vllm.kv_cache_dtype out")
    elif kind == "bfloat16" or kind.startswith("turboquant"):
        why = f"kv_cache_dtype = {kind} does not run on a T4"
        yield Finding("kv cache", "refused", f"{why}: leave engine.vllm.kv_cache_dtype out")


def judge_environment(case: Case) -> Iterator[Finding]:
    """Variables of vLLM that files set."""
    if not case.on_vllm:
        return
    given = {name: value.lower() for name, value in case.environment.items()}
    if given.get("VLLM_USE_FLASHINFER_SAMPLER") in ON:
        yield Finding(
            "sampler", "refused", "VLLM_USE_FLASHINFER_SAMPLER=1 makes vLLM stop on a T4: set it to 0, or not"
        )
    if "VLLM_ATTENTION_BACKEND" in given and case.version >= NO_ENVIRONMENT_BACKEND:
        why = f"vLLM {case.version} ignores VLLM_ATTENTION_BACKEND"
        yield Finding("attention", "warn", f"{why}: set engine.vllm.attention_backend")
    if given.get("VLLM_USE_V1") == "0" and case.version >= Version("0.11"):
        yield Finding("V0", "warn", f"vLLM {case.version} has no V0 engine: VLLM_USE_V1=0 does nothing")


def judge_cards(case: Case) -> Iterator[Finding]:
    """Cards and processes that are asked for."""
    if not case.on_vllm:
        return
    cards, given = case.runtime.machine.gpus.count, case.given
    if int(given.get("data_parallel_size", 1)) > 1:
        why = "one LLM object takes no data_parallel_size above 1"
        yield Finding("cards", "refused", f"{why}: leave it out, two processes with one card each do the same")
    asked = case.tensor_parallel * int(given.get("pipeline_parallel_size", 1))
    if asked > cards:
        yield Finding(
            "cards", "refused", f"{asked} cards are asked for, the runtime has {cards}: set it to {cards} or 1"
        )
    elif case.tensor_parallel > 1:
        yield from judge_tensor_parallel(case)


def judge_tensor_parallel(case: Case) -> Iterator[Finding]:
    """Whether tensor parallel is needed, and what else it asks for."""
    card = case.runtime.machine.gpus.memory_gb * GIB
    if weight_bytes(case) * case.tensor_parallel < COMFORTABLE * (card - CONTEXT) and case.model.tensors:
        why = (
            "the model fits one card: tensor parallel may hang on Kaggle, whose cards do not reach each other (#51513)"
        )
        yield Finding("cards", "warn", f"{why}; without it two processes share the rows")
    if case.given.get("disable_custom_all_reduce") is False:
        why = "Kaggle's cards do not reach each other, vLLM's own all-reduce is of no use"
        yield Finding("cards", "warn", f"{why}: leave disable_custom_all_reduce out")


def judge_division(case: Case) -> Iterator[Finding]:
    """Tensor parallel cuts heads, columns and groups of quantised weights: each has to come out even."""
    cards, model = case.tensor_parallel, case.model
    if cards <= 1:
        return
    parts = {"attention heads": model.heads, "columns of the MLP": model.intermediate}
    if model.kv_heads >= cards:  # fewer are copied to every card
        parts["key/value heads"] = model.kv_heads
    odd = [f"{count} {name}" for name, count in parts.items() if count % cards]
    for group in {group["group_size"] for group in model.groups if group["group_size"] > 0}:
        rows = {"rows of o_proj": model.heads * model.head_size, "rows of down_proj": model.intermediate}
        odd += [
            f"{rows[name] // cards} {name} on a card by groups of {group}"
            for name in rows
            if rows[name] % cards or (group < rows[name] and rows[name] // cards % group)
        ]
    if odd:
        ways = "set tensor_parallel_size=1" + (", or quantise with a smaller group_size" if model.groups else "")
        yield Finding("division", "refused", f"tensor_parallel_size = {cards} does not divide {', '.join(odd)}: {ways}")


def judge_settings(case: Case) -> Iterator[Finding]:
    """Names that vLLM does not know, and settings that it no longer has."""
    if not case.on_vllm:
        return
    if "swap_space" in case.given:
        level: Level = "refused" if case.version >= NO_SWAP_SPACE else "warn"
        why = (
            f"vLLM {case.version} has no swap_space"
            if level == "refused"
            else f"vLLM {case.version} ignores swap_space"
        )
        yield Finding("settings", level, f"{why}: leave it out; engine.vllm.cpu_offload_gb moves weights to memory")
    known = case.answer("settings") or []
    for name in case.given if known else ():
        if name not in known and name != "swap_space":
            (nearest,) = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
            yield Finding(
                "settings", "refused", f"engine.vllm.{name} is unknown, {case.source}: did you mean {nearest!r}?"
            )
    if case.given.get("enable_prefix_caching") is False:
        why = "without prefix caching every prompt of a row is read from its beginning"
        yield Finding("prefix caching", "warn", f"{why}: leave enable_prefix_caching out")


def judge_adapter(case: Case) -> Iterator[Finding]:
    """LoRA at run time: ranks that vLLM has buffers for, and kinds that it does not know."""
    adapter, way = case.model.adapter, "merge it (merge: … in config.yaml)"
    if not adapter or not case.on_vllm:
        return
    ranks = case.answer("lora_ranks") or list(facts.LORA_RANKS)
    rank = max(int(adapter.get("r", 0)), *(adapter.get("rank_pattern") or {}).values(), 0)
    given = case.given.get("max_lora_rank")
    if rank > max(ranks):
        yield Finding("adapter", "refused", f"rank {rank}, vLLM serves up to {max(ranks)} ({case.source}): {way}")
    elif given is not None and (given not in ranks or given < rank):
        fit = [one for one in ranks if one >= rank]
        why = f"max_lora_rank = {given} for an adapter of rank {rank}, allowed are {ranks}"
        yield Finding("adapter", "refused", f"{why}: set it to {min(fit)}, or leave it out")
    kinds = [name for name in ("use_dora", "lora_bias", "layer_replication") if adapter.get(name)]
    kinds += [
        f"modules_to_save of {one}"
        for one in adapter.get("modules_to_save") or []
        if one not in ("classifier", "score")
    ]
    if kinds:
        yield Finding("adapter", "refused", f"vLLM serves no adapter with {', '.join(kinds)}: {way}")
    yield Finding("adapter", "warn", f"adapters at run time go through Triton, without tensor cores on a T4: {way}")


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
