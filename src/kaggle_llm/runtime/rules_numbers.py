"""Number formats that a card refuses: dtypes, head sizes, quantised weights. One function a rule."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from packaging.version import Version

from kaggle_llm.runtime import facts
from kaggle_llm.runtime.case import Case
from kaggle_llm.runtime.findings import Finding

FORMATS_DROPPED = Version("0.32")  # bitsandbytes and GGUF, gone from vLLM's core since 0.19.1 (#39583, #39612)


def judge_bfloat16(case: Case) -> Iterator[Finding]:
    if case.engine.dtype == "bfloat16" and case.accelerator.is_below(80):
        way = "set engine.dtype=float16, or float32 where it overflows"
        yield Finding("dtype", "refused", f"{case.accelerator.card} has no bfloat16: {way}")


def judge_half_on_cpu(case: Case) -> Iterator[Finding]:
    if case.engine.dtype != "float32" and not case.accelerator.count:
        yield Finding("dtype", "warn", f"{case.engine.dtype} is slow on a CPU: set engine.dtype=float32")


def judge_float16_family(case: Case) -> Iterator[Finding]:
    """Model families whose activations overflow in float16."""
    known = case.answer("float16_refused")
    families = case.model.types & set(known if known is not None else facts.FLOAT16_REFUSED)
    if case.engine.dtype != "float16" or not families:
        return
    family = sorted(families)[0]
    if case.on_vllm:
        why = f"vLLM refuses {family} in float16 ({case.source}), its activations overflow"
        below = case.accelerator.is_below(80)
        way = "serve it with engine.kind=transformers, engine.dtype=float32" if below else "set engine.dtype=bfloat16"
        yield Finding("dtype", "refused", f"{why}: {way}")
    else:
        why = f"{family} overflows in float16, empty answers were seen"
        way = "float32" if case.accelerator.is_below(80) else "bfloat16"
        yield Finding("dtype", "warn", f"{why}: set engine.dtype={way}")


def judge_float32(case: Case) -> Iterator[Finding]:
    if case.engine.dtype != "float32":
        return
    half = case.accelerator.half
    if case.model.method in ("awq", "gptq", "compressed-tensors") and case.on_vllm and case.model.bits <= 8:
        way = f"set engine.dtype={half}"
        yield Finding("dtype", "refused", f"vLLM's kernels for {case.model.method} weights take no float32: {way}")
    elif case.on_vllm and case.is_t4 and facts.LARGEST_FLOAT32_HEAD < case.model.head_size <= facts.LARGEST_HEAD:
        size = case.model.head_size
        why = f"heads of {size} in float32 ask for more shared memory than the 64 KB of a T4 (#36802)"
        yield Finding("dtype", "refused", f"{why}: set engine.dtype=float16, or engine.kind=transformers")
    elif case.accelerator.count:
        yield Finding("dtype", "warn", f"float32 takes twice the memory and no tensor cores: try engine.dtype={half}")


def judge_overflow(case: Case) -> Iterator[Finding]:
    qwen2 = any(name.startswith("qwen2") for name in case.model.types)
    if qwen2 and case.engine.dtype == "float16":
        why = 'Qwen2 may overflow in float16 and then answers "!!!!" (#14126)'
        yield Finding("overflow", "warn", f"{why}: look at the first batch, and at the headroom that parity reports")


def judge_head_size(case: Case) -> Iterator[Finding]:
    size = case.model.head_size
    if case.on_vllm and case.is_t4 and size > facts.LARGEST_HEAD:
        why = f"heads of {size} ask for more shared memory than the 64 KB of a T4 (#57712)"
        way = f"the largest is {facts.LARGEST_HEAD}; set engine.kind=transformers"
        yield Finding("head size", "refused", f"{why}: {way}")


def judge_removed_formats(case: Case) -> Iterator[Finding]:
    settings = {str(case.settings.get(name, "")) for name in ("quantization", "load_format")}
    formats = sorted({case.model.method, *settings} & {"bitsandbytes", "gguf"})
    if case.on_vllm and formats and case.version >= FORMATS_DROPPED:
        way = "quantise it with compressed-tensors, take --runtime t4x2-vllm019, or engine.kind=transformers"
        yield Finding("quantisation", "refused", f"{formats[0]} is gone from vLLM {case.version}: {way}")


def is_refused_mxfp4(case: Case) -> bool:
    """gpt-oss and its format: kernels from capability 8.0 on."""
    methods = {case.model.method, str(case.settings.get("quantization", ""))}
    return case.accelerator.is_below(80) and bool(methods & {"mxfp4", "gpt_oss_mxfp4"})


def judge_mxfp4(case: Case) -> Iterator[Finding]:
    if is_refused_mxfp4(case):
        why = "mxfp4 (gpt-oss) asks for capability 8.0 (#23203), a T4 has 7.5"
        yield Finding("quantisation", "refused", f"{why}: take a model in float16, or with 4-bit integer weights")


def judge_quantisation(case: Case) -> Iterator[Finding]:
    """The lowest capability for the method, then for the scheme that vLLM takes for each group of weights."""
    method = str(case.settings.get("quantization") or case.model.method)
    if not case.on_vllm or not method or method in ("bitsandbytes", "gguf") or is_refused_mxfp4(case):
        return
    answer = case.answer("quantisation")
    if answer is None and case.answers.get("quantisation"):
        yield judge_no_answer(case, method, case.answers["quantisation"]["error"])
        return
    floors = {method: facts.MIN_CAPABILITY.get(method)} | (table_schemes(case) if answer is None else {})
    if answer is not None:
        floors = {answer["method"]: answer["min_capability"], **answer["schemes"]}
    card = case.accelerator.card
    too_high = {name: floor for name, floor in floors.items() if floor is not None and case.accelerator.is_below(floor)}
    if too_high:
        names = ", ".join(f"{name} (asks for {floor / 10})" for name, floor in too_high.items())
        way = "quantise it again, with 4-bit integer weights or 8-bit integers"
        yield Finding("quantisation", "refused", f"{names} does not run on {card}, {case.source}: {way}")
    elif floors[next(iter(floors))] is None:
        yield Finding("quantisation", "warn", f"{method} is not known here, {case.source}: try it on {card} first")
    else:
        yield Finding("quantisation", "ok", f"{', '.join(floors)} runs on {card}, {case.source}")


def judge_no_answer(case: Case, method: str, error: str) -> Finding:
    """A ValueError of vLLM refuses the format; any other error means that this version cannot be asked."""
    if error.startswith(("NotImplementedError", "ValueError")):
        way = "quantise it again, with 4-bit or 8-bit integer weights"
        return Finding("quantisation", "refused", f"{method}: {error[:300]} ({case.source}): {way}")
    return Finding("quantisation", "warn", f"{method}: vLLM cannot be asked ({error[:200]}): try it first")


def judge_activations(case: Case) -> Iterator[Finding]:
    """Activations that newer cards round to floats of 8 bits stay in float16 below capability 8.9, which has none."""
    rounded = any((group["activations"] or {}).get("type") == "float" for group in case.model.groups)
    eight = rounded or "fp8" in (case.model.method, case.settings.get("quantization"))
    if case.on_vllm and case.accelerator.is_below(89) and eight:
        why = "a T4 has no floats of 8 bits: vLLM unpacks the weights and computes in float16"
        yield Finding(
            "precision", "warn", f"{why}, so scores differ from another card's; 8-bit integers are computed alike"
        )


def table_schemes(case: Case) -> dict[str, int]:
    """Schemes of compressed-tensors → lowest capability in 0.32.0, for where no vLLM is installed to be asked."""
    if case.model.method != "compressed-tensors":
        return {}
    groups = (case.model.quantisation.get("config_groups") or {}).values()
    formats = {str(group.get("format") or "") for group in (case.model.quantisation, *groups)}
    table = {"mxfp4-pack-quantized": 80, "nvfp4-pack-quantized": 75, "pack-quantized": 75, "float-quantized": 75}
    return {name: table[name] for name in sorted(formats & table.keys())}


def judge_kernels(case: Case) -> Iterator[Finding]:
    """The kernel that vLLM takes for each kind of matrix with integer weights."""
    if not case.on_vllm or not integer_weights(case):
        return
    kernels = case.answer("kernels")
    if not kernels and not case.is_t4:
        why = f"vLLM's kernel on {case.accelerator.card} is not known"
        yield Finding("kernel", "warn", f"{why}, {case.source}: ask where vLLM is installed")
        return
    if not kernels:
        yield Finding("kernel", "ok", f"Marlin, {case.source}")
        return
    refused = {name: text for name, text in kernels.items() if text.startswith("refused")}
    for name, text in refused.items():
        reasons = " ".join(text.split())[:400]
        way = "another group size, tensor_parallel_size=1, or engine.kind=transformers"
        yield Finding("kernel", "refused", f"{name}: {reasons} ({case.source}): {way}")
    if not refused:
        names = {text.removesuffix("LinearKernel") for text in kernels.values()}
        yield Finding("kernel", "ok", f"{', '.join(sorted(names))} for {', '.join(kernels)}, {case.source}")


def integer_weights(case: Case) -> dict[str, Any] | None:
    """The first group of weights that a mixed-precision kernel multiplies; None for other formats."""
    packed = case.model.method in ("gptq", "awq") or case.model.quantisation.get("format") == "pack-quantized"
    return case.model.groups[0] if packed and case.model.groups else None


RULES = (
    judge_bfloat16,
    judge_half_on_cpu,
    judge_float16_family,
    judge_float32,
    judge_overflow,
    judge_head_size,
    judge_removed_formats,
    judge_mxfp4,
    judge_quantisation,
    judge_activations,
    judge_kernels,
)
