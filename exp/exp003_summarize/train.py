"""SmolLM2 fine-tuned with QLoRA to write the summary, and nothing of the chat before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl
from predict import Config, load, predict

from kaggle_llm.cv.audit import audit_folds
from kaggle_llm.cv.folds import assign_folds
from kaggle_llm.experiment import Experiment, start
from kaggle_llm.inference.writing import rank_first_words
from kaggle_llm.paths import model_folder
from kaggle_llm.training.generation import GenerationTask, make_completions
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
    base = {"writer": model_folder(config.writer.base)}

    def models(k: int) -> Mapping[str, Path]:
        return learn(f"fold{k}", train.filter(fold != k), base, experiment)

    def average(folds: Sequence[int]) -> Mapping[str, Path]:
        return finish_adapter(experiment, "average", "writer", average_folds(experiment, folds), base, train, predict)

    experiment.score(fold, models, before=lambda k: base, also=score_rule(train.filter(fold >= 0), experiment))
    shipped = choose_models(config.ship, fold, models, average, lambda: learn("full", train, base, experiment))
    experiment.ship(**shipped)
    report_parity(experiment.name, experiment.smoke)


def score_rule(rows: pl.DataFrame, experiment: Experiment) -> Mapping[str, float]:
    """What no model is needed for: the first words of each chat."""
    config, competition = experiment.config, experiment.competition
    (text,) = competition.tables["test"].texts
    ranking = rank_first_words(competition.unlabelled(rows), text, config.writing)
    return {"first words": competition.metric.score(ranking, competition.truth(rows))}


def learn(name: str, rows: pl.DataFrame, base: Mapping[str, Path], experiment: Experiment) -> Mapping[str, Path]:
    """The writer, learned from `rows`."""
    adapter = adapt(name, rows, base, experiment)
    return finish_adapter(experiment, name, "writer", adapter, base, rows, predict)


def adapt(name: str, rows: pl.DataFrame, base: Mapping[str, Path], experiment: Experiment) -> Path:
    """QLoRA on the first reference of each row."""
    config, competition = experiment.config, experiment.competition

    def train(folder: Path) -> None:
        with experiment.run(base) as run:
            prompter = load(run)
        answers = competition.truth(rows)["items"].list.first().to_list()
        examples = make_completions(prompter, rows, answers)
        job = Job(base["writer"], folder, config.lora, config.training, config.seed, experiment.about)
        fine_tune(GenerationTask(), examples, job)

    inputs = experiment.prediction_inputs(rows, base)
    return experiment.step(f"{name}/adapter", train, experiment.settings, inputs, together=True)


if __name__ == "__main__":
    main()
