"""Batched generation with a causal LM of transformers: a seed per sample, stop strings, structured output.

A prompt's texts do not depend on the rest of the batch: rows are padded on the left, and every sample has its own
random numbers. xgrammar enforces options and regex, as in vLLM. Of a model's generation_config.json only the ends are
used, in both engines: transformers would count padding as text that a penalty is for.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kaggle_llm.engines.engine import Completion, Sampling
from kaggle_llm.engines.prompts import Prompt

if TYPE_CHECKING:
    import torch


class Generator:
    """Generates texts with one model. batch_tokens: prompt, padding and new tokens of a batch; one row always fits."""

    def __init__(self, model: Any, tokenizer: Any, batch_tokens: int) -> None:
        from transformers import GenerationConfig

        self.model, self.tokenizer, self.batch_tokens = model, tokenizer, batch_tokens
        self.limit: int = model.config.get_text_config().max_position_embeddings
        self.ends = end_tokens(model, tokenizer)
        model.generation_config = GenerationConfig()  # generate()'s defaults come from it
        self.pad: int = (
            self.ends[0] if self.ends else tokenizer.pad_token_id or 0
        )  # masked in prompts, cut off in texts

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions of each prompt, in the order given; greedy ones are n copies.

        A text also ends where the context does. Prompts must have a token and leave room for one more. Raises
        ValueError for a regex that xgrammar does not support.
        """
        drawn = sampling.n if sampling.temperature > 0 else 1
        tasks = [(index, sample) for index in range(len(prompts)) for sample in range(drawn)]
        completions: dict[tuple[int, int], Completion] = {}
        for batch in self._batches(prompts, tasks, sampling.max_tokens):
            rows = [prompts[index] for index, _ in batch]
            written = self._write(rows, [sampling.seed + sample for _, sample in batch], sampling)
            completions |= dict(zip(batch, written, strict=True))
        repeats = sampling.n // drawn
        return [[completions[index, sample] for sample in range(drawn)] * repeats for index in range(len(prompts))]

    def _batches(
        self, prompts: Sequence[Prompt], tasks: Sequence[tuple[int, int]], new: int
    ) -> Iterator[list[tuple[int, int]]]:
        """Batches of tasks, longest prompts first; prompts whose text the context may cut only with equal lengths."""
        order = sorted(tasks, key=lambda task: -len(prompts[task[0]]))
        while order:
            longest = len(prompts[order[0][0]])
            size = max(1, self.batch_tokens // (longest + new))
            if longest + new > self.limit:
                size = min(size, sum(len(prompts[index]) == longest for index, _ in order))
            yield order[:size]
            order = order[size:]

    def _write(self, rows: Sequence[Prompt], seeds: Sequence[int], sampling: Sampling) -> list[Completion]:
        """One completion of each row."""
        import torch

        ids, mask = pad_rows(rows, self.pad, self.model.device, left=True)
        width = ids.shape[1]
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=min(sampling.max_tokens, self.limit - width),
                do_sample=False,  # SeededDraw, the last processor, leaves a single token
                eos_token_id=self.ends or None,
                pad_token_id=self.pad,
                logits_processor=self._processors(seeds, sampling),
                stopping_criteria=self._criteria(width, sampling),
            )
        return [self._complete(row[width:].tolist(), sampling) for row in out]

    def _processors(self, seeds: Sequence[int], sampling: Sampling) -> Any:
        """The logits processors: structure, temperature, top_p, and the draw."""
        from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

        steps: list[Any] = []
        if sampling.options or sampling.regex:
            from xgrammar.contrib.hf import LogitsProcessor

            steps.append(LogitsProcessor(self._grammar(sampling)))
        if sampling.temperature > 0:
            steps.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_p < 1:
                steps.append(TopPLogitsWarper(sampling.top_p))
            steps.append(SeededDraw(seeds, self.model.device))
        return LogitsProcessorList(steps)

    def _criteria(self, width: int, sampling: Sampling) -> Any:
        from transformers import StoppingCriteriaList

        return StoppingCriteriaList([StopAfterPrompt(width, self.tokenizer, sampling.stop)] if sampling.stop else [])

    @cached_property
    def _compiler(self) -> Any:
        import xgrammar

        if not self.ends:
            raise ValueError("options and regex need a model with an end-of-text token: set eos_token_id in its config")
        size = self.model.config.get_text_config().vocab_size  # may exceed the tokenizer's
        return xgrammar.GrammarCompiler(
            xgrammar.TokenizerInfo.from_huggingface(self.tokenizer, vocab_size=size, stop_token_ids=self.ends)
        )

    def _grammar(self, sampling: Sampling) -> Any:
        """The compiled grammar; xgrammar caches it for the next batch."""
        if sampling.options:
            return self._compiler.compile_grammar(options_grammar(sampling.options))
        try:
            return self._compiler.compile_regex(sampling.regex)
        except RuntimeError as error:
            raise ValueError(f"regex = {sampling.regex!r}: {str(error).strip()}: write it without that") from error

    def _complete(self, ids: list[int], sampling: Sampling) -> Completion:
        """The generated tokens up to their end or a stop string, without padding, and their text."""
        length = next((i + 1 for i, token in enumerate(ids) if token in self.ends), len(ids))
        ended, ids = ids[length - 1] in self.ends, ids[:length]
        text = self._decode(ids)
        stop = find_stop(text, sampling.stop)
        if stop is not None:
            return Completion(text[:stop], self._up_to_stop(ids, sampling.stop))
        return Completion(keep_structure(text, ended, sampling), ids)

    def _up_to_stop(self, ids: list[int], stop: Sequence[str]) -> list[int]:
        """The fewest tokens whose text contains a stop string, by bisection."""
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if find_stop(self._decode(ids[:middle]), stop) is None else (low, middle)
        return ids[:low]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


class SeededDraw:
    """A logits processor that leaves one token in each row, sampled with the row's own random numbers.

    argmax p/e with e exponentially distributed is a sample from p (the exponential race).
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        import torch

        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores [n, vocabulary] → 0 for the token drawn, −inf for all others."""
        import torch

        race = torch.empty_like(scores)
        for row, generator in zip(race, self.generators, strict=True):
            row.exponential_(generator=generator)
        drawn = (scores.softmax(-1) / race).argmax(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


class StopAfterPrompt:
    """transformers' stop strings, searched only after the prompt: one that begins in the prompt does not count."""

    def __init__(self, width: int, tokenizer: Any, stop: Sequence[str]) -> None:
        from transformers import StopStringCriteria

        self.width, self.criteria = width, StopStringCriteria(tokenizer, list(stop))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """[n]: whether a row contains a stop string."""
        return self.criteria(input_ids[:, self.width :], scores)


def pad_rows(
    rows: Sequence[Prompt], pad: int, device: torch.device, left: bool, width: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, [n, longest or `width`], padded with the token `pad` on the left or right."""
    import torch

    width = max(width, *(len(row) for row in rows))
    spaces = [[pad] * (width - len(row)) for row in rows]
    padded = [[*space, *row] if left else [*row, *space] for row, space in zip(rows, spaces, strict=True)]
    lengths, places = torch.tensor([[len(row)] for row in rows], device=device), torch.arange(width, device=device)
    mask = places >= width - lengths if left else places < lengths
    return torch.tensor(padded, dtype=torch.long, device=device), mask.long()


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The end-of-text tokens: the tokenizer's, which training teaches, and the model's own, which it was taught before.

    vLLM stops at both too. [] where neither has one.
    """
    own = model.generation_config.eos_token_id
    ends = [tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return [end for end in dict.fromkeys(ends) if end is not None]


def options_grammar(options: Sequence[str]) -> str:
    """An EBNF grammar of exactly these texts; its strings are escaped as in JSON."""
    return "root ::= " + " | ".join(json.dumps(option, ensure_ascii=False) for option in options)


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Index where the first stop string begins; None without one."""
    return min((text.index(string) for string in stop if string in text), default=None)


def keep_structure(text: str, ended: bool, sampling: Sampling) -> str:
    """The text, or "" where it was cut before it matched `sampling.regex`. ended: the model itself ended it.

    Raises ValueError for a text that is none of `sampling.options`.
    """
    if sampling.options and text not in sampling.options:
        raise ValueError(f"{text!r} is none of {sampling.options}: the tokenizer does not decode them to the same text")
    if sampling.regex and not ended and not re.fullmatch(sampling.regex, text):
        return ""
    return text
