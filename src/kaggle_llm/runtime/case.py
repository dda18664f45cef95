"""One model on one runtime under one engine: what the rules look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from packaging.version import Version

from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.vllm_engine import TURING
from kaggle_llm.runtime.model_facts import Model
from kaggle_llm.runtime.pins import Runtime
from kaggle_llm.runtime.work import Work


@dataclass(frozen=True)
class Case:
    model: Model
    engine: EngineSettings
    runtime: Runtime
    work: Work = field(default_factory=Work)
    answers: Mapping[str, Any] = field(default_factory=dict)
    """What the installed vLLM said (vllm_probe); {} where it was not asked."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the notebook's process will have, as far as files tell."""

    @property
    def on_vllm(self) -> bool:
        """Whether vLLM serves the model, as `make_engine` decides; auto takes the vLLM of the runtime."""
        wanted = self.engine.kind == "vllm" or (self.engine.kind == "auto" and self.runtime.vllm is not None)
        return wanted and self.model.is_language_model

    @cached_property
    def version(self) -> Version:
        """The runtime's vLLM; 0 without one."""
        return Version(self.runtime.vllm.version if self.runtime.vllm else "0")

    @property
    def given(self) -> dict[str, Any]:
        return dict(self.engine.vllm)

    @property
    def tensor_parallel(self) -> int:
        return int(self.given.get("tensor_parallel_size", 1)) if self.on_vllm else 1

    @property
    def backend(self) -> str | None:
        """The attention backend that is named, by the config or by our engine for a T4."""
        config = self.given.get("attention_config") or {}
        named = self.given.get("attention_backend") or (config.get("backend") if isinstance(config, dict) else None)
        return str(named or TURING["attention_backend"]).upper() if self.on_vllm else None

    @property
    def kv_cache_dtype(self) -> str:
        return str(self.given.get("kv_cache_dtype", "auto"))

    @property
    def max_model_len(self) -> int:
        given = self.given.get("max_model_len")
        return int(given) if isinstance(given, int) and given > 0 else self.model.longest

    @property
    def processes(self) -> int:
        """That load weights at the same time: the ranks of tensor parallel, or one a GPU."""
        return max(self.tensor_parallel, self.runtime.machine.gpus.count)

    def answer(self, name: str) -> Any:
        """What vLLM said to a question; None where it was not asked or had no answer."""
        found = self.answers.get(name)
        return None if isinstance(found, dict) and "error" in found else found

    @property
    def source(self) -> str:
        """Who says so: the installed vLLM, with a warning where it is another than the runtime's, or the table here."""
        installed = self.answers.get("version")
        if not installed:
            return f"by the table of known facts, for vLLM {self.version}"
        if Version(installed).base_version == self.version.base_version:
            return f"vLLM {installed} says so"
        return f"vLLM {installed} says so, but the runtime has {self.version}: ask that one too"
