"""SmolLM2 with LoRA says Yes behind the right option, an encyclopedia's passages open in front of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import polars as pl
from predict import Config, answer_closed, load, predict, search

from kaggle_llm.cv.audit import audit_folds
from kaggle_llm.cv.folds import assign_folds
from kaggle_llm.cv.nested import OutOfFold
from kaggle_llm.experiment import Experiment, start
from kaggle_llm.paths import model_folder
from kaggle_llm.retrieval.negatives import draw_groups
from kaggle_llm.retrieval.passages import add_context, cut_documents, rank_alike, score_recall
from kaggle_llm.training.choice import ChoiceTask
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
    base = {"encoder": model_folder(config.retrieval.encoder), "reader": model_folder(config.reader.base)}

    @cache
    def learned(k: int) -> Mapping[str, Path]:
        return learn(f"fold{k}", train.filter(fold != k), base, experiment)

    def average(folds: Sequence[int]) -> Mapping[str, Path]:
        adapter = average_folds(experiment, folds)
        return {**base, **finish_adapter(experiment, "average", "reader", adapter, base, train, predict)}

    found = OutOfFold(experiment, fold, learned, search, "passages")
    closed = OutOfFold(experiment, fold, learned, answer_closed, "closed")
    passages = cut_documents(competition.table("articles"), config.passages)
    right = train.select("id", document="article")
    recall = score_recall(found.predict(found.folds), passages, right, config.context.depths)
    without = competition.metric.score(closed.predict(closed.folds), competition.truth(train))
    experiment.score(fold, learned, before=lambda k: base, also={**recall, "without context": without})
    shipped = choose_models(config.ship, fold, learned, average, lambda: learn("full", train, base, experiment))
    experiment.ship(**shipped)
    report_parity(experiment.name, experiment.smoke)


def learn(name: str, rows: pl.DataFrame, base: Mapping[str, Path], experiment: Experiment) -> Mapping[str, Path]:
    """All models that predict needs, the reader learned from `rows`."""
    adapter = adapt(name, rows, base, experiment)
    return {**base, **finish_adapter(experiment, name, "reader", adapter, base, rows, predict)}


def adapt(name: str, rows: pl.DataFrame, base: Mapping[str, Path], experiment: Experiment) -> Path:
    """LoRA on all options of a question at once."""
    config, competition = experiment.config, experiment.competition

    def train(folder: Path) -> None:
        with experiment.run(base) as run:
            loaded = load(run)
            shown = add_context(rows, search(rows, loaded, run), loaded.passages, config.context.taught)
        options = rank_alike(rows, competition.legal_items())
        size = config.choice.group_size
        drawn = draw_groups(options, competition.truth(rows), size, size, config.seed)
        groups, task = loaded.prompts.groups(shown, drawn), ChoiceTask(config.choice, loaded.prompts.prompter.labels)
        job = Job(base["reader"], folder, config.lora, config.training, config.seed, experiment.about)
        fine_tune(task, groups, job)

    inputs = experiment.prediction_inputs(rows, base)
    return experiment.step(f"{name}/adapter", train, experiment.settings, inputs, together=True)


if __name__ == "__main__":
    main()
