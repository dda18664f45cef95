"""The stand-in for /kaggle on disk: datasets as Kaggle mounts them, the competition with a hidden test swapped in."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm import paths, records
from kaggle_llm.competition import (
    SAMPLE,
    TEST,
    TRAIN,
    Competition,
    CompetitionSettings,
    load_competition,
    read_csv,
)
from kaggle_llm.kaggle.bundle import add_model
from kaggle_llm.kaggle.hashes import Hashes
from kaggle_llm.kaggle.predict import MANIFEST
from kaggle_llm.rehearsal.sandbox import NAMESPACE, find_method

if TYPE_CHECKING:
    import polars as pl

OWNER = "rehearsal"


def stage_datasets(bundle: Path, kaggle: Path) -> None:
    """The bundle's datasets at input/datasets/<owner>/<slug>/."""
    for dataset in records.read_json(bundle / MANIFEST)["datasets"]:
        for path in records.list_files(bundle / dataset["folder"]):
            place_file(path, kaggle / "input" / "datasets" / OWNER / path.relative_to(bundle))
    (kaggle / "working").mkdir()


def place_file(source: Path, target: Path) -> None:
    """A link where the sandbox mounts it read-only; else a copy, for nobody may write into the original."""
    if find_method() == NAMESPACE:
        records.link_or_copy(source, target)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def exchange_models(kaggle: Path, models: Mapping[str, Path]) -> None:
    """Other weights under the same names: what a replay runs."""
    datasets = kaggle / "input" / "datasets" / OWNER
    (code,) = (path.parent.parent for path in datasets.glob("*/submission/boot.py"))
    manifest = records.read_json(code / MANIFEST)
    with Hashes() as hashes:
        manifest["models"] = {
            name: add_model(datasets, manifest["competition"], path, hashes, place_file)
            for name, path in models.items()
        }
    records.write_json(code / MANIFEST, manifest)


def stage_competition(settings: CompetitionSettings, test: pl.DataFrame, kaggle: Path) -> Competition:
    """The competition's folder with `test` as its test.csv and a sample submission of the same ids."""
    import polars as pl

    source = load_competition(settings)
    folder = kaggle / "input" / "competitions" / settings.name
    for path in records.list_files(source.folder):
        if path.name not in (f"{TEST}.csv", f"{SAMPLE}.csv"):
            place_file(path, folder / path.relative_to(source.folder))
    test.write_csv(folder / f"{TEST}.csv")
    sample = source.sample()
    ids = load_competition(settings, folder).table(TEST)["id"]
    id_column, cell_column = sample.columns
    cell = sample[cell_column].first() or ""
    pl.DataFrame({id_column: ids, cell_column: [cell] * ids.len()}).write_csv(folder / f"{SAMPLE}.csv")
    return load_competition(settings, folder)


def hidden_test(settings: CompetitionSettings, rows: int | None) -> tuple[pl.DataFrame, pl.DataFrame, str]:
    """test.csv's rows, the truth of each (id, items), and where they come from.

    The competition's own hidden test where it has one (output/hidden/), else its training rows. rows: so many of
    them, drawn with a fixed seed; above their number they are repeated under new ids.
    """
    competition = load_competition(settings)
    hidden = paths.hidden_folder(competition.folder.name)
    if (hidden / "solution.csv").is_file():
        test, labelled = read_csv(hidden / f"{TEST}.csv"), read_csv(hidden / "solution.csv")
        labelled = labelled.rename({competition.tables[TRAIN].id: "id"})
        origin = paths.relative(hidden)
    else:
        labelled = competition.table(TRAIN)
        test = competition.test_csv(labelled["id"].to_list())
        origin = "training rows: the score is no estimate"
    truth = competition.truth(labelled)
    if rows is not None:
        test, truth = _resample(test, truth, competition.tables[TEST].id, rows)
    return test, truth, origin


def _resample(test: pl.DataFrame, truth: pl.DataFrame, id_column: str, rows: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    import numpy as np
    import polars as pl

    if set(test[id_column]) != set(truth["id"]):
        raise ValueError("--rows: read() reshapes test.csv, so its rows cannot be drawn; rehearse without it")
    rng = np.random.default_rng(0)
    order = np.concatenate([rng.permutation(test.height) for _ in range(-(-rows // test.height))])[:rows]
    drawn = test[order.tolist()]
    old = drawn[id_column]
    new = pl.Series(id_column, [i if n < test.height else f"{i}-{n // test.height}" for n, i in enumerate(old)])
    answers = pl.DataFrame({"old": old, "id": new}).join(truth.rename({"id": "old"}), on="old", maintain_order="left")
    return drawn.with_columns(new), answers.select("id", "items")
