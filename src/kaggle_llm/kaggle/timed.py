"""A timed run on Kaggle's own GPUs, before a submission is spent: `kaggle-llm push RUN --rows N`.

The bundle that would be submitted predicts N held-out rows there. Their labels stay here: what comes back is scored.
Leaves output/pushes/<kernel>/timed.json: {"run", "bundle", "rows", "timing", "score", "oof", "note"}.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths, records
from kaggle_llm.competition.competition import SAMPLE, TEST, TRAIN, read_csv
from kaggle_llm.competition.rankings import answer_columns
from kaggle_llm.kaggle.bundle import identify_bundle, make_slug, read_run, seal_dataset
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
from kaggle_llm.kaggle.rows import draw_rows, rename_rows
from kaggle_llm.weights.ship import describe_cv

if TYPE_CHECKING:
    import polars as pl

TIMED = "timed.json"
ENDING = "timed"  # of the kernel's slug: the submission's own kernel is another one


def push_timed(run: str, rows: int, accept_parity: str = "") -> dict[str, Any]:
    """Time and score of the bundle on `rows` held-out rows, measured on Kaggle; more rows than there are repeat them.

    Raises as `push_run` does.
    """
    folder, manifest = open_bundle(run, accept_parity)
    test, truth, validated = draw_held_out(run, rows)
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
        "rows": test.height,
        "timing": records.read_json(output / "timing.json"),
        **score_output(run, output, truth, validated),
        "note": manifest.get("note", ""),
    }
    records.write_json(paths.pushes_folder(slug) / TIMED, timed)
    print(describe_timed(timed), flush=True)
    return timed


def draw_held_out(run: str, rows: int) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """test.csv's rows, their truth (id, items), and their out-of-fold RANKING under the same ids.

    From the validated rows of the fold whose weights ship, or of all folds where no fold's alone do.
    """
    import polars as pl

    competition, validated = competition_of(run), pl.read_parquet(paths.run_folder(run) / "oof.parquet")
    if not describe_cv(read_run(run).settings["config"]):
        validated = validated.filter(pl.col("fold") == validated["fold"].min())
    truth = competition.truth(competition.table(TRAIN)).filter(pl.col("id").is_in(validated["id"].to_list()))
    test, column = competition.test_csv(truth["id"].to_list()), competition.tables[TEST].id
    if set(test[column]) != set(truth["id"]):
        raise ValueError(
            f"--rows: read() of {competition.settings.name} reshapes test.csv, so its rows cannot be drawn"
        )
    drawn, names = draw_rows(test, column, rows)
    return drawn, rename_rows(truth, names), rename_rows(validated.select(answer_columns(validated)), names)


def write_rows(run: str, manifest: dict[str, Any], test: pl.DataFrame) -> Path:
    """The dataset with the rows and a sample submission of them; no label is in it."""
    competition, slug = competition_of(run), make_slug(f"{manifest['competition']}-{run}", "rows")
    folder = paths.pushes_folder(slug) / slug
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    test.write_csv(folder / f"{TEST}.csv")
    ids = test[competition.tables[TEST].id].to_list()
    competition.sample_of(ids).write_csv(folder / f"{SAMPLE}.csv")
    seal_dataset(folder, "rows", {}, Hashes())
    return folder


def score_output(run: str, output: Path, truth: pl.DataFrame, validated: pl.DataFrame) -> dict[str, float]:
    """The metric on Kaggle's answers, and on the out-of-fold ones of the same rows."""
    competition = competition_of(run)
    found = competition.ranking_of(read_csv(output / "submission.csv"))
    lost = set(truth["id"]) - set(found["id"])
    if lost:
        raise ValueError(
            f"{paths.relative(output)}/submission.csv lacks {len(lost)} of {truth.height} rows, first {min(lost)}"
        )
    score = competition.metric.score
    return {"score": score(found, truth), "oof": score(validated, truth)}


def describe_timed(timed: dict[str, Any]) -> str:
    timing = timed["timing"]
    said = f"{timed['rows']} held-out rows on Kaggle: {timing['seconds']:.0f} s, "
    said += f"{timing['load_seconds'] + timing['install_seconds']:.0f} s of them before the first row; "
    said += f"score {timed['score']:.4f}, out of fold {timed['oof']:.4f}"
    return said + (f" ({timed['note']})" if timed["note"] else "")


def extrapolate_hours(timing: dict[str, Any], rows: int) -> float:
    """Hours for `rows` rows: what does not grow with them, and the rest in proportion."""
    fixed = timing["install_seconds"] + timing["load_seconds"]
    growing = max(timing["seconds"] - timing["load_seconds"], 0.0)
    return (fixed + growing * rows / max(timing["rows"], 1)) / 3600
