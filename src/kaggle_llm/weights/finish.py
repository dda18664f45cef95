"""The steps from a trained adapter to the weights that answer, as the config's merge, quantize and average say."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.experiment import Ask, Experiment
from kaggle_llm.run import import_predict
from kaggle_llm.weights.average import average_adapters
from kaggle_llm.weights.merge import merge_adapter
from kaggle_llm.weights.quantize import quantize
from kaggle_llm.weights.recorder import RecordingRun

if TYPE_CHECKING:
    import polars as pl


def finish_adapter(
    experiment: Experiment, step: str, name: str, adapter: Path, base: Mapping[str, Path], rows: pl.DataFrame, ask: Ask
) -> dict[str, Path]:
    """The form in which model `name` answers: {name: merged or quantised}, or {name: adapter, name_base: its base}.

    base: the models before training, with the adapter's base under `name`. rows: training rows that calibration
    prompts may be drawn from. ask: what predict.py asks `name` with: its predict, or the part of it that does.
    """
    config = experiment.config
    if config.merge.into == "nothing":
        return {name: adapter, f"{name}_base": base[name]}
    merge = partial(merge_adapter, base[name], adapter, settings=config.merge)
    merged = experiment.step(f"{step}/merged", merge, config.merge, {"base": base[name], "adapter": adapter})
    if config.quantize.scheme == "none":
        return {name: merged}
    return {name: make_quantised(experiment, step, name, {**base, name: merged}, rows, ask)}


def make_quantised(
    experiment: Experiment, step: str, name: str, models: Mapping[str, Path], rows: pl.DataFrame, ask: Ask
) -> Path:
    """Model `name` of `models` quantised, calibrated on prompts that predict asks of training rows."""
    settings, seed = experiment.config.quantize, experiment.config.seed
    drawn = rows.sample(min(settings.rows, rows.height), seed=seed)

    def make(folder: Path) -> None:
        prompts = collect_prompts(experiment, name, models, drawn, ask)
        quantize(models[name], drawn["id"].to_list(), prompts, settings, folder, seed)

    inputs = experiment.prediction_inputs(drawn, models)
    return experiment.step(f"{step}/{settings.scheme}", make, settings, inputs)


def collect_prompts(
    experiment: Experiment, name: str, models: Mapping[str, Path], rows: pl.DataFrame, ask: Ask
) -> list[tuple[int, ...]]:
    """One of the prompts that predict gives to model `name` for each row; raises ValueError where it gives none."""
    from tqdm import tqdm

    rng = random.Random(experiment.config.seed)
    found = []
    asked = experiment.competition.unlabelled(rows)
    every = experiment.add_borrowed(models)
    with RecordingRun(name, experiment.config, experiment.competition, every) as run:
        for row in tqdm(asked.iter_slices(1), "calibration prompts", asked.height, mininterval=5.0):
            run.calls.clear()
            ask(row, run.loaded(import_predict(experiment.exp)), run)
            prompts = [prompt for call in run.calls for prompt in call.prompts]
            if not prompts:
                raise ValueError(f"row {row['id'][0]!r}: predict asked {name} nothing, so nothing can be calibrated on")
            found.append(rng.choice(prompts))
    return found


def average_folds(experiment: Experiment, folds: Sequence[int]) -> Path:
    """The adapters that the steps fold<k>/adapter left as one, as config.average says."""
    settings = experiment.config.average
    members = {f"fold{k}": experiment.folder / f"fold{k}" / "adapter" for k in folds}
    make = partial(average_adapters, list(members.values()), settings=settings)
    return experiment.step("average/adapter", make, settings, members)
