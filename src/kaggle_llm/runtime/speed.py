"""How long a run takes on two T4s, by assumed throughputs that were not measured."""

from __future__ import annotations

from collections.abc import Iterator

from kaggle_llm.runtime import facts
from kaggle_llm.runtime.case import Case
from kaggle_llm.runtime.findings import Finding
from kaggle_llm.runtime.model_memory import weight_bytes

STEP_SEQUENCES = 32  # that generate together: the weights are read once for all of them
START_SECONDS = {True: 180.0, False: 30.0}  # until vLLM (True) or transformers has loaded a model: assumed


def judge_time(case: Case) -> Iterator[Finding]:
    """Finding named time: 2 · parameters · tokens / throughput for reading, weights / bandwidth for each new token."""
    if not case.model.tensors:
        return
    work, limit = case.work, case.hours * 3600
    flops = throughput(case)
    cards = case.runtime.machine.gpus.count  # one process a card, or both for one model
    reading = 2 * case.model.active_parameters * work.tokens / flops / cards
    reading += 4 * case.model.hidden * case.model.layers * work.tokens * work.longest / 2 / flops / cards
    steps = work.rows * work.prompts * (work.new - 1) / STEP_SEQUENCES
    writing = steps * weight_bytes(case) / facts.BANDWIDTH * (1 if case.tensor_parallel > 1 else 1 / cards)
    total = reading + writing + START_SECONDS[case.on_vllm]
    text = (
        f"about {describe_seconds(total)} for {work.rows} rows, an estimate that was not run on a T4: "
        f"{work.tokens:,} tokens, {flops / 1e12:.0f} TFLOPS and {facts.BANDWIDTH / 1e9:.0f} GB/s a card, "
        f"{cards} cards, {START_SECONDS[case.on_vllm]:.0f} s to load; {work.note}"
    )
    if total > limit:
        yield Finding("time", "warn", f"{text}; the limit is {limit / 3600:g} h: fewer candidates, shorter budgets")
    else:
        yield Finding("time", "ok", text)


def throughput(case: Case) -> float:
    """Assumed floating-point operations a second of one card."""
    if case.engine.dtype == "float32":
        return facts.FLOAT32_FLOPS
    return facts.TRITON_FLOPS if case.on_vllm else facts.PREFILL_FLOPS


def describe_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
