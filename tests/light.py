"""An experiment without a language model, for tests of what is around the prediction: a session of it takes seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from workspace import ROOT, Workspace, succeed

from kaggle_llm.base import paths, records
from kaggle_llm.base.records import read_complete
from kaggle_llm.competition.competition import CompetitionSettings
from kaggle_llm.inference.model import read_models
from kaggle_llm.kaggle.bundle import bundle_run
from kaggle_llm.rehearsal.checks import Check
from kaggle_llm.rehearsal.memory_limit import GIB
from kaggle_llm.rehearsal.rehearse import Results, rehearse_rerun, replay_fold
from kaggle_llm.rehearsal.session import Site, open_site
from kaggle_llm.rehearsal.stage import hidden_test

RUN = "exp001_retrieve--smoke"
HEAD = (ROOT / "exp" / "exp001_retrieve" / "predict.py").read_text().partition("def load")[0]
PREDICT = (
    HEAD
    + """import os
from pathlib import Path

from kaggle_llm.competition.rankings import make_ranking


def load(run: Run) -> list[str]:
    return run.competition.table("misconceptions")["id"].to_list()


def score(rows: pl.DataFrame, loaded: list[str], run: Run) -> pl.DataFrame:
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
    """The bundle of RUN with these lines in `score`, changed after the training. The repository must be the root."""
    predict = workspace.root / "exp" / "exp001_retrieve" / "predict.py"
    lines = [f"    {line}" for line in edit.splitlines()]
    predict.write_text(PREDICT.replace("    # EDIT", "\n".join(lines)))
    return bundle_run(RUN)


@contextmanager
def open_light_site(workspace: Workspace, folder: Path, edit: str = "", memory: int = 29 * GIB) -> Iterator[Site]:
    """The stand-in of a rehearsal of it."""
    bundle_edited(workspace, edit)
    with open_run_site(RUN, folder, 150.0, memory) as site:
        yield site


@contextmanager
def open_run_site(run: str, folder: Path, limit: float = 600.0, memory: int = 29 * GIB) -> Iterator[Site]:
    """The stand-in of a rehearsal of a bundled run. Its repository must be the root."""
    record = read_complete(run)
    settings = CompetitionSettings(**record.settings["config"]["competition"])
    shipped = read_models(record.settings["ship"])
    with open_site(folder, paths.bundle_folder(run), settings, shipped, limit, memory) as site:
        yield site


def answer_offline(workspace: Workspace, run: str, folder: Path, replay: int | None = None) -> dict[str, Check]:
    """Of a whole rehearsal the rerun, each row alone and in another order, and the replay of a fold: checks by name."""
    found = Results()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAGGLE_LLM_ROOT", str(workspace.root))
        with open_run_site(run, folder) as site:
            rehearse_rerun(site, *hidden_test(site.settings, None)[:2], found)
            if replay is not None:
                replay_fold(site, run, read_complete(run), replay, found)
    checks = {check.name: check for check in found.checks}
    assert all(check.ok for check in checks.values()), checks
    return checks


def read_report(workspace: Workspace, run: str = RUN) -> dict:
    """The latest one."""
    return records.read_json(workspace.output / "rehearsals" / run / "latest" / "report.json")
