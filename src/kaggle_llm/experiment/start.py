"""The first line of a train.py: reads and checks its command line and config.yaml."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, processes
from kaggle_llm.base.arguments import USAGE, parse_arguments, run_name
from kaggle_llm.base.config import load_config
from kaggle_llm.base.device import measure_free_memory
from kaggle_llm.base.errors import report_errors
from kaggle_llm.base.folders import read_idea
from kaggle_llm.engines.engine import choose_shipped_dtype
from kaggle_llm.engines.footprint import read_shape, usable_bytes
from kaggle_llm.engines.maker import is_language_model, resolve_engine
from kaggle_llm.engines.model_kinds import ModelKind
from kaggle_llm.experiment.experiment import Experiment
from kaggle_llm.training.estimate import fit_batch_tokens
from kaggle_llm.training.settings import LoraSettings, TrainingSettings, resolve_training


def start(file: str, config: type[Any]) -> Experiment:
    """The experiment of the train.py `file`, with config.yaml read, folds assigned and leaks audited.

    Command line: key=value, run=name, --smoke, --debug, --help.
    """
    report_errors("--debug" in sys.argv)
    if not processes.is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (until the process ends: only one prints)
    folder = Path(file).resolve().parent
    os.environ.setdefault("KAGGLE_LLM_ROOT", str(folder.parents[1]))
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(USAGE.format(file=file, name=folder.name, idea=read_idea(folder)))
        raise SystemExit(0)
    arguments = parse_arguments(sys.argv[1:])
    loaded: Any = load_config(folder / "config.yaml", config, arguments.overrides, arguments.smoke)
    resolve_auto(loaded)
    words = [*arguments.overrides, *([f"run={arguments.run}"] if arguments.run else [])]
    words += ["--smoke"] if arguments.smoke else []
    run = run_name(folder.name, arguments)
    report_errors("--debug" in sys.argv, paths.run_folder(run))
    return Experiment(folder, run, loaded, arguments.smoke, ["python", f"exp/{folder.name}/train.py", *words])


def resolve_auto(config: Any) -> None:
    """Decide every `auto` of the config for this machine: the engine that computes CV ships, the record names it."""
    shipped = choose_shipped_dtype(config.engine.dtype, config.engine.accelerator)
    config.engine = resolve_engine(config.engine)
    if config.engine.dtype != shipped:
        why = f"no GPU here, and half precision is slow on a CPU; {config.engine.accelerator} would compute {shipped}"
        print(f"engine.dtype = {config.engine.dtype} in CV and in what ships: {why}", flush=True)
    if hasattr(config, "training"):
        config.training = resolve_training(config.training)
        if config.training.batch_tokens == "auto":
            tokens = processes.share(choose_batch_tokens(config) if processes.is_first() else None)
            config.training = replace(config.training, batch_tokens=tokens)


def choose_batch_tokens(config: Any) -> int:
    """What `training.batch_tokens: auto` becomes here: what the largest of the config's models leaves room for.

    By the memory that is free on the first GPU; without a GPU the default. Raises ValueError where the config names no
    model folder, or none fits.
    """
    free = measure_free_memory()
    if free is None:
        return TrainingSettings().part_tokens
    folders = [path for name in config.models.values() if (path := paths.absolute(name)).is_dir()]
    if not folders:
        raise ValueError("training.batch_tokens = auto: the config's models are no folders here, set a number")
    lora, room = getattr(config, "lora", LoraSettings()), usable_bytes(free)
    kinds: dict[Path, ModelKind] = {path: "causal" if is_language_model(path) else "sequence" for path in folders}
    return min(fit_batch_tokens(read_shape(path), kind, lora, config.training, room) for path, kind in kinds.items())
