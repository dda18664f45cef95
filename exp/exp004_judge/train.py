"""SmolLM2 with LoRA names the better of two answers, asked in both orders, its certainty set by a temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import polars as pl
from predict import Config, load, score

from kaggle_llm.cv.audit import audit_folds
from kaggle_llm.cv.folds import assign_folds
from kaggle_llm.cv.nested import OutOfFold, score_prior
from kaggle_llm.cv.reliability import report_reliability
from kaggle_llm.cv.temperature import fit_temperature
from kaggle_llm.experiment import Experiment, start
from kaggle_llm.inference.choice import list_examples
from kaggle_llm.inference.pairs import make_pairs
from kaggle_llm.paths import model_folder
from kaggle_llm.training.choice import ChoiceSettings, ChoiceTask
from kaggle_llm.training.trainer import Job, fine_tune
from kaggle_llm.weights.finish import average_folds, finish_adapter
from kaggle_llm.weights.parity import report_parity
from kaggle_llm.weights.ship import choose_models


def main() -> None:
    experiment = start(__file__, Config)
    config, competition = experiment.config, experiment.competition

    train = competition.table("train")
    fold = assign_folds(train[competition.group], config.folds)
    audit_folds(experiment, fold)
    base = {"judge": model_folder(config.judge.base)}

    @cache
    def learned(k: int) -> Mapping[str, Path]:
        return learn(f"fold{k}", train.filter(fold != k), base, experiment)

    def average(folds: Sequence[int]) -> Mapping[str, Path]:
        return finish_adapter(experiment, "average", "judge", average_folds(experiment, folds), base, train, score)

    raw = OutOfFold(experiment, fold, learned, score)
    untrained = OutOfFold(experiment, fold, lambda k: base, score, "raw_before")
    experiment.score(
        fold,
        models=lambda k: {**learned(k), "temperature": raw.fit_for(k, "temperature", fit_temperature)},
        before=lambda k: {**base, "temperature": untrained.fit_for(k, "temperature_before", fit_temperature)},
        also={"shares of training": score_prior(experiment, fold)},
    )
    shipped = choose_models(config.ship, fold, learned, average, lambda: learn("full", train, base, experiment))
    experiment.ship(**shipped, temperature=raw.fit_all("temperature", fit_temperature))
    report_reliability(experiment, raw.predict(raw.folds))
    report_parity(experiment.name, experiment.smoke)


def learn(name: str, rows: pl.DataFrame, base: Mapping[str, Path], experiment: Experiment) -> Mapping[str, Path]:
    """The judge, learned from `rows`."""
    adapter = adapt(name, rows, base, experiment)
    return finish_adapter(experiment, name, "judge", adapter, base, rows, score)


def adapt(name: str, rows: pl.DataFrame, base: Mapping[str, Path], experiment: Experiment) -> Path:
    """LoRA on the voters' shares, every pair in both orders."""
    config, competition = experiment.config, experiment.competition

    def train(folder: Path) -> None:
        with experiment.run(base) as run:
            prompter = load(run)
        shuffled = rows.sample(fraction=1.0, shuffle=True, seed=config.seed)
        pairs = make_pairs(shuffled, competition.legal_items(), list(competition.labels.values()))
        examples = list_examples(pairs, prompter, config.orders.orders, shuffle=False, seed=config.seed)
        task = ChoiceTask(ChoiceSettings(form="labels"), prompter.labels)
        job = Job(base["judge"], folder, config.lora, config.training, config.seed, experiment.about)
        fine_tune(task, examples, job)

    inputs = experiment.prediction_inputs(rows, base)
    return experiment.step(f"{name}/adapter", train, experiment.settings, inputs, together=True)


if __name__ == "__main__":
    main()
