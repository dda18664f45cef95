"""Loads the tokenizer of a model folder, or trains one on texts."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; raises FileNotFoundError where it has none."""
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
        raise FileNotFoundError(f"model folder {folder} has no tokenizer (tokenizer.json)")
    return AutoTokenizer.from_pretrained(folder)


def train_tokenizer(texts: Iterable[str], size: int, folder: Path) -> None:
    """Save a byte-level BPE tokenizer of at most `size` tokens in `folder`; `END_OF_TEXT` ends a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    raw.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END_OF_TEXT).save_pretrained(folder)
