"""The engine on vLLM: exact choice scoring and generation, each model in processes of its own.

vLLM spawns them: the program that uses this engine needs an `if __name__ == "__main__"` guard.
"""

from __future__ import annotations

import dataclasses
import difflib
import gc
import os
import typing
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kaggle_llm.base import records
from kaggle_llm.engines.attention import SM_75, capability
from kaggle_llm.engines.engine import (
    Completion,
    EngineSettings,
    Sampling,
    check_base,
    check_finite,
    check_lengths,
)
from kaggle_llm.engines.generation import keep_structure
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.quantised import weight_bits
from kaggle_llm.engines.scoring import score_labels

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest

ENVIRONMENT = {  # read when vLLM is imported, here and in its processes
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_INT4_W4A8": "0",  # else a CPU with AMX rounds the inputs of 4-bit weights to 8 bits: another model
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would inherit torch's threads, or a started CUDA
}
# Before 0.24 vLLM chooses FlashInfer on a T4, which needs a compiler or crashes. On Kaggle the two cards
# reach each other through the host only: vLLM's own all-reduce is of no use, and NCCL may hang looking for a link.
TURING: dict[str, Any] = {"attention_backend": "TRITON_ATTN", "disable_custom_all_reduce": True}
TURING_ENVIRONMENT = {"NCCL_P2P_DISABLE": "1"}
CPU: dict[str, Any] = {"kv_cache_memory_bytes": 2**30}  # without a number vLLM takes most of the machine's memory
ONLY_GENERATES = "{} is served by vLLM, which only generates here: set engine.kind=transformers"
CLOSING = 30.0  # seconds; with vLLM's own 5 its core is killed while it still waits for its workers, which live on


class VllmEngine:
    """One causal LM; with `base`, the LoRA adapter in `folder` on the model there, at run time.

    vLLM starts when it is first asked for. Raises ValueError for a setting of engine.vllm that it does not know, and
    for an adapter without its base.
    """

    def __init__(self, folder: Path, settings: EngineSettings, base: Path | None = None) -> None:
        prepare_environment()
        check_base(folder, base)
        check_settings(settings.vllm)
        check_dtype(base or folder, settings.dtype)
        self.folder, self.settings, self.base = folder, settings, base

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        """[n, k] log-probabilities of k labels behind each prompt, over the full vocabulary.

        They are the model's own, before temperature, penalties and masks. A label of several tokens is scored by all
        of them. Raises ValueError for empty labels, empty or too long prompts, and non-finite scores.
        """
        longest = self._longest - max(map(len, labels), default=1) + 1
        check_lengths(prompts, longest, self.folder)
        scores = score_labels(prompts, labels, self._score_tokens)
        check_finite(scores, self.folder)
        return scores

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, special tokens left out of the text.

        The penalties of the model's generation_config.json hold, as they do in transformers. Every prompt has the
        seed to itself, so its samples do not depend on what is asked beside it. A regex that vLLM does not know is an
        error of vLLM's own.
        """
        from vllm import SamplingParams

        usual = self._llm.get_default_sampling_params()
        greedy = sampling.temperature == 0
        how = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            n=1 if greedy else sampling.n,
            seed=sampling.seed,  # vLLM adds a sample's place to it
            stop=list(sampling.stop),
            repetition_penalty=usual.repetition_penalty,
            min_p=usual.min_p,
            **structure_of(sampling),
        )
        found = [
            [
                Completion(keep_structure(one.text, one.finish_reason == "stop", sampling), list(one.token_ids))
                for one in output.outputs
            ]
            for output in self._ask(prompts, how)
        ]
        return [one * sampling.n for one in found] if greedy else found

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """Refused: encoders are served by transformers."""
        raise NotImplementedError(ONLY_GENERATES.format(self.folder))

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """Refused: heads are served by transformers."""
        raise NotImplementedError(ONLY_GENERATES.format(self.folder))

    def close(self) -> None:
        """End vLLM's processes, and with them give their memory back."""
        llm = self.__dict__.pop("_llm", None)
        if llm is not None:
            llm.llm_engine.engine_core.shutdown(timeout=CLOSING)  # LLM itself has no call for it
            del llm
            gc.collect()

    def _score_tokens(self, prompts: Sequence[Prompt], ids: Sequence[int]) -> np.ndarray:
        """[n, ids] log-probabilities of tokens behind each prompt."""
        ask = self._token_logprobs if has_token_logprobs() else self._token_logprobs_by_two
        return np.array(ask(prompts, ids), dtype=np.float64).reshape(len(prompts), len(ids))

    def _token_logprobs(self, prompts: Sequence[Prompt], ids: Sequence[int]) -> list[list[float]]:
        """The same ids go with every request: within a batch vLLM may give all requests what one of them asked for."""
        answers = self._ask(prompts, next_token(logprob_token_ids=list(ids)))
        return [[logprobs[token] for token in ids] for logprobs in map(read_logprobs, answers)]

    def _token_logprobs_by_two(self, prompts: Sequence[Prompt], ids: Sequence[int]) -> list[list[float]]:
        """The same from a vLLM that only names the best tokens (before 0.20), by asking twice.

        First the best token t and its log p(t). Then log q of the labels and t, where nothing else is allowed: q is p
        but for a factor that they share, so log p(label) = log p(t) + log q(label) − log q(t).
        """
        best = [
            max(read_logprobs(one).items(), key=lambda item: item[1])
            for one in self._ask(prompts, next_token(logprobs=1))
        ]
        allowed = [sorted({*ids, token}) for token, _ in best]
        asked = [next_token(allowed_token_ids=these, logprobs=len(these)) for these in allowed]
        found = []
        for (token, logprob), answer in zip(best, self._ask(prompts, asked), strict=True):
            relative = read_logprobs(answer)
            found.append([logprob + relative[label] - relative[token] for label in ids])
        return found

    @property
    def _longest(self) -> int:
        """Tokens that a prompt may have: one place is for the answer."""
        longest: int = self._llm.model_config.max_model_len - 1
        return longest

    @cached_property
    def _llm(self) -> LLM:
        from vllm import LLM

        return LLM(**self._arguments())

    def _arguments(self) -> dict[str, Any]:
        """What vLLM is started with: ours, over engine.vllm, over what the machine asks for."""
        ours: dict[str, Any] = {"model": str(self.base or self.folder), "dtype": self.settings.dtype}
        if has_token_logprobs():
            ours |= {"logprobs_mode": "raw_logprobs"}
        else:
            ours |= {"logprobs_mode": "processed_logprobs", "max_logprobs": -1}
        lora = {} if self.base is None else {"enable_lora": True, "max_lora_rank": lora_rank(self.folder)}
        given = self.settings.vllm
        taken = sorted(given.keys() & ours.keys())
        if taken:
            raise ValueError(f"engine.vllm has {taken}: the engine sets {', '.join(ours)} itself")
        return {"use_tqdm_on_load": False} | machine_settings(given) | lora | given | ours

    def _ask(
        self, prompts: Sequence[Prompt], sampling: SamplingParams | Sequence[SamplingParams]
    ) -> list[RequestOutput]:
        """vLLM's answers in the order of `prompts`; it is given them sorted, so that its prefix cache hits.

        sampling: for all prompts, or one for each.
        """
        check_lengths(prompts, self._longest, self.folder)
        order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
        asked: list[Any] = [{"prompt_token_ids": list(prompts[i])} for i in order]
        how = [sampling[i] for i in order] if isinstance(sampling, Sequence) else sampling
        answers = self._llm.generate(asked, how, use_tqdm=False, lora_request=self._adapter())
        by_index = dict(zip(order, answers, strict=True))
        return [by_index[i] for i in range(len(prompts))]

    def _adapter(self) -> LoRARequest | None:
        if self.base is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest(self.folder.name, 1, str(self.folder))


def prepare_environment() -> None:
    """No network, no usage statistics, no log of hundreds of lines: before vLLM is imported, for its processes too."""
    os.environ |= ENVIRONMENT
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if capability() == SM_75:
        os.environ |= TURING_ENVIRONMENT


def check_dtype(model: Path, dtype: str) -> None:
    """Raises ValueError where vLLM would start and then fail: its kernels for 4-bit weights take no float32."""
    if dtype == "float32" and 4 in weight_bits(model):
        raise ValueError(
            f"engine.dtype = float32, but {model} has 4-bit weights, which vLLM computes in half precision: "
            f"set engine.dtype=float16 on a GPU, bfloat16 on a CPU"
        )


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for names that the installed vLLM does not know, each with the nearest one that it knows."""
    if not settings:
        return
    prepare_environment()
    from vllm import __version__
    from vllm.engine.arg_utils import EngineArgs

    known = [field.name for field in dataclasses.fields(EngineArgs)]
    unknown = [
        f"engine.vllm.{name}: did you mean {difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)[0]!r}?"
        for name in settings
        if name not in known
    ]
    if unknown:
        raise ValueError(f"vLLM {__version__} does not know {' '.join(unknown)}")


def machine_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the machine asks for where `given` (engine.vllm) says nothing of it."""
    found = capability()
    if found is None:
        return {} if "gpu_memory_utilization" in given else CPU
    return TURING if found == SM_75 else {}


def has_token_logprobs() -> bool:
    """Whether the installed vLLM can be asked for the log-probabilities of given tokens."""
    from vllm import SamplingParams

    return "logprob_token_ids" in SamplingParams.__struct_fields__


def next_token(**wanted: Any) -> SamplingParams:
    """Ask for the most probable next token alone, and what else is wanted."""
    from vllm import SamplingParams

    return SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, **wanted)


def structure_of(sampling: Sampling) -> dict[str, Any]:
    """The arguments of SamplingParams that ask for options or a regex."""
    if not (sampling.options or sampling.regex):
        return {}
    from vllm.sampling_params import StructuredOutputsParams

    wanted = {"choice": list(sampling.options)} if sampling.options else {"regex": sampling.regex}
    return {"structured_outputs": StructuredOutputsParams(**wanted)}


def read_logprobs(answer: RequestOutput) -> dict[int, float]:
    """Token → log-probability at the first place that was generated."""
    places: Any = answer.outputs[0].logprobs
    (place,) = places
    return {token: found.logprob for token, found in place.items()}


def lora_rank(adapter: Path) -> int:
    """The smallest max_lora_rank that vLLM allows and the adapter fits into; its buffers are that large."""
    from vllm.config.lora import MaxLoRARanks

    config = records.read_json(adapter / records.ADAPTER)
    rank = max(config["r"], *config.get("rank_pattern", {}).values(), 0)
    fitting = [allowed for allowed in typing.get_args(MaxLoRARanks) if allowed >= rank]
    if not fitting:
        raise ValueError(f"{adapter} has rank {rank}, vLLM serves up to {max(typing.get_args(MaxLoRARanks))}: merge it")
    return min(fitting)
