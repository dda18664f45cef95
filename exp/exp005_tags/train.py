"""An encoder with a head that tags every token, and a threshold that leaves a token out only where that is sure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path

import polars as pl
from predict import Config, load, score

from kaggle_llm.cv.audit import audit_folds
from kaggle_llm.cv.folds import assign_folds
from kaggle_llm.cv.nested import OutOfFold
from kaggle_llm.cv.outside import fit_outside
from kaggle_llm.experiment import Experiment, start
from kaggle_llm.paths import model_folder
from kaggle_llm.training.settings import LoraSettings
from kaggle_llm.training.token_labels import TokenExample, TokenSettings, TokenTask
from kaggle_llm.training.trainer import Job, fine_tune
from kaggle_llm.weights.parity import report_parity


def main() -> None:
    experiment = start(__file__, Config)
    config, competition = experiment.config, experiment.competition

    train = competition.table("train")
    fold = assign_folds(train[competition.group], config.folds)
    audit_folds(experiment, fold)
    base = {"tagger": model_folder(config.tagger.base)}

    @cache
    def learned(k: int) -> Mapping[str, Path]:
        return {"tagger": learn(f"fold{k}", train.filter(fold != k), base, experiment)}

    tagged = OutOfFold(experiment, fold, learned, score)
    fit = partial(fit_outside, metric=competition.metric)
    experiment.score(
        fold,
        models=lambda k: {**learned(k), "threshold": tagged.fit_for(k, "threshold", fit)},
        before=lambda k: {},  # a head that was not trained knows no tag: the rules
    )
    experiment.ship(**learned(tagged.folds[0]), threshold=tagged.fit_all("threshold", fit))
    report_parity(experiment.name, experiment.smoke)


def learn(name: str, rows: pl.DataFrame, base: Mapping[str, Path], experiment: Experiment) -> Path:
    """The encoder and its head, all weights learned from `rows`."""
    config, competition = experiment.config, experiment.competition

    def train(folder: Path) -> None:
        with experiment.run(base) as run:
            tagger = load(run)
        shuffled = rows.sample(fraction=1.0, shuffle=True, seed=config.seed)
        labelled = tagger.label(shuffled, competition.truth(shuffled)["items"].to_list())
        examples = [TokenExample(tuple(window.ids), tuple(labels)) for window, labels in labelled]
        job = Job(base["tagger"], folder, LoraSettings("full"), config.training, config.seed, experiment.about)
        fine_tune(TokenTask(TokenSettings(config.tagger.tags)), examples, job)

    inputs = experiment.prediction_inputs(rows, base)
    return experiment.step(f"{name}/tagger", train, experiment.settings, inputs, together=True)


if __name__ == "__main__":
    main()
