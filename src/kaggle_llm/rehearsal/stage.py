"""The stand-in for /kaggle on disk: datasets and models as Kaggle mounts them, the competition with another test set.

A bundle's datasets are put into a depot once; each session moves them to where its layout mounts them.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.base import paths, records
from kaggle_llm.competition.competition import SAMPLE, TEST, TRAIN, Competition, CompetitionSettings, load_competition
from kaggle_llm.competition.data_files import encode_file, find_file, list_data_files, read_file
from kaggle_llm.competition.staged import StagedTest
from kaggle_llm.competition.table import Table
from kaggle_llm.inference.model import Model, describe_model
from kaggle_llm.kaggle.bundle import add_model
from kaggle_llm.kaggle.hashes import Hashes
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.kaggle.rows import draw_test, rename_rows
from kaggle_llm.rehearsal.sandbox import NAMESPACE, find_method

if TYPE_CHECKING:
    import polars as pl

OWNER = "rehearsal"
TRAINED = "rows of the training table: the score is no estimate"


@dataclass(frozen=True)
class Layout:
    """Where Kaggle mounts datasets, competitions and models below input/."""

    name: str
    datasets: str
    competitions: str
    models: str | None
    """Folder of model sources; None: model sources without their owner, as Kaggle mounted them before."""


OWNED = Layout("input/datasets/<owner>/<slug>", f"datasets/{OWNER}", "competitions", "models")
FLAT = Layout("input/<slug>", "", "", None)
NESTED = Layout("input/…/<slug>", f"moved/again/{OWNER}/datasets", "moved/again/competitions", "models")


@dataclass(frozen=True)
class Depot:
    """Datasets and model sources that no session has mounted now."""

    folder: Path

    @property
    def datasets(self) -> Path:
        return self.folder / "datasets"

    @property
    def sources(self) -> Path:
        return self.folder / "sources"

    @property
    def code(self) -> Path:
        return find_code(self.datasets)


def find_code(datasets: Path) -> Path:
    (code,) = (path.parents[1] for path in datasets.glob("*/submission/boot.py"))
    return code


def fill_depot(bundle: Path, shipped: Sequence[Model], depot: Depot) -> None:
    """Put the bundle's datasets into the depot, and the local folders of its Kaggle models."""
    for dataset in records.read_json(bundle / MANIFEST)["datasets"]:
        for path in records.list_files(bundle / dataset["folder"]):
            put_file(path, depot.datasets / path.relative_to(bundle))
    manifest = records.read_json(depot.code / MANIFEST)
    for model, described in zip(shipped, manifest["models"], strict=True):
        for folder, source in ((model.folder, described["folder"]), (model.base, described.get("base"))):
            for entry in manifest["sources"].get(source, ()):
                put_file(Path(folder or "") / entry["path"], depot.sources / source / entry["path"])


def put_file(source: Path, target: Path) -> None:
    """A link where the sandbox mounts it read-only; else a copy, to protect the original."""
    if find_method() == NAMESPACE:
        records.link_or_copy(source, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def exchange_models(depot: Depot, models: Sequence[Model]) -> None:
    """Let the bundle use other models, for a replay."""
    manifest = records.read_json(depot.code / MANIFEST)
    with Hashes() as hashes:

        def add(folder: Path) -> str:
            return add_model(depot.datasets, manifest["competition"], folder, hashes, put_file)

        manifest["models"] = [describe_model(model, add) for model in models]
    records.write_json(depot.code / MANIFEST, manifest)


@contextmanager
def attach(depot: Depot, mount: Path, layout: Layout) -> Iterator[Path]:
    """The depot under `mount` (input/) while it is open; yields the folder of the code dataset there."""
    moves = [(path, mount / layout.datasets / path.name) for path in sorted(depot.datasets.iterdir())]
    for path in sorted(depot.sources.glob("*/*/*/*/*")):
        source = path.relative_to(depot.sources)
        moves.append((path, mount / (layout.models or "") / (source if layout.models else Path(*source.parts[1:]))))
    for stored, mounted in moves:
        mounted.parent.mkdir(parents=True, exist_ok=True)
        stored.rename(mounted)
    try:
        yield find_code(mount / layout.datasets)
    finally:
        for stored, mounted in moves:
            mounted.rename(stored)
        shutil.rmtree(mount)


def stage_competition(settings: CompetitionSettings, test: Mapping[str, bytes] | None, folder: Path) -> Competition:
    """Make the competition's folder with these files of the test set, and a sample of its ids; None: the public files.

    test: file name → content; with a sample submission or without one.
    """
    source = load_competition(settings)
    sample = find_file(source.folder, SAMPLE)
    for path in records.list_files(source.folder):
        if test is None or (path.name not in test and path != sample):
            put_file(path, folder / path.relative_to(source.folder))
    for name, content in (test or {}).items():
        (folder / name).write_bytes(content)
    if test is not None and sample.name not in test:
        ids = load_competition(settings, folder).table(TEST)["id"].to_list()
        (folder / sample.name).write_bytes(encode_file(source.sample_of(ids), sample.name))
    return load_competition(settings, folder)


def drop_unlabelled(solution: pl.DataFrame, table: Table) -> pl.DataFrame:
    """The rows with targets; rows of a hidden test without a label are not scored."""
    import polars as pl

    targets = [name for name in table.targets() if name in solution.columns]
    return solution.filter(pl.all_horizontal(pl.lit(True), *(pl.col(name).is_not_null() for name in targets)))


def find_solution(folder: Path) -> Path | None:
    """The solution in a hidden test's folder; None without one."""
    files = list_data_files(folder) if folder.is_dir() else []
    return next((path for path in files if path.name.startswith("solution.")), None)


def hidden_test(
    settings: CompetitionSettings, rows: int | None, held_out: Collection[str] = ()
) -> tuple[StagedTest, pl.DataFrame, str]:
    """A test set, the truth of its rows that have a label, and where they come from.

    The competition's hidden test where output/hidden/ has one, else rows of its training table: those of `held_out`, or
    all. rows: so many of them, drawn with a fixed seed; more rows than there are repeat them under new ids.
    """
    competition = load_competition(settings)
    hidden = paths.hidden_folder(competition.folder.name)
    solution = find_solution(hidden)
    if solution:
        test = read_hidden_files(competition, hidden)
        labelled = drop_unlabelled(competition.labelled(solution), competition.tables[TRAIN])
        origin = paths.relative(hidden)
    else:
        labelled = competition.table(TRAIN)
        labelled = labelled.filter(labelled["id"].is_in(list(held_out))) if held_out else labelled
        test = competition.as_test(labelled["id"].to_list())
        origin = "rows of the training table that the shipped model was not trained on" if held_out else TRAINED
    truth = competition.truth(labelled)
    if rows is not None:
        test, names = draw_test(competition, test, truth["id"].to_list(), rows)
        truth = rename_rows(truth, names)
    return test, truth, origin


def read_hidden_files(competition: Competition, folder: Path) -> StagedTest:
    """The files of a hidden test's folder, without its solution: each has the name of the public one that it replaces.

    Raises ValueError for a file that replaces none.
    """
    rows = find_file(folder, competition.tables[TEST].file or TEST)
    public = {path.name for path in list_data_files(competition.folder)}
    others = [path for path in list_data_files(folder) if path not in (rows, find_solution(folder))]
    if unknown := [path.name for path in (rows, *others) if path.name not in public]:
        raise ValueError(
            f"{paths.relative(folder)} has {unknown}: {paths.relative(competition.folder)} has no such file"
        )
    return StagedTest(rows.name, read_file(rows), {path.name: path.read_bytes() for path in others})
