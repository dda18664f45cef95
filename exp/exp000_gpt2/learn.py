"""Train a tokenizer and a GPT-2 on the training rows."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import torch
from model import GPT2, GPT2Settings, fit, save_gpt2

from kaggle_llm.engines.prompts import Prompter
from kaggle_llm.engines.tokenizer import load_tokenizer, train_tokenizer

if TYPE_CHECKING:
    from predict import Config


def learn(labelled: pl.DataFrame, documents: pl.DataFrame, config: Config, folder: Path) -> None:
    """Leaves a model folder. labelled: the texts of every row, and in `text` the document that it should write."""
    columns = [name for name in labelled.columns if name in config.prompt.budgets]
    texts = labelled.select(pl.concat_str(*columns, separator=" ")).to_series().to_list()
    train_tokenizer([*texts, *documents["text"]], config.model.vocab_size, folder)
    torch.manual_seed(config.seed)
    end = load_tokenizer(folder).eos_token_id
    model = GPT2(GPT2Settings(**asdict(config.model), bos_token_id=end, eos_token_id=end))
    prompter = Prompter(load_tokenizer(folder), config.prompt)
    rows = labelled.iter_rows(named=True)
    examples = [(prompter.row(row), prompter.completion(f" {row['text']}")) for row in rows]
    fit(model, examples, **asdict(config.fit), seed=config.seed)
    save_gpt2(model, folder)
