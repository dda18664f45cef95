"""A timed run on Kaggle's own GPUs, before a submission is spent: `kaggle-llm push RUN --rows N`.

The bundle that would be submitted predicts N held-out rows on Kaggle. Their labels stay here; the output is scored.
Leaves output/pushes/<kernel>/timed.json: {"run", "bundle", "rows", "timing", "score", "oof", "note"}.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths, records
from kaggle_llm.competition.competition import SAMPLE, TEST, TRAIN, Competition, load_competition
from kaggle_llm.competition.csv_table import read_csv
from kaggle_llm.competition.data_files import encode_file, find_file
from kaggle_llm.competition.rankings import answer_columns
from kaggle_llm.competition.staged import StagedTest
from kaggle_llm.kaggle.bundle import identify_bundle, make_slug, seal_dataset
from kaggle_llm.kaggle.client import find_owner
from kaggle_llm.kaggle.hashes import Hashes
from kaggle_llm.kaggle.kernels import follow_kernel
from kaggle_llm.kaggle.push import (
    competition_of,
    find_foreign_output,
    kernel_slug,
    list_datasets,
    open_bundle,
    push_notebook,
    read_code_manifest,
)
from kaggle_llm.kaggle.rows import draw_test, read_held_out, rename_rows

if TYPE_CHECKING:
    import polars as pl

TIMED = "timed.json"
ENDING = "timed"  # of the kernel's slug, so that it is not the submission's kernel


def push_timed(run: str, rows: int, accept_parity: str = "") -> dict[str, Any]:
    """Time and score of the bundle on `rows` held-out rows, measured on Kaggle; more rows than there are repeat them.

    Raises as `push_run` does.
    """
    folder, manifest = open_bundle(run, accept_parity)
    test, truth, oof = draw_held_out(run, rows)
    dataset = write_rows(run, manifest, test)
    owner, slug = find_owner(), kernel_slug(manifest, ENDING)
    code, folders = read_code_manifest(folder, manifest), [*list_datasets(folder, manifest), dataset]
    ref, version, _ = push_notebook(folder / "notebook.ipynb", code, folders, owner, slug)
    output = follow_kernel(ref, version)
    foreign = find_foreign_output(folder, output)
    if foreign:
        raise OSError(f"{ref} version {version}: {foreign[0]}")
    timed = {
        "run": run,
        "bundle": identify_bundle(manifest),
        "rows": test.rows.height,
        "timing": records.read_json(output / "timing.json"),
        **score_output(run, output, truth, oof, dataset),
        "note": manifest.get("note", ""),
    }
    records.write_json(paths.pushes_folder(slug) / TIMED, timed)
    print(describe_timed(timed), flush=True)
    return timed


def draw_held_out(run: str, rows: int) -> tuple[StagedTest, pl.DataFrame, pl.DataFrame]:
    """The rows as a test set, their truth (id, items), and their out-of-fold RANKING under the same ids.

    Of the validation rows of the fold whose weights ship; of all folds where more than one fold's weights ship.
    """
    competition, (oof, _) = competition_of(run), read_held_out(run)
    rows_of_train = competition.truth(competition.table(TRAIN))
    truth = rows_of_train.filter(rows_of_train["id"].is_in(oof["id"].to_list()))
    ids = truth["id"].to_list()
    drawn, names = draw_test(competition, competition.as_test(ids), ids, rows)
    return drawn, rename_rows(truth, names), rename_rows(oof.select(answer_columns(oof)), names)


def write_rows(run: str, manifest: dict[str, Any], test: StagedTest) -> Path:
    """Make the dataset of the rows and their sample submission, without labels; returns its folder."""
    slug = make_slug(f"{manifest['competition']}-{run}", "rows")
    folder = paths.pushes_folder(slug) / slug
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in test.encode().items():
        (folder / name).write_bytes(content)
    with mount_rows(run, folder) as competition:
        ids, sample = competition.table(TEST)["id"].to_list(), find_file(competition.folder, SAMPLE).name
        (folder / sample).write_bytes(encode_file(competition.sample_of(ids), sample))
    seal_dataset(folder, "rows", {}, Hashes())
    return folder


@contextmanager
def mount_rows(run: str, rows: Path) -> Iterator[Competition]:
    """The competition with these rows as its test set, as the notebook has it. rows: their dataset's folder."""
    competition = competition_of(run)
    with TemporaryDirectory() as folder:
        for path in {path.name: path for source in (competition.folder, rows) for path in source.iterdir()}.values():
            (Path(folder) / path.name).symlink_to(path.resolve())
        yield load_competition(competition.settings, Path(folder))


def score_output(run: str, output: Path, truth: pl.DataFrame, oof: pl.DataFrame, rows: Path) -> dict[str, float]:
    """The metric of Kaggle's predictions, and of the out-of-fold predictions of the same rows."""
    with mount_rows(run, rows) as competition:
        predicted = competition.ranking_of(read_csv(output / "submission.csv"))
    missing = set(truth["id"]) - set(predicted["id"])
    if missing:
        raise ValueError(
            f"{paths.relative(output)}/submission.csv lacks {len(missing)} of {truth.height} rows, first {min(missing)}"
        )
    score = competition.metric.score
    return {"score": score(predicted, truth), "oof": score(oof, truth)}


def describe_timed(timed: dict[str, Any]) -> str:
    timing = timed["timing"]
    before = timing["load_seconds"] + timing["install_seconds"]
    text = f"{timed['rows']} held-out rows on Kaggle: {timing['seconds']:.0f} s, {before:.0f} s before the first row; "
    text += f"score {timed['score']:.4f}, out of fold {timed['oof']:.4f}"
    return text + (f" ({timed['note']})" if timed["note"] else "")


def extrapolate_hours(timing: dict[str, Any], rows: int) -> float:
    """Hours for `rows` rows: installing and loading once, the rest in proportion to the rows."""
    fixed = timing["install_seconds"] + timing["load_seconds"]
    growing = max(timing["seconds"] - timing["load_seconds"], 0.0)
    return (fixed + growing * rows / max(timing["rows"], 1)) / 3600
