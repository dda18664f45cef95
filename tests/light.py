"""An experiment without a language model, for tests of what is around the prediction: a session of it takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workspace import ROOT, Workspace, succeed

from kaggle_llm import paths, records
from kaggle_llm.competition import CompetitionSettings
from kaggle_llm.kaggle.bundle import bundle_run, read_run
from kaggle_llm.rehearsal.memory import GIB
from kaggle_llm.rehearsal.session import Site, open_site

RUN = "exp001_retrieve--smoke"
HEAD = (ROOT / "exp" / "exp001_retrieve" / "predict.py").read_text().partition("def load")[0]
PREDICT = (
    HEAD
    + """import os
from pathlib import Path

from kaggle_llm.rankings import make_ranking


def load(run: Run) -> list[str]:
    return run.competition.table("misconceptions")["id"].to_list()


def predict(rows: pl.DataFrame, loaded: list[str], run: Run) -> pl.DataFrame:
    start = [sum(text.encode()) % (len(loaded) - 25) for text in rows["question"]]
    # EDIT
    return make_ranking(rows["id"].to_list(), [loaded[n : n + 25] for n in start], [range(25, 0, -1)] * len(start))
"""
)


def make_light(workspace: Workspace) -> Workspace:
    """In which RUN is complete: exp001, but a row's answer is read off the sum of its question's bytes."""
    (workspace.root / "exp" / "exp001_retrieve" / "predict.py").write_text(PREDICT)
    succeed(workspace.train("exp001_retrieve", "--smoke"))
    return workspace


def bundle_edited(workspace: Workspace, edit: str = "") -> Path:
    """The bundle of RUN with these lines in `predict`, changed after the training. The repository must be the root."""
    predict = workspace.root / "exp" / "exp001_retrieve" / "predict.py"
    lines = [f"    {line}" for line in edit.splitlines()]
    predict.write_text(PREDICT.replace("    # EDIT", "\n".join(lines)))
    return bundle_run(RUN)


@contextmanager
def open_light_site(workspace: Workspace, folder: Path, edit: str = "", memory: int = 29 * GIB) -> Iterator[Site]:
    """The stand-in of a rehearsal of it."""
    bundle, record = bundle_edited(workspace, edit), read_run(RUN)
    settings = CompetitionSettings(**record.settings["config"]["competition"])
    shipped = {name: paths.absolute(path) for name, path in record.settings["ship"].items()}
    with open_site(folder, bundle, settings, shipped, 60.0, memory) as site:
        yield site


def read_report(workspace: Workspace, run: str = RUN) -> dict:
    """The latest one."""
    return records.read_json(workspace.output / "rehearsals" / run / "latest" / "report.json")
