"""An encoder with a head that tags every token, and a threshold that leaves a token out only where that is sure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

import polars as pl
from predict import Config, score

from kaggle_llm.cv.audit import audit_folds
from kaggle_llm.cv.folds import assign_folds
from kaggle_llm.cv.nested import OutOfFold
from kaggle_llm.cv.outside import fit_outside
from kaggle_llm.experiment import Experiment, start
from kaggle_llm.inference.tagging import label_windows
from kaggle_llm.paths import model_folder
from kaggle_llm.prompts import load_tokenizer
from kaggle_llm.training.settings import LoraSettings
from kaggle_llm.training.token_labels import TokenExample, TokenSettings, TokenTask
from kaggle_llm.training.trainer import Job, fine_tune


def main() -> None:
    experiment = start(__file__, Config)
    config, competition = experiment.config, experiment.competition

    train = competition.table("train")
    fold = assign_folds(train[competition.group], config.folds)
    audit_folds(experiment, fold)

    @cache
    def learned(k: int) -> Mapping[str, Path]:
        return {"tagger": learn(f"fold{k}", train.filter(fold != k), experiment)}

    tagged = OutOfFold(experiment, fold, learned, score)
    fit = partial(fit_outside, metric=competition.metric)
    experiment.score(
        fold,
        models=lambda k: {**learned(k), "threshold": tagged.fit_for(k, "threshold", fit)},
        before=lambda k: {},
    )
    experiment.ship(**learned(tagged.folds[0]), threshold=tagged.fit_all("threshold", fit))


def learn(name: str, rows: pl.DataFrame, experiment: Experiment) -> Path:
    """The encoder with its head, all of its weights learned from `rows`."""
    config, competition = experiment.config, experiment.competition
    base, tags = model_folder(config.tagger.base), config.tagger.tags

    def train(folder: Path) -> None:
        shuffled = rows.sample(fraction=1.0, shuffle=True, seed=config.seed)
        items = competition.truth(shuffled)["items"].to_list()
        (text,), tokenizer = competition.tables["test"].texts, load_tokenizer(base)
        labelled = label_windows(shuffled, text, items, tokenizer, tags, config.windows)
        examples = [TokenExample(tuple(window.ids), tuple(labels)) for window, labels in labelled]
        job = Job(base, folder, LoraSettings("full"), config.training, config.seed, experiment.about)
        fine_tune(TokenTask(TokenSettings(tags)), examples, job)

    settings = {"tagger": config.tagger, "windows": config.windows, "training": config.training}
    return experiment.step(f"{name}/tagger", train, settings, {"rows": rows, "base": base}, together=True)


if __name__ == "__main__":
    main()
