"""A small GPT-2, written out in model.py and trained from nothing for a minute, says the misconception itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import polars as pl
import torch
from model import GPT2, GPT2Settings, fit, save_gpt2
from predict import Config

from kaggle_llm.cv.audit import audit_folds
from kaggle_llm.cv.folds import assign_folds
from kaggle_llm.experiment import Experiment, start
from kaggle_llm.prompts import Prompter, load_tokenizer
from kaggle_llm.training.tokenizer import train_tokenizer


def main() -> None:
    experiment = start(__file__, Config)
    config, competition = experiment.config, experiment.competition
    train = competition.table("train")
    fold = assign_folds(train[competition.target], config.folds)
    audit_folds(experiment, fold)

    def models(k: int) -> Mapping[str, Path]:
        return {"gpt2": learn(f"fold{k}/gpt2", train.filter(fold != k), experiment, config.fit.epochs)}

    def before(k: int) -> Mapping[str, Path]:
        return {"gpt2": learn(f"fold{k}/gpt2_before", train.filter(fold != k), experiment, 0)}

    experiment.score(fold, models, before)
    experiment.ship(**models(int(fold.filter(fold >= 0).min())))


def learn(name: str, rows: pl.DataFrame, experiment: Experiment, epochs: int) -> Path:
    """A tokenizer of the rows' texts, and a GPT-2 that has read them `epochs` times."""
    config, competition = experiment.config, experiment.competition
    documents = competition.table(competition.documents)

    def make(folder: Path) -> None:
        texts = rows.select(pl.concat_str(*competition.tables["test"].texts, separator=" ")).to_series().to_list()
        train_tokenizer([*texts, *documents["text"]], config.model.vocab_size, folder)
        torch.manual_seed(config.seed)
        end = load_tokenizer(folder).eos_token_id
        model = GPT2(GPT2Settings(**asdict(config.model), bos_token_id=end, eos_token_id=end))
        prompter = Prompter(load_tokenizer(folder), config.prompt)
        labelled = rows.join(documents, left_on=competition.target, right_on="id").iter_rows(named=True)
        examples = [(prompter.row(row), prompter.completion(f" {row['text']}")) for row in labelled]
        fit(model, examples, **asdict(replace(config.fit, epochs=epochs)), seed=config.seed)
        save_gpt2(model, folder)

    settings = {"model": config.model, "prompt": config.prompt, "fit": config.fit, "epochs": epochs}
    return experiment.step(name, make, settings, {"rows": rows, "documents": documents})


if __name__ == "__main__":
    main()
