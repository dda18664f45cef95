"""The engine on transformers: exact, runs on any machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from kaggle_llm.base import records
from kaggle_llm.base.device import choose_placement, is_out_of_memory, keep_heap, release_device
from kaggle_llm.engines.attention import avoid_slow_kernel, keep_caps, prepare_device
from kaggle_llm.engines.engine import (
    Completion,
    EngineSettings,
    Sampling,
    check_adapter_base,
    check_prompt_lengths,
    check_scores_finite,
    resolve_dtype,
)
from kaggle_llm.engines.fixed_shapes import plan_fixed_batches
from kaggle_llm.engines.generation import Generator, pad_rows
from kaggle_llm.engines.memory import AnswerT, ask_within_memory
from kaggle_llm.engines.onednn import use_onednn
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.quantised import adaptable
from kaggle_llm.engines.scoring import read_tokens, score_labels, score_shared
from kaggle_llm.engines.spared import spare_sklearn
from kaggle_llm.engines.tokenizer import choose_pad, load_tokenizer
from kaggle_llm.engines.trial import can_share

if TYPE_CHECKING:
    import torch


class TransformersEngine:
    """The model in `folder`, or the adapter there on the model in `base`; loaded at the first call.

    device: cpu for the CPU where there is a GPU too. Raises ValueError for an adapter without its base, and for
    bfloat16 on a GPU without it.
    """

    def __init__(self, folder: Path, settings: EngineSettings, base: Path | None = None, device: str = "") -> None:
        import torch

        settings = resolve_dtype(settings)
        self.folder, self.settings, self.base = folder, settings, base
        check_adapter_base(folder, base)
        prepare_device()
        avoid_slow_kernel()
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if self.device.type == "cpu":
            keep_heap()
        self._fills = self.device.type == "cuda"  # a CPU's kernels do not ask how many rows a batch has
        self.dtype: torch.dtype = getattr(torch, settings.dtype)
        if self.dtype is torch.bfloat16 and self.device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
            name = torch.cuda.get_device_name()
            raise ValueError(f"engine.dtype = bfloat16, but {name} does not support it: set engine.dtype=float16")

    # calls of Engine ------------------------------------------------------------------------------------------

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        """[n, k] log-probabilities of k labels after each prompt, over the full vocabulary.

        Shared prefixes are computed once. A label of several tokens is scored by all of them. Raises ValueError for
        empty labels, empty or too long prompts, and non-finite scores.
        """
        self._check_lengths(prompts, max(map(len, labels), default=1) - 1)
        rows = self._ask(lambda part: list(score_labels(part, labels, self._score_tokens)), prompts)
        scores = np.stack(rows) if rows else np.empty((0, len(labels)))
        check_scores_finite(scores, self.folder)
        return scores

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt, without special tokens in the text.

        Raises ValueError for prompts that are empty or leave no room for a token, and for an unsupported regex.
        """
        self._check_lengths(prompts, 1)
        return self._ask(lambda part: self._generator.generate(part, sampling), prompts)

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """[n, d] sentence vectors of unit length, pooled by the model's own sentence-transformers modules.

        A prompt's vector is the same alone and among others (see fixed_shapes.py), unless the GPU's memory ran out.
        """
        rows = self._ask(self._embed, prompts)
        if not rows:
            return np.empty((0, self._sentence.get_embedding_dimension()), dtype=np.float32)
        check_scores_finite(vectors := np.stack(rows), self.folder)
        return vectors

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """A head's logits: [labels] of a sequence head, [tokens, labels] of a token head."""
        rows = self._ask(self._read_head, prompts)
        for row in rows:
            check_scores_finite(row, self.folder)
        return rows

    def module(self, method: str) -> Any:
        """The torch module behind a method: choices, generate, embed or logits."""
        if method in ("embed", "logits"):
            return self._sentence if method == "embed" else self._head
        self._shares(0)  # tries the model out now: hooks on the module will see real prompts only
        return self._causal

    def close(self) -> None:
        """Free the memory."""
        for name in ("_generator", "_causal", "_sentence", "_head", "_can_share"):
            self.__dict__.pop(name, None)
        release_device()

    # models -------------------------------------------------------------------------------------------------

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.folder)

    @property
    def _pad(self) -> int:
        """A padding id; masked, so any id does where the tokenizer has none."""
        return self._tokenizer.pad_token_id or 0

    @cached_property
    def _causal(self) -> Any:
        spare_sklearn()
        from transformers import AutoModelForCausalLM

        return self._load(AutoModelForCausalLM)

    @cached_property
    def _generator(self) -> Generator:
        return Generator(self._causal, self._tokenizer, self.settings.tokens)

    @cached_property
    def _sentence(self) -> Any:
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(
            str(self.folder),
            device=str(self.device),
            model_kwargs={"dtype": self.dtype},
            local_files_only=True,
        )
        return use_onednn(model.eval())

    @cached_property
    def _head(self) -> Any:
        spare_sklearn()
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoModelForTokenClassification

        config = AutoConfig.from_pretrained(self.folder)
        if self.base is None:
            (architecture, *_) = config.architectures or [""]
            size = {}
        else:  # the adapter's config.json describes the trained head
            architecture = records.read_json(self.folder / records.ADAPTER)["task_type"]
            size = {name: getattr(config, name) for name in ("id2label", "label2id", "problem_type")}
        if architecture.endswith("ForTokenClassification") or architecture == "TOKEN_CLS":
            return self._load(AutoModelForTokenClassification, **size)
        if architecture.endswith("ForSequenceClassification") or architecture == "SEQ_CLS":
            return self._load(AutoModelForSequenceClassification, **size)
        raise ValueError(
            f"model {self.folder} is a {architecture or 'model without architectures'}: logits() needs a head"
        )

    def _load(self, maker: Any, **options: Any) -> Any:
        placement = choose_placement() if self.device.type == "cuda" else {}
        options |= {"dtype": self.dtype, "local_files_only": True, **placement}
        if self.base is None:
            return use_onednn(keep_caps(maker.from_pretrained(self.folder, **options)).to(self.device).eval())
        from peft import PeftModel

        with adaptable(self.base) as more:
            model = keep_caps(maker.from_pretrained(self.base, **options, **more))
        return use_onednn(PeftModel.from_pretrained(model, self.folder).to(self.device).eval())

    # batches ------------------------------------------------------------------------------------------------

    def _check_lengths(self, prompts: Sequence[Prompt], more: int = 0) -> None:
        """more: tokens that will follow each prompt."""
        longest = self._causal.config.get_text_config().max_position_embeddings
        check_prompt_lengths(prompts, longest - more, self.folder)

    def _batches(self, prompts: Sequence[Prompt]) -> Iterator[list[int]]:
        """Batches of indices, longest prompts first: memory runs out at once or never."""
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        while order:
            size = max(1, self.settings.tokens // max(len(prompts[order[0]]), 1))
            yield order[:size]
            order = order[size:]

    def _pad_right(self, rows: Sequence[Prompt], pad: int, width: int = 0) -> dict[str, torch.Tensor]:
        ids, mask = pad_rows(rows, pad, self.device, left=False, width=width)
        return {"input_ids": ids, "attention_mask": mask}

    # exact scoring ------------------------------------------------------------------------------------------

    def _score_tokens(self, prompts: Sequence[Prompt], ids: Sequence[int]) -> np.ndarray:
        """[n, ids] log-probabilities of tokens after each prompt."""
        if self._shares(max(map(len, prompts), default=0)):
            return score_shared(self._causal, prompts, ids, self.settings.tokens)
        scores = np.empty((len(prompts), len(ids)))
        for batch in self._batches(prompts):
            scores[batch] = read_tokens(self._last_logits([prompts[i] for i in batch]), list(ids))
        return scores

    def _shares(self, longest: int) -> bool:
        """Whether prompts of up to `longest` tokens can share their prefixes."""
        window = getattr(self._causal.config.get_text_config(), "sliding_window", None)
        return self._can_share and not (window and longest > window)

    @cached_property
    def _can_share(self) -> bool:
        shares = can_share(self._causal, self.settings.dtype)
        if not shares:
            print(f"{self.folder}: its attention cannot share prefixes, each prompt is computed alone")
        return shares

    def _ask(self, ask: Callable[[Sequence[Prompt]], list[AnswerT]], prompts: Sequence[Prompt]) -> list[AnswerT]:
        return ask_within_memory(ask, prompts, self.folder)

    def _embed(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """[d] vectors of unit length."""
        try:
            return self._embed_in_shapes(prompts)
        except RuntimeError as error:
            self._fills = self._fills and not is_out_of_memory(error)  # the halves of the prompts are smaller batches
            raise

    def _embed_in_shapes(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        import torch

        limit = getattr(self._sentence.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
        lengths, tokens = [len(prompt) for prompt in prompts], self.settings.tokens
        vectors: dict[int, np.ndarray] = {}
        with torch.inference_mode():
            for batch, width, rows in plan_fixed_batches(lengths, tokens, limit, self._fills):
                filled = [*batch, *batch[:1] * (rows - len(batch))]
                out = self._sentence(self._pad_right([prompts[i] for i in filled], self._pad, width))
                states = out["sentence_embedding"][: len(batch)].float()
                vectors |= zip(batch, torch.nn.functional.normalize(states, dim=-1).cpu().numpy(), strict=True)
        return [vectors[i] for i in range(len(prompts))]

    def _read_head(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """[labels], or [tokens, labels], logits."""
        import torch

        answers: dict[int, np.ndarray] = {}
        with torch.inference_mode():
            for batch in self._batches(prompts):
                rows = [prompts[i] for i in batch]
                pad = self._head.config.get_text_config().pad_token_id = choose_pad(rows, self._pad)
                out = self._head(**self._pad_right(rows, pad)).logits.float().cpu().numpy()
                for i, row in zip(batch, out, strict=True):
                    answers[i] = row[: len(prompts[i])] if row.ndim == 2 else row
        return [answers[i] for i in range(len(prompts))]

    def _last_logits(self, rows: Sequence[Prompt]) -> torch.Tensor:
        """[n, vocabulary] logits after each row; rows are padded on the left, so that all end at the last position."""
        import torch

        ids, mask = pad_rows(rows, self._pad, self.device, left=True)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.inference_mode():
            logits = self._causal(ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1)
        return logits.logits[:, -1].float()
