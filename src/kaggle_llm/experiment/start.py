"""The first line of a train.py: reads and checks its command line and config.yaml."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, processes
from kaggle_llm.base.arguments import USAGE, parse_arguments, run_name
from kaggle_llm.base.config import load_config
from kaggle_llm.base.errors import report_errors
from kaggle_llm.base.folders import read_idea
from kaggle_llm.engines.engine import choose_shipped_dtype
from kaggle_llm.engines.maker import resolve_engine
from kaggle_llm.experiment.experiment import Experiment
from kaggle_llm.training.settings import resolve_training


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
