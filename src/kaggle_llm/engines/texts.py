"""Whole texts → token ids for an embedder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, overload

from kaggle_llm.base.plain_text import text_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from kaggle_llm.engines.prompts import Prompt

TEXTS_A_CALL = 1024  # tokenised at a time: a tokenizer's own results take some 200 bytes a token


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[Prompt]:
    """Token ids of whole texts, special tokens included, cut after `max_tokens`."""
    prompts: list[Prompt] = []
    plain = text_tokenizer(tokenizer)
    options = {"truncation": True, "max_length": max_tokens}
    for start in range(0, len(texts), TEXTS_A_CALL):
        part = list(texts[start : start + TEXTS_A_CALL])
        prompts += plain(part, split_special_tokens=True, **options)["input_ids"]
    return prompts


class TextPrompts(Sequence[Sequence[int]]):
    """Texts that become token ids where they are asked for: those whose vectors are there are never tokenised."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> None:
        self.tokenizer, self.texts, self.max_tokens = tokenizer, texts, max_tokens

    def __len__(self) -> int:
        return len(self.texts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...

    @overload
    def __getitem__(self, index: slice) -> list[Prompt]: ...

    def __getitem__(self, index: int | slice) -> Prompt | list[Prompt]:
        if isinstance(index, slice):
            return encode_texts(self.tokenizer, self.texts[index], self.max_tokens)
        return encode_texts(self.tokenizer, [self.texts[index]], self.max_tokens)[0]

    def hash(self) -> str:
        """Hash of the texts and of the number of tokens that they are cut to."""
        return hash_texts(self.texts, f"{self.max_tokens} tokens")


def hash_texts(texts: Sequence[str], about: str = "") -> str:
    """Hash of all texts in their order, each with its length, and of what `about` says of them."""
    digest = hashlib.sha256(about.encode())
    for text in texts:
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return digest.hexdigest()
