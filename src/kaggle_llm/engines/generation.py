"""Generation with a causal LM of transformers: in batches, each sample with its own seed, with stops and structure.

What is asked beside a prompt changes nothing in its texts: rows are padded on the left, and every sample draws from
its own random numbers. Structure is kept by xgrammar, as in vLLM.
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
    """Writes texts with one model.

    batch_tokens: what a batch may hold, prompt, padding and new tokens together; one row always fits.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_tokens: int) -> None:
        self.model, self.tokenizer, self.batch_tokens = model, tokenizer, batch_tokens
        self.limit: int = model.config.get_text_config().max_position_embeddings
        self.ends = end_tokens(model, tokenizer)
        self.pad: int = self.ends[0] if self.ends else tokenizer.pad_token_id or 0  # cut off again; masked in prompts

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions of each prompt, in the order given; greedy ones are alike.

        A text ends at the context's end too. Prompts have one token or more and leave room for one in the context.
        Raises ValueError for a regex that xgrammar does not know.
        """
        drawn = sampling.n if sampling.temperature > 0 else 1
        tasks = [(index, sample) for index in range(len(prompts)) for sample in range(drawn)]
        found: dict[tuple[int, int], Completion] = {}
        for part in self._batches(prompts, tasks, sampling.max_tokens):
            rows = [prompts[index] for index, _ in part]
            texts = self._write(rows, [sampling.seed + sample for _, sample in part], sampling)
            found |= dict(zip(part, texts, strict=True))
        repeats = sampling.n // drawn
        return [[found[index, sample] for sample in range(drawn)] * repeats for index in range(len(prompts))]

    def _batches(
        self, prompts: Sequence[Prompt], tasks: Sequence[tuple[int, int]], new: int
    ) -> Iterator[list[tuple[int, int]]]:
        """Tasks in batches of like length, longest first; where the context ends a text, of the same length."""
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

        ids, mask = self._pad_left(rows)
        width = ids.shape[1]
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=min(sampling.max_tokens, self.limit - width),
                do_sample=False,  # where a seed is drawn from, the last processor leaves one token
                eos_token_id=self.ends or None,
                pad_token_id=self.pad,
                logits_processor=self._processors(seeds, sampling),
                stopping_criteria=self._criteria(width, sampling),
            )
        return [self._complete(row[width:].tolist(), sampling) for row in out]

    def _pad_left(self, rows: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """ids and mask [n, longest]."""
        import torch

        width = max(len(row) for row in rows)
        ids = torch.full((len(rows), width), self.pad, device=self.model.device)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            ids[i, width - len(row) :] = torch.tensor(list(row), device=self.model.device)
            mask[i, width - len(row) :] = 1
        return ids, mask

    def _processors(self, seeds: Sequence[int], sampling: Sampling) -> Any:
        """What the logits go through: structure, temperature, top_p, the model's own min_p, and the draw."""
        from transformers import LogitsProcessorList, MinPLogitsWarper, TemperatureLogitsWarper, TopPLogitsWarper

        steps: list[Any] = []
        if sampling.options or sampling.regex:
            from xgrammar.contrib.hf import LogitsProcessor

            steps.append(LogitsProcessor(self._grammar(sampling)))
        if sampling.temperature > 0:
            steps.append(TemperatureLogitsWarper(sampling.temperature))
            if sampling.top_p < 1:
                steps.append(TopPLogitsWarper(sampling.top_p))
            min_p = self.model.generation_config.min_p
            if min_p:
                steps.append(MinPLogitsWarper(min_p))
            steps.append(SeededDraw(seeds, self.model.device))
        return LogitsProcessorList(steps)

    def _criteria(self, width: int, sampling: Sampling) -> Any:
        from transformers import StoppingCriteriaList

        return StoppingCriteriaList([StopBehind(width, self.tokenizer, sampling.stop)] if sampling.stop else [])

    @cached_property
    def _compiler(self) -> Any:
        import xgrammar

        if not self.ends:
            raise ValueError("options and regex need a model that knows its end: set eos_token_id in its config")
        size = self.model.config.get_text_config().vocab_size  # may be more than the tokenizer's
        return xgrammar.GrammarCompiler(
            xgrammar.TokenizerInfo.from_huggingface(self.tokenizer, vocab_size=size, stop_token_ids=self.ends)
        )

    def _grammar(self, sampling: Sampling) -> Any:
        """The compiled grammar; xgrammar keeps it for the next batch."""
        if sampling.options:
            return self._compiler.compile_grammar(options_grammar(sampling.options))
        try:
            return self._compiler.compile_regex(sampling.regex)
        except RuntimeError as error:
            raise ValueError(f"regex = {sampling.regex!r}: {str(error).strip()}: write it without that") from error

    def _complete(self, ids: list[int], sampling: Sampling) -> Completion:
        """The row's own tokens, without the padding behind an end or a stop, and their text."""
        length = next((at + 1 for at, token in enumerate(ids) if token in self.ends), len(ids))
        ended, ids = ids[length - 1] in self.ends, ids[:length]
        text = self._decode(ids)
        place = find_stop(text, sampling.stop)
        if place is not None:
            return Completion(text[:place], self._up_to_stop(ids, sampling.stop))
        return Completion(keep_structure(text, ended, sampling), ids)

    def _up_to_stop(self, ids: list[int], stop: Sequence[str]) -> list[int]:
        """The fewest tokens whose text holds a stop, found by halving."""
        low, high = 1, len(ids)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if find_stop(self._decode(ids[:middle]), stop) is None else (low, middle)
        return ids[:low]

    def _decode(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))


class SeededDraw:
    """Leaves one token in each row: a sample of its probabilities, drawn from the row's own random numbers.

    The token with the largest p/e, e of the exponential distribution, is a sample of p (the exponential race).
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        import torch

        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """scores: [n, vocabulary], changed to 0 for the token drawn and −inf for all others."""
        import torch

        race = torch.empty_like(scores)
        for row, generator in zip(race, self.generators, strict=True):
            row.exponential_(generator=generator)
        drawn = (scores.softmax(-1) / race).argmax(-1, keepdim=True)
        return torch.full_like(scores, -torch.inf).scatter(1, drawn, 0.0)


class StopBehind:
    """transformers' stop strings, looked for behind the prompt only: one that the prompt begins does not count."""

    def __init__(self, width: int, tokenizer: Any, stop: Sequence[str]) -> None:
        from transformers import StopStringCriteria

        self.width, self.found = width, StopStringCriteria(tokenizer, list(stop))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:
        """[n] whether a row holds a stop."""
        return self.found(input_ids[:, self.width :], scores)


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end a text: the model's, else the tokenizer's; [] where neither knows one."""
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def options_grammar(options: Sequence[str]) -> str:
    """The EBNF of exactly these texts; its strings have JSON's escapes."""
    return "root ::= " + " | ".join(json.dumps(option, ensure_ascii=False) for option in options)


def find_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the first of the stops begins."""
    return min((text.index(one) for one in stop if one in text), default=None)


def keep_structure(text: str, ended: bool, sampling: Sampling) -> str:
    """The text, or "" where it was cut before it matched `sampling.regex`. ended: the model ended it itself.

    Raises ValueError for a text that is none of `sampling.options`.
    """
    if sampling.options and text not in sampling.options:
        raise ValueError(f"{text!r} is none of {sampling.options}: the tokenizer does not give their text back")
    if sampling.regex and not ended and not re.fullmatch(sampling.regex, text):
        return ""
    return text
