"""How long a run takes on the accelerator, by assumed throughputs that were not measured."""

from __future__ import annotations

from collections.abc import Iterator

from kaggle_llm.runtime import facts
from kaggle_llm.runtime.case import Case
from kaggle_llm.runtime.findings import Finding
from kaggle_llm.runtime.model_memory import weight_bytes

STEP_SEQUENCES = 32  # generated together: the weights are read once for all of them
START_SECONDS = {True: 180.0, False: 30.0}  # until vLLM (True) or transformers has loaded a model: assumed


def judge_time(case: Case) -> Iterator[Finding]:
    """Finding named time: 2 · parameters · tokens / throughput for reading, weights / bandwidth for each new token."""
    if not case.model.tensors:
        return
    accelerator, work, limit = case.accelerator, case.work, case.hours * 3600
    flops, bandwidth = throughput(case), facts.BANDWIDTH_SHARE * (accelerator.bandwidth or 0)
    if not flops or not bandwidth:
        why = f"the speed of {accelerator.card} on Kaggle is not known: no estimate for {work.tokens:,} tokens"
        yield Finding("time", "warn", f"{why}; time it there with kaggle-llm push --rows")
        return
    cards = accelerator.count  # one process a card, or all for one model
    reading = 2 * case.model.active_parameters * work.tokens / flops / cards
    reading += 4 * case.model.hidden * case.model.layers * work.tokens * work.longest / 2 / flops / cards
    steps = work.rows * work.prompts * (work.new - 1) / STEP_SEQUENCES
    writing = steps * weight_bytes(case) / bandwidth * (1 if case.tensor_parallel > 1 else 1 / cards)
    total = reading + writing + START_SECONDS[case.on_vllm]
    text = (
        f"about {describe_seconds(total)} for {work.rows} rows, an estimate that was not run on {accelerator.card}: "
        f"{work.tokens:,} tokens, {flops / 1e12:.0f} TFLOPS and {bandwidth / 1e9:.0f} GB/s a card, "
        f"{cards} cards, {START_SECONDS[case.on_vllm]:.0f} s to load; {work.note}"
    )
    if total > limit:
        yield Finding("time", "warn", f"{text}; the limit is {limit / 3600:g} h: fewer candidates, shorter budgets")
    else:
        yield Finding("time", "ok", text)


def throughput(case: Case) -> float | None:
    """Assumed floating-point operations a second of one card; None where nothing is known of it.

    Where a card's half-precision rate is not known, its float32 rate is taken.
    """
    accelerator = case.accelerator
    slow = accelerator.float32_flops and facts.FLOAT32_SHARE * accelerator.float32_flops
    if case.engine.dtype == "float32" or not accelerator.half_flops:
        return slow
    without_tensor_cores = case.on_vllm and accelerator.is_below(80)
    return accelerator.half_flops * (facts.TRITON_SHARE if without_tensor_cores else facts.HALF_SHARE)


def describe_seconds(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
