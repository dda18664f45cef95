"""What the notebook runs: the bundle's models on the mounted test set → submission.csv and ranking.parquet.

python -m kaggle_llm.kaggle.predict --bundle DIR --competition DIR --place SLUG=DIR --working DIR --deadline EPOCH

submission.csv is a copy of the sample submission from the first seconds on, and is replaced by better ones: then there
is offered.json, and an error later costs the better answers, not the submission (boot.py). Also leaves
origin.json (the folders that code and models were loaded from) and prediction.json (rows, rows that the time limit cut
in each step, seconds, seconds of checks and loading, the hash of the bundle's content).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import kaggle_llm
from kaggle_llm.base import records
from kaggle_llm.base.config import load_config
from kaggle_llm.competition.competition import TEST, Competition, load_competition
from kaggle_llm.engines.loading import LOADS_VARIABLE, count_loading
from kaggle_llm.inference.budget import budget_until, describe_cuts
from kaggle_llm.inference.model import Model, read_model
from kaggle_llm.inference.run import Run, answer, import_predict

if TYPE_CHECKING:
    import polars as pl

MANIFEST = "MANIFEST.json"
OFFERED = "offered.json"  # its presence says that submission.csv is more than the sample
HASHED_BELOW = 100 * 2**20  # bytes; larger files are hashed while an engine loads them


@dataclass(frozen=True)
class Mounts:
    """The folders that a prediction reads from and writes to."""

    bundle: Path
    competition: Path
    model_folders: dict[str, Path]
    """Slug of a dataset, or model source → the mounted model folder."""
    working: Path
    deadline: float
    """Seconds since the epoch."""

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """MANIFEST.json of the code dataset."""
        return dict(records.read_json(self.bundle / MANIFEST))

    @property
    def exp(self) -> Path:
        return self.bundle / "exp" / str(self.manifest["experiment"])

    @property
    def models(self) -> list[Model]:
        """The models that the run ships, as mounted."""
        return [read_model(described, self.model_folders.__getitem__) for described in self.manifest["models"]]


def parse_mounts(words: Sequence[str] | None = None) -> Mounts:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--competition", type=Path, required=True)
    parser.add_argument("--working", type=Path, required=True)
    parser.add_argument("--place", action="append", default=[], metavar="SLUG=DIR")
    parser.add_argument("--deadline", type=float, required=True, help="seconds since the epoch")
    options = parser.parse_args(words)
    folders = {slug: Path(folder) for slug, _, folder in (text.partition("=") for text in options.place)}
    return Mounts(options.bundle, options.competition, folders, options.working, options.deadline)


def open_run(mounts: Mounts) -> Run:
    """The bundle's Run: config, models, mounted competition. Raises ImportError where other code than its own runs."""
    package = Path(kaggle_llm.__file__).resolve()
    if not package.is_relative_to(mounts.bundle.resolve()):
        raise ImportError(f"kaggle_llm comes from {package.parent}, not from the bundle {mounts.bundle}")
    config = load_config(mounts.bundle / "config.yaml", import_predict(mounts.exp).Config)
    competition = load_competition(config.competition, mounts.competition)
    offer = partial(offer_submission, competition, mounts.working)
    return Run(config, competition, mounts.models, budget_until(mounts.deadline), offer)


def write_submission(competition: Competition, working: Path, ranking: pl.DataFrame) -> None:
    """Write submission.csv, whole or not at all."""
    records.write_text(working / "submission.csv", competition.submission(ranking).write_csv())


def offer_submission(competition: Competition, working: Path, ranking: pl.DataFrame) -> None:
    """Write a better submission.csv during the prediction; where that fails, the one before stays."""
    with keep_going_on_full_disk():
        write_submission(competition, working, ranking)
        records.write_json(working / OFFERED, {"rows": ranking.height})
        print(f"offered a submission of {ranking.height} rows", flush=True)


def offer_sample(competition: Competition, working: Path, ids: Sequence[str]) -> None:
    """Write the sample submission before anything is computed, where it has the ids of the test set."""
    sample = competition.sample()
    if sample[sample.columns[0]].to_list() == list(ids):
        with keep_going_on_full_disk():
            records.write_text(working / "submission.csv", sample.write_csv())


@contextmanager
def keep_going_on_full_disk() -> Iterator[None]:
    """Print an OSError and go on: until the last submission the disk may have room again."""
    try:
        yield
    except OSError as error:
        print(f"the submission stays as it was: {error}", flush=True)


def predict_test(exp: Path, run: Run, working: Path, before: Callable[[], None] = lambda: None) -> pl.DataFrame:
    """The RANKING of the test set, and submission.csv. before: called before the last one is written."""
    rows = run.competition.table(TEST)
    print(f"{rows.height} rows", flush=True)
    offer_sample(run.competition, working, rows["id"].to_list())
    ranking = answer(exp, run, rows)
    before()
    write_submission(run.competition, working, ranking)
    return ranking


def check_mounts(mounts: Mounts) -> list[tuple[Path, str]]:
    """Check every dataset and model source; returns the large files with the hashes that are still to be checked."""
    sources, large = mounts.manifest["sources"], check_dataset_files(mounts.bundle)
    for name, folder in mounts.model_folders.items():
        large += check_files(folder, sources[name]) if name in sources else check_dataset_files(folder.parent)
    return large


def check_dataset_files(folder: Path) -> list[tuple[Path, str]]:
    return check_files(folder, records.read_json(folder / MANIFEST)["files"])


def check_files(folder: Path, entries: Sequence[Mapping[str, Any]]) -> list[tuple[Path, str]]:
    """Check that every listed file has its size, and its hash if it is small; returns the large ones with their hash.

    Raises FileNotFoundError for a missing file, ValueError for another size or content.
    """
    large = []
    for entry in entries:
        path = folder / entry["path"]
        if not path.is_file():
            raise FileNotFoundError(f"{entry['path']} is missing in {folder}: was the upload cut?")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise ValueError(f"{path} is not the file of the manifest ({size} bytes, {entry['bytes']} expected)")
        if size >= HASHED_BELOW:
            large.append((path, entry["sha256"]))
        else:
            check_hash(path, entry["sha256"])
    return large


def check_hash(path: Path, sha256: str) -> None:
    digest = records.hash_file(path)
    if digest != sha256:
        raise ValueError(f"{path} is not the file of the manifest (sha256 {digest[:12]}, {sha256[:12]} expected)")


@contextmanager
def hash_beside(files: Sequence[tuple[Path, str]]) -> Iterator[Callable[[], None]]:
    """Hash large files while the engine loads them; yields a function that waits and raises ValueError on a mismatch.

    Checked even where the engine fails first: its own message about a damaged file may name anything.
    """
    with ThreadPoolExecutor(1) as executor:
        checks = [executor.submit(check_hash, *entry) for entry in files]

        def finish() -> None:
            for check in checks:
                check.result()

        try:
            yield finish
        finally:
            finish()


def main() -> None:
    start = time.monotonic()
    mounts = parse_mounts()
    large = check_mounts(mounts)
    run = open_run(mounts)
    origin = {"package": Path(kaggle_llm.__file__).resolve(), **mounts.model_folders}
    records.write_json(mounts.working / "origin.json", {name: str(path.resolve()) for name, path in origin.items()})
    labels = ", ".join(model.label for model in mounts.models)
    print(f"models {labels}, {mounts.deadline - time.time():.0f} s left", flush=True)
    checked = time.monotonic() - start
    with TemporaryDirectory() as folder, hash_beside(large) as finish:
        loads = Path(folder) / "loads"
        loads.touch()
        os.environ[LOADS_VARIABLE] = str(loads)
        ranking = predict_test(mounts.exp, run, mounts.working, finish)
        loading = count_loading(loads)
    ranking.write_parquet(mounts.working / "ranking.parquet")
    seconds = round(time.monotonic() - start, 1)
    prediction = {
        "rows": ranking.height,
        "cut": dict(run.budget.cuts),
        "seconds": seconds,
        "load_seconds": round(checked + loading, 1),
        "content": mounts.manifest["content"],
        "sha256": records.hash_file(mounts.working / "submission.csv"),
    }
    records.write_json(mounts.working / "prediction.json", prediction)
    parts = [f"submission.csv: {ranking.height} rows in {seconds:.0f} s", describe_cuts(run.budget.cuts)]
    print(", ".join(filter(None, parts)), flush=True)


if __name__ == "__main__":
    main()
