"""Does a model fit on a card, in the machine's memory while it loads, and on the disk? By simple formulas."""

from __future__ import annotations

from collections.abc import Iterator

from kaggle_llm.base.device import CONTEXT_GB
from kaggle_llm.engines.footprint import SMALLEST_BATCH
from kaggle_llm.runtime import facts
from kaggle_llm.runtime.case import Case
from kaggle_llm.runtime.findings import Finding
from kaggle_llm.runtime.machine import GIB
from kaggle_llm.runtime.model_facts import DTYPE_BYTES
from kaggle_llm.weights.checkpoint import is_float

CONTEXT = CONTEXT_GB * GIB  # of a card, taken by CUDA, its libraries and graphs: assumed
PROCESS = 3.0 * GIB  # of memory, taken by Python with torch and CUDA: assumed
BATCHED_TOKENS, SEQUENCES = 8192, 256  # vLLM's defaults
LARGE_CARD, LARGE_BATCHED_TOKENS, LARGE_SEQUENCES = 70 * GIB, 16384, 1024  # and those from 70 GB on
FEW_SEQUENCES = 8
DATASET_LIMIT = 200e9  # bytes that Kaggle takes in one dataset


def judge_memory(case: Case) -> Iterator[Finding]:
    """Findings named fits, memory not modelled, loading and disk."""
    if not case.model.tensors:
        yield Finding(
            "fits", "warn", f"{case.model.weights} has no safetensors: save it with save_pretrained to judge it"
        )
        return
    yield judge_card(case)
    yield from name_unmodelled(case)
    yield judge_loading(case)
    yield judge_disk(case)


def kv_bytes(case: Case) -> float:
    """Cache of one token on one card: 2 · layers · key/value heads · head size · bytes, heads split over the cards."""
    model, dtype = case.model, case.kv_cache_dtype
    size = (
        0.5
        if dtype.startswith("int4")
        else 1.0
        if dtype.startswith(("int8", "fp8"))
        else DTYPE_BYTES[case.engine.dtype]
    )
    heads = max(1, model.kv_heads // case.tensor_parallel)
    return 2 * model.layers * heads * model.head_size * size


def activation_bytes(case: Case, tokens: int, sequences: int) -> float:
    """Bytes of one pass: tokens · (4 · hidden + 3 · intermediate / cards) · bytes + 3 float32 logits a sequence."""
    model = case.model
    expert = model.number("moe_intermediate_size", default=0) * model.experts[1]
    width = 4 * model.hidden + 3 * max(model.intermediate, expert) / case.tensor_parallel
    return tokens * width * DTYPE_BYTES[case.engine.dtype] + 3 * sequences * model.vocabulary * 4


def weight_bytes(case: Case) -> float:
    """Bytes of the weights on one card. vLLM keeps quantised ones packed; transformers unpacks compressed-tensors."""
    if not case.on_vllm and case.model.method == "compressed-tensors":
        return case.model.unpacked_bytes(case.engine.dtype)
    return case.model.loaded_bytes(case.engine.dtype) / case.tensor_parallel


def judge_card(case: Case) -> Finding:
    if case.card_bytes is None:
        where = "a card" if case.accelerator.count else "the machine"
        return Finding("fits", "warn", f"the memory of {where} with {case.accelerator.name} is not known")
    return judge_vllm_card(case, case.card_bytes) if case.on_vllm else judge_transformers_card(case, case.card_bytes)


def held_bytes(case: Case) -> float:
    """Bytes taken on each card by the loaded model: vLLM takes its share at once, transformers what it needs."""
    if not case.model.tensors or not case.accelerator.count:
        return 0.0
    if case.on_vllm:
        return (case.card_bytes or 0.0) * vllm_share(case, case.card_bytes or 0.0)
    return transformers_bytes(case, max(case.engine.tokens, case.work.longest))


def vllm_share(case: Case, card: float) -> float:
    """gpu_memory_utilization as the engine chooses it: vLLM's default, or what other models leave free."""
    named = case.settings.get("gpu_memory_utilization")
    if named is not None:
        return float(named)
    return max(0.0, min(facts.memory_utilization(case.version), (card - case.taken - CONTEXT) / card))


def vllm_batch(case: Case, card: float) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs): the config's, else vLLM's defaults for the card."""
    large = card >= LARGE_CARD
    tokens, sequences = (LARGE_BATCHED_TOKENS, LARGE_SEQUENCES) if large else (BATCHED_TOKENS, SEQUENCES)
    settings = case.settings
    return int(settings.get("max_num_batched_tokens", tokens)), int(settings.get("max_num_seqs", sequences))


def describe_taken(case: Case) -> str:
    return f", {case.taken / GIB:.1f} GB of it held by the run's other models" if case.taken else ""


def judge_vllm_card(case: Case, card: float) -> Finding:
    settings, share = case.settings, vllm_share(case, card)
    weights = max(0.0, weight_bytes(case) - float(settings.get("cpu_offload_gb", 0)) * GIB)
    batched, sequences = vllm_batch(case, card)
    activations = activation_bytes(case, batched, sequences)
    room = card * share - weights - activations - CONTEXT
    if settings.get("kv_cache_memory_bytes"):
        room = min(float(settings["kv_cache_memory_bytes"]), card - case.taken - weights - activations - CONTEXT)
    token = kv_bytes(case)
    text = (
        f"{weights / GIB:.1f} GB weights + {activations / GIB:.1f} activations (estimate) + {CONTEXT / GIB:.1f} CUDA "
        f"(assumed) of {share:.0%} of {card / GIB:.2f} GB on each of {case.tensor_parallel} card(s)"
        f"{describe_taken(case)}"
    )
    if card * share > card - case.taken:
        way = f"set engine.vllm.gpu_memory_utilization to {max(0.0, 1 - (case.taken + CONTEXT) / card):.2f} or less"
        return Finding("fits", "refused", f"{text}: vLLM does not start where less than its share is free: {way}")
    length = case.max_model_len
    if room <= 0:
        return Finding("fits", "refused", f"{text}: nothing is left for keys and values; {ways_out(case)}")
    if room < length * token:
        shorter = -(-case.work.longest // 16) * 16
        advice = f"set engine.vllm.max_model_len={shorter}" if shorter * token <= room else ways_out(case)
        return Finding("fits", "refused", f"{text}; one sequence of max_model_len = {length} does not fit: {advice}")
    together = int(room / (token * min(length, case.work.longest)))
    text += (
        f"; {room / GIB:.1f} GB of keys and values are {together} sequences of {min(length, case.work.longest)} tokens"
    )
    if together < min(sequences, FEW_SEQUENCES):
        return Finding("fits", "warn", f"{text}: so few at a time are slow; {ways_out(case)}")
    return Finding("fits", "ok", f"{text} at a time")


def ways_out(case: Case) -> str:
    """Settings that make a model smaller on a card."""
    ways = [] if case.model.method else ["quantise it to 4 bits"]
    if case.on_vllm and case.tensor_parallel < case.accelerator.count:
        ways.append(f"engine.vllm.tensor_parallel_size={case.accelerator.count}")
    if case.engine.dtype == "float32":
        ways.append(f"engine.dtype={case.accelerator.half}")
    ways += ["a smaller engine.vllm.max_num_batched_tokens", "a smaller model"] if case.on_vllm else ["a smaller model"]
    return "ways out: " + ", ".join(ways)


def transformers_bytes(case: Case, tokens: int) -> float:
    """Weights, one batch with its cache, and CUDA."""
    cache = tokens * kv_bytes(case) if case.model.is_language_model else 0.0
    return weight_bytes(case) + activation_bytes(case, tokens, 0) + cache + CONTEXT


def judge_transformers_card(case: Case, card: float) -> Finding:
    least = SMALLEST_BATCH if case.engine.batch_tokens == "auto" else case.engine.tokens
    tokens = max(least, case.work.longest)
    weights, needed = weight_bytes(case), transformers_bytes(case, tokens)
    where = "on each card" if case.accelerator.count else "of memory"
    text = (
        f"{weights / GIB:.1f} GB weights + {(needed - weights) / GIB:.1f} for batches of {tokens} tokens (estimate) "
        f"of {card / GIB:.2f} GB {where}{describe_taken(case)}"
    )
    if needed + case.taken <= card:
        return Finding("fits", "ok", text)
    smaller = "engine.batch_tokens smaller, " if weights + CONTEXT + case.taken < card else ""
    return Finding("fits", "refused", f"{text}: {smaller}{ways_out(case)}, or engine.kind=vllm with packed weights")


def name_unmodelled(case: Case) -> Iterator[Finding]:
    """Parts of a model that the formulas above leave out."""
    model = case.model
    parts = {
        "multi-head latent attention: its cache is smaller than is counted": model.is_mla,
        "sliding windows: layers with one keep fewer keys and values than are counted": model.has_sliding_window,
        "linear attention: states are no keys and values, its layers count as full ones": model.has_linear_attention,
        "vision or audio parts: their activations are not counted": "text_config" in model.config,
    }
    left_out = [text for text, present in parts.items() if present]
    if left_out:
        yield Finding("memory not modelled", "warn", "; ".join(left_out))


def judge_loading(case: Case) -> Finding:
    """Memory of the machine while all processes read the weights at once.

    Both engines bring one tensor after the other to the card (transformers by device_map); without a card the weights
    stay in the machine's memory.
    """
    model, gigabytes = case.model, case.accelerator.ram_gb
    if gigabytes is None:
        why = f"the memory of the machine with {case.accelerator.name} is not known"
        return Finding("loading", "warn", f"{why}: processes that load at the same time: {case.processes}")
    ram = gigabytes * GIB
    size = DTYPE_BYTES[case.engine.dtype]
    largest = max(tensor.elements * size if is_float(tensor.dtype) else tensor.size for tensor in model.tensors)
    offloaded = float(case.settings.get("cpu_offload_gb", 0)) * GIB
    held = 2.0 * largest + offloaded if case.accelerator.count else weight_bytes(case)
    needed = case.processes * (PROCESS + held)
    stored = sum(tensor.size for tensor in model.tensors)
    text = (
        f"{case.processes} processes of {(PROCESS + held) / GIB:.1f} GB (estimate) while loading, of {ram / GIB:.0f} GB"
    )
    if needed > ram:
        way = "a smaller engine.vllm.cpu_offload_gb" if offloaded else "load one after the other, or engine.kind=vllm"
        return Finding("loading", "refused", f"{text}: {way}")
    if stored > ram - needed:
        return Finding("loading", "warn", f"{text}; the files ({stored / GIB:.1f} GB) are read from the mount by each")
    return Finding("loading", "ok", text)


def judge_disk(case: Case) -> Finding:
    """Weights stay on their read-only mount; installed packages take the disk outside /kaggle/working."""
    stored = sum(path.stat().st_size for path in case.model.weights.rglob("*") if path.is_file())
    scratch, site = case.accelerator.scratch_gb, case.runtime.site_gb
    room = "a disk of unknown size" if scratch is None else f"{scratch:.0f} GB"
    text = f"packages take about {site:.0f} GB of {room}, weights of {stored / GIB:.1f} GB stay on their mount"
    if stored > DATASET_LIMIT:
        return Finding(
            "disk", "refused", f"{text}: Kaggle takes {DATASET_LIMIT / 1e9:.0f} GB in a dataset; quantise it"
        )
    if scratch is not None and site > scratch:
        return Finding("disk", "refused", f"{text}: take a runtime that brings fewer packages")
    return Finding("disk", "ok", text)
