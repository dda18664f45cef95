"""A tokenizer of one's own, for a model that starts from nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

END = "<|endoftext|>"


def train_tokenizer(texts: Iterable[str], size: int, folder: Path) -> None:
    """Leaves a byte-level BPE of `size` tokens or fewer in `folder`: any text can be said in it, and `END` ends one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    raw.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END).save_pretrained(folder)
