"""Loads the tokenizer of a model folder, or trains one on texts; chooses an id for padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.engines.spared import spare_sklearn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

END_OF_TEXT = "<|endoftext|>"


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; raises FileNotFoundError where it has none."""
    spare_sklearn()
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")):
        raise FileNotFoundError(f"model folder {folder} has no tokenizer (tokenizer.json)")
    return AutoTokenizer.from_pretrained(folder)


def choose_pad(rows: Sequence[Sequence[int]], usual: int | None) -> int:
    """The usual padding id, or one that no row ends with: a causal head reads the last token that is not padding.

    Without an own padding token that is id 0, "!" in GPT-2 and Llama-3.
    """
    last = {row[-1] for row in rows}
    return next(pad for pad in chain([usual or 0], count()) if pad not in last)


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
