"""The engine on vLLM: exact choice scoring, generation, sentence vectors, and the heads of causal models.

vLLM spawns processes: a program that uses this engine needs an `if __name__ == "__main__"` guard.
"""

from __future__ import annotations

import dataclasses
import difflib
import gc
import math
import os
import typing
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kaggle_llm.base import records
from kaggle_llm.base.device import measure_free_share
from kaggle_llm.engines.attention import SM_75, capability
from kaggle_llm.engines.engine import (
    Completion,
    EngineSettings,
    Sampling,
    check_adapter_base,
    check_prompt_lengths,
    check_scores_finite,
    resolve_dtype,
)
from kaggle_llm.engines.generation import keep_structure
from kaggle_llm.engines.linear_head import find_head_kind, is_sentence_encoder
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.quantised import weight_bits
from kaggle_llm.engines.scoring import score_labels
from kaggle_llm.engines.tied import has_own_head
from kaggle_llm.engines.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput, SamplingParams
    from vllm.lora.request import LoRARequest

VLLM_VARIABLES = {  # environment; read when vLLM is imported, here and in its processes
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_CPU_INT4_W4A8": "0",  # else a CPU with AMX rounds the inputs of 4-bit weights to 8 bits
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # a fork would inherit torch's threads and CUDA
}
# vLLM 0.19 chooses FlashInfer on a T4, which needs a compiler or crashes. Kaggle's two T4s have no direct link: vLLM's
# own all-reduce does not work, and NCCL may hang looking for one.
T4_SETTINGS: dict[str, Any] = {"attention_backend": "TRITON_ATTN", "disable_custom_all_reduce": True}
T4_VARIABLES = {"NCCL_P2P_DISABLE": "1"}
CPU_SETTINGS: dict[str, Any] = {"kv_cache_memory_bytes": 2**30}  # by default vLLM takes most of the memory
POOLING_TASKS: dict[str, Literal["classify", "token_classify"]] = {  # head → vLLM's word
    "sequence": "classify",
    "token": "token_classify",
}
WAY_OUT = "engine.kind=transformers"
SHUTDOWN_TIMEOUT = 30.0  # seconds; after vLLM's own 5 its core is killed and leaves its workers running


class VllmEngine:
    """The causal model in `folder`, or the LoRA adapter there on the model in `base`; vLLM starts at the first call.

    A model with a head answers logits() only, by vLLM's pooling runner; its head computes in float32. A sentence
    encoder answers embed() only, by the same. Raises ValueError for an unknown setting in engine.vllm, and for an
    adapter without its base.
    """

    def __init__(self, folder: Path, settings: EngineSettings, base: Path | None = None) -> None:
        prepare_environment()
        settings = resolve_dtype(settings)
        check_adapter_base(folder, base)
        check_vllm_settings(settings.vllm)
        check_vllm_dtype(base or folder, settings.dtype)
        check_vllm_head(base or folder)
        self.folder, self.settings, self.base = folder, settings, base
        self.head = find_head_kind(folder) if base is None else None
        self.embeds = base is None and is_sentence_encoder(folder)

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        """[n, k] log-probabilities of k labels after each prompt, over the full vocabulary.

        Before temperature, penalties and masks. A label of several tokens is scored by all of them. Raises ValueError
        for empty labels, empty or too long prompts, and non-finite scores.
        """
        longest = self._longest - max(map(len, labels), default=1) + 1
        check_prompt_lengths(prompts, longest, self.folder)
        scores = score_labels(prompts, labels, self._score_tokens)
        check_scores_finite(scores, self.folder)
        return scores

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, without special tokens in the text.

        A text ends at the tokenizer's end-of-text token, which training teaches, and at those of the model's
        generation_config.json; its penalties do not apply, as in transformers_engine.py. Samples do not depend on the
        rest of the batch: each prompt has its own seed. For an unsupported regex vLLM raises its own error.
        """
        from vllm import SamplingParams

        end = load_tokenizer(self.folder).eos_token_id  # an adapter's folder may teach another end than its base
        greedy = sampling.temperature == 0
        parameters = SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            n=1 if greedy else sampling.n,
            seed=sampling.seed,  # vLLM adds the sample's index
            stop=list(sampling.stop),
            stop_token_ids=[] if end is None else [end],  # vLLM adds the base's and the model's own
            **structure_of(sampling),
        )
        completions = [
            [
                Completion(keep_structure(text.text, text.finish_reason == "stop", sampling), list(text.token_ids))
                for text in output.outputs
            ]
            for output in self._ask(prompts, parameters)
        ]
        return [texts * sampling.n for texts in completions] if greedy else completions

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """[n, d] vectors of unit length, pooled as the folder's modules.json says.

        Raises NotImplementedError for a model that is no sentence encoder, and ValueError for non-finite vectors.
        """
        if not self.embeds:
            raise NotImplementedError(f"{self.folder} is served by vLLM and is no sentence encoder: set {WAY_OUT}")
        if not prompts:  # vLLM takes no empty list
            return np.empty((0, self._llm.model_config.get_hidden_size()), dtype=np.float32)
        check_prompt_lengths(prompts, self._llm.model_config.max_model_len, self.folder)
        order, requests = sort_requests(prompts)
        outputs = self._llm.embed(requests, use_tqdm=False)
        vectors = np.empty((len(prompts), len(outputs[0].outputs.embedding)), dtype=np.float32)
        vectors[order] = [output.outputs.embedding for output in outputs]
        check_scores_finite(vectors, self.folder)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """A head's logits: [labels] of a sequence head, [tokens, labels] of a token head.

        Raises NotImplementedError for a model without a head, and ValueError for non-finite logits.
        """
        if self.head is None:
            raise NotImplementedError(f"{self.folder} is served by vLLM and has no head of its own: set {WAY_OUT}")
        if not prompts:  # vLLM takes no empty list
            return []
        from vllm import PoolingParams

        check_prompt_lengths(prompts, self._llm.model_config.max_model_len, self.folder)
        order, requests = sort_requests(prompts)
        task = POOLING_TASKS[self.head]
        outputs = self._llm.encode(requests, PoolingParams(use_activation=False), pooling_task=task, use_tqdm=False)
        by_index = {i: output.outputs.data.float().numpy() for i, output in zip(order, outputs, strict=True)}
        rows = [by_index[i] for i in range(len(prompts))]
        for row in rows:
            check_scores_finite(row, self.folder)
        return rows

    def close(self) -> None:
        """End vLLM's processes."""
        llm = self.__dict__.pop("_llm", None)
        if llm is not None:
            llm.llm_engine.engine_core.shutdown(timeout=SHUTDOWN_TIMEOUT)  # LLM itself has no method for it
            del llm
            gc.collect()

    def _score_tokens(self, prompts: Sequence[Prompt], ids: Sequence[int]) -> np.ndarray:
        """[n, ids] log-probabilities of tokens after each prompt."""
        score = self._token_logprobs if has_token_logprobs() else self._token_logprobs_in_two_steps
        return np.array(score(prompts, ids), dtype=np.float64).reshape(len(prompts), len(ids))

    def _token_logprobs(self, prompts: Sequence[Prompt], ids: Sequence[int]) -> list[list[float]]:
        # All requests have the same ids: within a batch vLLM may return to all what one of them asked for.
        outputs = self._ask(prompts, next_token(logprob_token_ids=list(ids)))
        return [[logprobs[token] for token in ids] for logprobs in map(read_logprobs, outputs)]

    def _token_logprobs_in_two_steps(self, prompts: Sequence[Prompt], ids: Sequence[int]) -> list[list[float]]:
        """The same with vLLM 0.19, which returns log-probabilities of the best tokens only.

        First the best token t and log p(t). Then log q of the labels and t with no other token allowed: q is p times a
        constant, so log p(label) = log p(t) + log q(label) − log q(t).
        """
        best = [
            max(read_logprobs(output).items(), key=lambda item: item[1])
            for output in self._ask(prompts, next_token(logprobs=1))
        ]
        allowed = [sorted({*ids, token}) for token, _ in best]
        parameters = [next_token(allowed_token_ids=tokens, logprobs=len(tokens)) for tokens in allowed]
        scores = []
        for (token, logprob), output in zip(best, self._ask(prompts, parameters), strict=True):
            relative = read_logprobs(output)
            scores.append([logprob + relative[label] - relative[token] for label in ids])
        return scores

    @property
    def _longest(self) -> int:
        """Maximum tokens of a prompt: one position is for the answer."""
        longest: int = self._llm.model_config.max_model_len - 1
        return longest

    @cached_property
    def _llm(self) -> LLM:
        from vllm import LLM

        return LLM(**self._arguments())

    def _arguments(self) -> dict[str, Any]:
        """Arguments of LLM: the engine's own, over engine.vllm, over the machine's defaults."""
        own: dict[str, Any] = {"model": str(self.base or self.folder), "dtype": self.settings.dtype}
        if self.head or self.embeds:
            own |= {"runner": "pooling"}
        elif has_token_logprobs():
            own |= {"logprobs_mode": "raw_logprobs"}
        else:
            own |= {"logprobs_mode": "processed_logprobs", "max_logprobs": -1}
        lora = {} if self.base is None else {"enable_lora": True, "max_lora_rank": lora_rank(self.folder)}
        settings = self.settings.vllm
        reserved = sorted(settings.keys() & own.keys())
        if reserved:
            raise ValueError(f"engine.vllm has {reserved}: the engine sets {', '.join(own)} itself")
        return {"use_tqdm_on_load": False} | machine_settings(settings) | share_memory(settings) | lora | settings | own

    def _ask(
        self, prompts: Sequence[Prompt], parameters: SamplingParams | Sequence[SamplingParams]
    ) -> list[RequestOutput]:
        """vLLM's outputs in the order of `prompts`, which it gets sorted, for its prefix cache.

        parameters: for all prompts, or one for each.
        """
        check_prompt_lengths(prompts, self._longest, self.folder)
        order, requests = sort_requests(prompts)
        ordered = [parameters[i] for i in order] if isinstance(parameters, Sequence) else parameters
        outputs = self._llm.generate(requests, ordered, use_tqdm=False, lora_request=self._adapter())
        by_index = dict(zip(order, outputs, strict=True))
        return [by_index[i] for i in range(len(prompts))]

    def _adapter(self) -> LoRARequest | None:
        if self.base is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest(self.folder.name, 1, str(self.folder))


def sort_requests(prompts: Sequence[Prompt]) -> tuple[list[int], list[Any]]:
    """The prompts as vLLM's requests, sorted for its prefix cache, and the index of each."""
    order = sorted(range(len(prompts)), key=lambda i: tuple(prompts[i]))
    return order, [{"prompt_token_ids": list(prompts[i])} for i in order]


def prepare_environment() -> None:
    """Set vLLM's environment variables: no network, no statistics, few log lines. Call before vLLM is imported."""
    os.environ |= VLLM_VARIABLES
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if capability() == SM_75:
        os.environ |= T4_VARIABLES


def check_vllm_dtype(model: Path, dtype: str) -> None:
    """Raises ValueError for float32 with 4-bit weights: vLLM's kernels do not take it and fail after the start."""
    if dtype == "float32" and 4 in weight_bits(model):
        raise ValueError(
            f"engine.dtype = float32, but {model} has 4-bit weights, which vLLM computes in half precision: "
            f"set engine.dtype=float16 on a GPU, bfloat16 on a CPU"
        )


def check_vllm_head(model: Path) -> None:
    """Raises ValueError for a head of its own that the config ties: vLLM would drop it, transformers reads it."""
    if has_own_head(model):
        raise ValueError(
            f"{model} holds an lm_head of its own, but its config.json ties it to the embeddings, and vLLM would drop "
            f"it: set tie_word_embeddings to false there"
        )


def check_vllm_settings(settings: Mapping[str, Any]) -> None:
    """Raises ValueError for settings that the installed vLLM does not know, each with the most similar known one."""
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


def machine_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Default arguments of vLLM on this machine. settings: engine.vllm."""
    gpu = capability()
    if gpu is None:
        return {} if "gpu_memory_utilization" in settings else CPU_SETTINGS
    return T4_SETTINGS if gpu == SM_75 else {}


def share_memory(settings: Mapping[str, Any]) -> dict[str, float]:
    """A smaller gpu_memory_utilization where other processes, such as an encoder's worker, hold a part of the card.

    vLLM wants its share of the whole card, by default nine tenths, and does not start where less is free. Call it in
    the process that starts vLLM, when it starts. Raises MemoryError where nothing is free.
    """
    free = None if "gpu_memory_utilization" in settings else measure_free_share()
    if free is None:
        return {}
    from vllm.engine.arg_utils import EngineArgs

    usual = float(EngineArgs.gpu_memory_utilization)
    if free >= usual:
        return {}
    if free <= 0:
        raise MemoryError(
            "no memory of the card is free for vLLM: close what holds it (nvidia-smi names the processes), or set "
            "engine.batch_tokens lower, so that the run's encoders hold less"
        )
    print(f"{free:.0%} of the card is free: vLLM takes that instead of {usual:.0%}", flush=True)
    return {"gpu_memory_utilization": math.floor(100 * free) / 100}


def has_token_logprobs() -> bool:
    """Whether the installed vLLM returns the log-probabilities of chosen tokens (0.32, not 0.19)."""
    from vllm import SamplingParams

    return "logprob_token_ids" in SamplingParams.__struct_fields__


def next_token(**parameters: Any) -> SamplingParams:
    """Parameters that generate the most probable next token only."""
    from vllm import SamplingParams

    return SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, **parameters)


def structure_of(sampling: Sampling) -> dict[str, Any]:
    """The arguments of SamplingParams for options or a regex."""
    if not (sampling.options or sampling.regex):
        return {}
    from vllm.sampling_params import StructuredOutputsParams

    structure = {"choice": list(sampling.options)} if sampling.options else {"regex": sampling.regex}
    return {"structured_outputs": StructuredOutputsParams(**structure)}


def read_logprobs(output: RequestOutput) -> dict[int, float]:
    """Token → log-probability at the only generated position."""
    positions: Any = output.outputs[0].logprobs
    (position,) = positions
    return {token: logprob.logprob for token, logprob in position.items()}


def lora_rank(adapter: Path) -> int:
    """The smallest max_lora_rank of vLLM that fits the adapter; vLLM's buffers have that size."""
    from vllm.config.lora import MaxLoRARanks

    config = records.read_json(adapter / records.ADAPTER)
    rank = max(config["r"], *config.get("rank_pattern", {}).values(), 0)
    fitting = [allowed for allowed in typing.get_args(MaxLoRARanks) if allowed >= rank]
    if not fitting:
        raise ValueError(f"{adapter} has rank {rank}, vLLM serves up to {max(typing.get_args(MaxLoRARanks))}: merge it")
    return min(fitting)
