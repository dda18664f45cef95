"""SmolLM2 fine-tuned with LoRA to say Yes for the right candidate, blended with the retrieval's place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl
from predict import Config, load, score

from kaggle_llm.cv.audit import audit_folds
from kaggle_llm.cv.decisions import fit_blend
from kaggle_llm.cv.folds import assign_folds
from kaggle_llm.experiment import Experiment, start
from kaggle_llm.paths import model_folder
from kaggle_llm.retrieval.negatives import draw_groups
from kaggle_llm.training.choice import ChoiceTask
from kaggle_llm.training.trainer import Job, fine_tune
from kaggle_llm.weights.finish import average_folds, finish_adapter
from kaggle_llm.weights.parity import report_parity
from kaggle_llm.weights.quantize import check_group_size
from kaggle_llm.weights.ship import choose_models


def main() -> None:
    experiment = start(__file__, Config)
    config, competition = experiment.config, experiment.competition

    train = competition.table("train")
    fold = assign_folds(train[competition.target], config.folds)
    audit_folds(experiment, fold)
    base = {"encoder": model_folder(config.retrieval.encoder), "reranker": model_folder(config.reranker.base)}
    check_group_size(base["reranker"], config.quantize)

    def models(k: int) -> Mapping[str, Path]:
        return learn(f"fold{k}", train.filter(fold != k), base, experiment)

    def before(k: int) -> Mapping[str, Path]:
        _, held_out = split_rows(train.filter(fold != k), experiment)
        return base | {"blend": blend(f"fold{k}/blend_before", held_out, base, experiment)}

    def average(folds: Sequence[int]) -> Mapping[str, Path]:
        adapter = average_folds(experiment, folds)
        return {**models(folds[0]), **finish_adapter(experiment, "average", "reranker", adapter, base, train, score)}

    experiment.score(fold, models, before)
    shipped = choose_models(config.ship, fold, models, average, lambda: learn("full", train, base, experiment))
    experiment.ship(**shipped)
    report_parity(experiment.name, experiment.smoke)


def learn(name: str, rows: pl.DataFrame, base: Mapping[str, Path], experiment: Experiment) -> Mapping[str, Path]:
    """All models that predict needs, learned from `rows`."""
    learned, held_out = split_rows(rows, experiment)
    adapter = adapt(name, learned, base, experiment)
    models = {**base, **finish_adapter(experiment, name, "reranker", adapter, base, learned, score)}
    return models | {"blend": blend(f"{name}/blend", held_out, models, experiment)}


def split_rows(rows: pl.DataFrame, experiment: Experiment) -> tuple[pl.DataFrame, pl.DataFrame]:
    """What the reranker learns from, and what the blend is fitted on: it has unseen targets too."""
    config = experiment.config
    fold = assign_folds(rows[experiment.competition.target], replace(config.folds, validate=[0], rows=None))
    return rows.filter(fold != 0), rows.filter(fold == 0).head(config.reranker.blend_rows)


def adapt(name: str, rows: pl.DataFrame, base: Mapping[str, Path], experiment: Experiment) -> Path:
    """LoRA on groups of hard negatives."""
    config, competition = experiment.config, experiment.competition

    def train(folder: Path) -> None:
        with experiment.run(base) as run:
            loaded = load(run)
            candidates = loaded.retriever.search(rows)
        size, depth = config.choice.group_size, config.reranker.depth
        drawn = draw_groups(candidates, competition.truth(rows), size, depth, config.seed)
        groups, task = loaded.prompts.groups(rows, drawn), ChoiceTask(config.choice, loaded.prompts.prompter.labels)
        job = Job(base["reranker"], folder, config.lora, config.training, config.seed, experiment.about)
        fine_tune(task, groups, job)

    inputs = experiment.prediction_inputs(rows, base)
    return experiment.step(f"{name}/adapter", train, experiment.settings, inputs, together=True)


def blend(name: str, rows: pl.DataFrame, models: Mapping[str, Path], experiment: Experiment) -> Path:
    """The weight of the reranker beside the retrieval, fitted on rows that it was not trained on."""
    competition = experiment.competition

    def fit(folder: Path) -> None:
        with experiment.run(models) as run:
            retrieved, reranked = score(competition.unlabelled(rows), load(run), run)
        fit_blend(retrieved, reranked, competition.truth(rows), competition.metric).save(folder)

    return experiment.step(name, fit, experiment.settings, experiment.prediction_inputs(rows, models))


if __name__ == "__main__":
    main()
