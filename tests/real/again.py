"""What a complete run's models say of rows, asked once more: what metrics.json has as a number only, row by row."""

from __future__ import annotations

import sys
from pathlib import Path

import polars as pl
from workspace import Workspace, succeed

# The models of fold 0 as they were before the training or after it, by answer() or a function of predict.py; what was
# said in the training is not asked again.
ASK = """
import sys
from pathlib import Path
import polars as pl
from kaggle_llm.base import paths, records
from kaggle_llm.inference.borrowed import find_fold
from kaggle_llm.competition.competition import TRAIN, load_competition
from kaggle_llm.base.config import load_config
from kaggle_llm.inference.model import read_models
from kaggle_llm.inference.run import Run, answer, import_predict
name, when, function, target = sys.argv[1:]
exp, folder = paths.experiment_folder(name), paths.run_folder(name)
predict = import_predict(exp)
config, record = load_config(folder / "config.yaml", predict.Config), records.read_record(folder)
learned = read_models(record.settings["fold_models"]["0"])
competition = load_competition(config.competition)
rows = competition.unlabelled(competition.table(TRAIN))
rows = pl.read_parquet(folder / "oof.parquet").select("id").join(rows, on="id", how="left", maintain_order="left")
models = learned if when == "after" else find_fold(config.models, [], 0)
with Run(config, competition, models, keep_for=name) as run:
    run.exp = exp
    said = getattr(predict, function)(rows, run.loaded(predict), run) if function else answer(exp, run, rows)
said.write_parquet(target)
"""


def ask_again(workspace: Workspace, run: str, when: str, function: str = "") -> pl.DataFrame:
    """RANKING of the rows that the run's only fold validated. when: before or after the training."""
    target = Path(workspace.root) / "again.parquet"
    succeed(workspace.call(sys.executable, "-c", ASK, run, when, function, str(target)))
    return pl.read_parquet(target)
