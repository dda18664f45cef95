"""Tokenises pieces of a prompt: a user's words cannot become a control token, and a piece does not start a text."""

from __future__ import annotations

import copy
import functools
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@functools.lru_cache(maxsize=8)
def text_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer, set to split all added tokens as text: "<think>" and "<tool_call>" too.

    Many control tokens are not "special" for transformers. Runs of white space, added tokens of some models, are text.
    """
    if not tokenizer.is_fast or all(token.special for token in tokenizer.added_tokens_decoder.values()):
        return tokenizer
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in content["added_tokens"]:
        token["special"] = bool(token["content"].strip(" \t\r\n▁"))
    return replace_backend(tokenizer, content)


def list_special_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    probe = tokenizer("a", return_special_tokens_mask=True)
    ids, indices = list(probe["input_ids"]), [i for i, mask in enumerate(probe["special_tokens_mask"]) if not mask]
    return ids[: indices[0]], ids[indices[-1] + 1 :]


@functools.lru_cache(maxsize=8)
def inner_tokenizer(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The tokenizer without the space that Llama-2's puts before every text: for what follows other text."""
    if not tokenizer.is_fast:
        return tokenizer
    before = json.loads(tokenizer.backend_tokenizer.to_str())
    content = before | {name: without_space(before[name]) for name in ("normalizer", "pre_tokenizer")}
    return tokenizer if content == before else replace_backend(tokenizer, content)


def without_space(step: dict[str, Any] | None) -> dict[str, Any] | None:
    """A step of tokenizer.json that puts no space before a text.

    One that splits at white space first, as T5's, is left alone: its spaces mark all words.
    """
    if step is None or step["type"] == "Prepend":
        return None
    for name in ("normalizers", "pretokenizers"):
        if name in step and not any(part["type"] == "WhitespaceSplit" for part in step[name]):
            return step | {name: [kept for part in step[name] if (kept := without_space(part))]}
    if step["type"] == "Metaspace":
        return step | {"prepend_scheme": "never"}
    return step | {"add_prefix_space": False} if step["type"] == "ByteLevel" else step


def replace_backend(tokenizer: PreTrainedTokenizerBase, content: dict[str, Any]) -> PreTrainedTokenizerBase:
    """A copy of the tokenizer with another tokenizer.json."""
    from tokenizers import Tokenizer

    other = copy.copy(tokenizer)
    other._tokenizer = Tokenizer.from_str(json.dumps(content))
    return other
