"""Pins of a runtime that exclude each other, or the engine. One function a rule."""

from __future__ import annotations

from collections.abc import Iterator

from packaging.specifiers import SpecifierSet
from packaging.version import Version

from kaggle_llm.runtime import facts
from kaggle_llm.runtime.case import Case
from kaggle_llm.runtime.findings import Finding
from kaggle_llm.runtime.pins import Runtime, knows_card

CUDA_13 = Version("13.0")
CUDA_13_FROM = Version("0.20")  # the first vLLM whose default build is of CUDA 13
CUDA_13_DRIVER = "580.65.06"


def judge_presence(case: Case) -> Iterator[Finding]:
    """The runtime has the engine that the config names: CV was computed with it."""
    is_encoder = case.model.is_sentence_encoder
    setting = "embedder" if is_encoder else "kind"
    chosen = case.engine.embedder if is_encoder else case.engine.kind
    if chosen != "vllm" or not (is_encoder or case.model.is_served_by_vllm):
        return
    if case.runtime.vllm is None:
        way = f"take another --runtime, or train with engine.{setting}=transformers"
        yield Finding("engine", "refused", f"engine.{setting} = vllm, and {case.runtime.name} has no vLLM: {way}")
    elif not case.accelerator.count:
        way = f"set engine.{setting}=transformers, or engine.accelerator to one with cards"
        why = f"engine.{setting} = vllm on a machine without a GPU; its wheel needs one"
        yield Finding("engine", "refused", f"{why}: {way}")


def judge_hours(case: Case) -> Iterator[Finding]:
    """The competition's limit beside the shortest that was seen with the accelerator."""
    seen = case.accelerator.hours
    if seen is not None and case.hours > seen:
        why = f"competition.hours = {case.hours:g}, and a competition with {case.accelerator.name} gave {seen:g}"
        yield Finding("hours", "warn", f"{why}: read its rules, the notebook is killed at their limit")


def judge_pins(runtime: Runtime) -> Iterator[Finding]:
    """Pins that exclude each other: transformers, torch and CUDA beside vLLM, and the card beside CUDA."""
    card = runtime.machine
    if not knows_card(runtime, card):
        why = f"{card.card} needs CUDA {card.cuda} or newer, {runtime.name} has {runtime.cuda}"
        yield Finding("cuda", "refused", f"{why}: take another --runtime")
    if runtime.vllm is None:
        return
    vllm, allowed = Version(runtime.vllm.version), SpecifierSet(runtime.vllm.transformers)
    if Version(runtime.transformers.version) not in allowed:
        why = f"transformers {runtime.transformers.version} is outside of what vLLM {vllm} takes ({allowed})"
        own = " (the image's own)" if runtime.transformers.version == runtime.image.transformers else ""
        yield Finding("transformers", "refused", f"{why}{own}: pin one inside, it goes into the wheelhouse")
    torch = facts.TORCH.get(str(vllm))
    if torch and Version(runtime.torch.version).base_version != torch:
        why = f"vLLM {vllm} is built for torch {torch}, pinned is {runtime.torch.version}"
        yield Finding("torch", "refused", f"{why}: pin torch {torch}")
    cuda, variant = Version(runtime.cuda), vllm.local or ""
    if vllm >= CUDA_13_FROM and cuda < CUDA_13 and not variant.startswith("cu12"):
        why = f"vLLM {vllm} looks for libcudart.so.13, and torch's CUDA is {cuda} (#43435)"
        yield Finding("cuda", "refused", f"{why}: bring the whole CUDA 13 stack, or vLLM 0.19.1, or its +cu129 build")
    if cuda >= CUDA_13 and Version(runtime.driver.version) < Version(CUDA_13_DRIVER):
        why = f"CUDA {cuda} asks for driver {CUDA_13_DRIVER}, the runtime's lowest is {runtime.driver.version}"
        yield Finding("driver", "refused", f"{why}: set driver.version to it, so that the first cell checks it")


RULES = (judge_presence, judge_hours)
