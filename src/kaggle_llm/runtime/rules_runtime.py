"""What a runtime's pins refuse among themselves, and beside an engine. One rule a function."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from kaggle_llm.runtime import facts
from kaggle_llm.runtime.case import Case
from kaggle_llm.runtime.findings import Finding
from kaggle_llm.runtime.pins import Runtime

CUDA_13 = Version("13.0")
CUDA_13_DRIVER = "580.65.06"


def judge_presence(case: Case) -> Iterator[Finding]:
    """The engine that the config names has to be in the runtime: CV was computed with it."""
    if case.engine.kind == "vllm" and case.runtime.vllm is None and case.model.is_language_model:
        way = "take another --runtime, or train with engine.kind=transformers"
        yield Finding("engine", "refused", f"engine.kind = vllm, and {case.runtime.name} has no vLLM: {way}")


def judge_version(case: Case) -> Iterator[Finding]:
    """Versions of vLLM that fail on a T4 whatever the settings."""
    if case.runtime.vllm is None or not case.on_vllm:
        return
    version, named = case.version, "attention_backend" in case.given or "attention_config" in case.given
    if Version("0.9") <= version < Version("0.10"):
        why = "the Triton of vLLM 0.9 crashes on a T4 (f16 to f16, #17639)"
        yield Finding("version", "refused", f"{why}: pin 0.19.1 or 0.24 and newer")
    elif Version("0.22") <= version < Version("0.24") and case.backend != "TRITON_ATTN":
        why = f"vLLM {version} runs on a T4 with TRITON_ATTN only (#44379)"
        yield Finding(
            "version", "refused", f"{why}: {'name that' if named else 'set engine.vllm.attention_backend to it'}"
        )


def judge_pins(runtime: Runtime) -> Iterator[Finding]:
    """Pins that exclude each other: transformers, torch and CUDA beside vLLM."""
    if runtime.vllm is None:
        return
    vllm, allowed = Version(runtime.vllm.version), SpecifierSet(runtime.vllm.transformers)
    if Version(runtime.transformers.version) not in allowed:
        why = f"transformers {runtime.transformers.version} is outside of what vLLM {vllm} takes ({allowed})"
        own = " (the image's own)" if runtime.transformers.version == runtime.image.transformers else ""
        yield Finding("transformers", "refused", f"{why}{own}: pin one inside, it goes into the wheelhouse")
    wanted = facts.TORCH.get(str(vllm))
    if wanted and Version(runtime.torch.version).base_version != wanted:
        why = f"vLLM {vllm} is built for torch {wanted}, pinned is {runtime.torch.version}"
        yield Finding("torch", "refused", f"{why}: pin torch {wanted}")
    cuda, variant = Version(runtime.cuda), vllm.local or ""
    if vllm >= Version("0.20") and cuda < CUDA_13 and not variant.startswith("cu12"):
        why = f"vLLM {vllm} looks for libcudart.so.13, and torch's CUDA is {cuda} (#43435)"
        yield Finding("cuda", "refused", f"{why}: bring the whole CUDA 13 stack, or vLLM 0.19.1, or its +cu129 build")
    if cuda >= CUDA_13 and Version(runtime.machine.driver) < Version(CUDA_13_DRIVER):
        why = f"CUDA {cuda} asks for driver {CUDA_13_DRIVER}, the runtime's lowest is {runtime.machine.driver}"
        yield Finding("driver", "refused", f"{why}: name that one, so that the first cell checks it")


RULES = (judge_presence, judge_version)
