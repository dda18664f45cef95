"""One model on one runtime with one engine's settings: what the rules judge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from packaging.version import Version

from kaggle_llm.base.accelerators import Accelerator
from kaggle_llm.competition.competition import CompetitionSettings
from kaggle_llm.engines.attention import SM_75
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.vllm_engine import T4_SETTINGS
from kaggle_llm.runtime.facts import default_backend
from kaggle_llm.runtime.machine import GIB
from kaggle_llm.runtime.model_facts import ModelFacts
from kaggle_llm.runtime.pins import Runtime
from kaggle_llm.runtime.work import Work


@dataclass(frozen=True)
class Case:
    model: ModelFacts
    engine: EngineSettings
    runtime: Runtime
    work: Work = field(default_factory=Work)
    answers: Mapping[str, Any] = field(default_factory=dict)
    """What the installed vLLM answered (vllm_probe); {} where it was not asked."""
    hours: float = CompetitionSettings.hours
    """The competition's time limit."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of the notebook's process, as far as the files that ship set them."""
    taken: float = 0.0
    """Bytes of each card that the run's models before this one hold while it is loaded."""

    @property
    def on_vllm(self) -> bool:
        """Whether vLLM serves the model, as `make_engine` decides; auto takes vLLM where the runtime has it."""
        has_vllm = self.runtime.vllm is not None and self.accelerator.count > 0
        return (
            self.engine.kind == "vllm" or (self.engine.kind == "auto" and has_vllm)
        ) and self.model.is_served_by_vllm

    @property
    def accelerator(self) -> Accelerator:
        return self.runtime.machine

    @property
    def card_bytes(self) -> float | None:
        """Memory of one card; without a GPU the machine's."""
        gigabytes = self.accelerator.memory_gb if self.accelerator.count else self.accelerator.ram_gb
        return None if gigabytes is None else gigabytes * GIB

    @cached_property
    def version(self) -> Version:
        """The version of the runtime's vLLM; 0 without vLLM."""
        return Version(self.runtime.vllm.version if self.runtime.vllm else "0")

    @property
    def settings(self) -> dict[str, Any]:
        """`engine.vllm` of the config."""
        return dict(self.engine.vllm)

    @property
    def tensor_parallel(self) -> int:
        return int(self.settings.get("tensor_parallel_size", 1)) if self.on_vllm else 1

    @property
    def backend(self) -> str | None:
        """The attention backend that the config names, our engine on a T4, or vLLM's own choice.

        None without vLLM, and where vLLM could not be asked.
        """
        if not self.on_vllm:
            return None
        config = self.settings.get("attention_config") or {}
        named = self.settings.get("attention_backend") or (config.get("backend") if isinstance(config, dict) else None)
        default = T4_SETTINGS["attention_backend"] if self.is_t4 else self.default_backend
        return str(named or default).upper() if named or default else None

    @property
    def is_t4(self) -> bool:
        return self.accelerator.capability == SM_75

    @property
    def default_backend(self) -> str | None:
        """The attention backend that vLLM takes by itself; None where that is not known."""
        if self.is_t4:
            return default_backend(self.version)
        valid = (self.answer("attention") or {}).get("valid")
        return str(valid[0]) if valid else None

    @property
    def kv_cache_dtype(self) -> str:
        return str(self.settings.get("kv_cache_dtype", "auto"))

    @property
    def max_model_len(self) -> int:
        length = self.settings.get("max_model_len")
        return length if isinstance(length, int) and length > 0 else self.model.longest

    @property
    def processes(self) -> int:
        """How many processes load weights at the same time: the ranks of tensor parallel, or one a GPU."""
        return max(self.tensor_parallel, self.accelerator.count, 1)

    def answer(self, name: str) -> Any:
        """vLLM's answer to a question; None where it was not asked or could not answer."""
        answer = self.answers.get(name)
        return None if isinstance(answer, dict) and "error" in answer else answer

    @property
    def source(self) -> str:
        """Where an answer comes from: the installed vLLM (with a warning about another version), or the table here."""
        installed = self.answers.get("version")
        if not installed:
            return f"by the table of known facts, for vLLM {self.version}"
        if Version(installed).base_version == self.version.base_version:
            return f"vLLM {installed} says so"
        return f"vLLM {installed} says so, but the runtime has {self.version}: ask that one too"
