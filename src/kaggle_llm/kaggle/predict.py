"""What the notebook runs: the bundle's models on the mounted test set → submission.csv and ranking.parquet.

python -m kaggle_llm.kaggle.predict --bundle DIR --competition DIR --model NAME=DIR --working DIR --deadline EPOCH

submission.csv is there from the first seconds on, as the sample says it, and is replaced by what is better. Also leaves
origin.json (the folders that code and models really came from) and prediction.json (rows, what the time cut of how many
rows, seconds).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import kaggle_llm
from kaggle_llm import records
from kaggle_llm.competition import TEST, Competition, load_competition
from kaggle_llm.config import load_config
from kaggle_llm.inference.budget import budget_until, describe_cuts
from kaggle_llm.run import Run, answer, import_predict

if TYPE_CHECKING:
    import polars as pl

MANIFEST = "MANIFEST.json"
HASHED_BELOW = 100 * 2**20  # bytes; larger files are checked by their size alone


@dataclass(frozen=True)
class Mounts:
    """The folders that a prediction reads from and writes to."""

    bundle: Path
    competition: Path
    models: dict[str, Path]
    working: Path
    deadline: float
    """Seconds since the epoch."""

    @property
    def exp(self) -> Path:
        return self.bundle / "exp" / str(records.read_json(self.bundle / MANIFEST)["experiment"])


def parse_mounts(words: Sequence[str] | None = None) -> Mounts:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--competition", type=Path, required=True)
    parser.add_argument("--working", type=Path, required=True)
    parser.add_argument("--model", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--deadline", type=float, required=True, help="seconds since the epoch")
    given = parser.parse_args(words)
    models = {name: Path(folder) for name, _, folder in (text.partition("=") for text in given.model)}
    return Mounts(given.bundle, given.competition, models, given.working, given.deadline)


def open_run(mounts: Mounts) -> Run:
    """The bundle's Run: its config, its models, the mounted competition. Checks where the code comes from."""
    package = Path(kaggle_llm.__file__).resolve()
    if not package.is_relative_to(mounts.bundle.resolve()):
        raise ImportError(f"kaggle_llm comes from {package.parent}, not from the bundle {mounts.bundle}")
    config = load_config(mounts.bundle / "config.yaml", import_predict(mounts.exp).Config)
    competition = load_competition(config.competition, mounts.competition)
    offer = partial(offer_submission, competition, mounts.working)
    return Run(config, competition, mounts.models, budget_until(mounts.deadline), offer)


def write_submission(competition: Competition, working: Path, ranking: pl.DataFrame) -> None:
    """submission.csv, whole or not at all."""
    records.write_text(working / "submission.csv", competition.submission(ranking).write_csv())


def offer_submission(competition: Competition, working: Path, ranking: pl.DataFrame) -> None:
    """The same while the prediction goes on: what cannot be written is said, and the one from before stays."""
    with say_what_is_not_written():
        write_submission(competition, working, ranking)
        print(f"offered a submission of {ranking.height} rows", flush=True)


def offer_sample(competition: Competition, working: Path, ids: Sequence[str]) -> None:
    """The sample submission is one before anything is computed, where it has the rows of the test set."""
    sample = competition.sample()
    if sample[sample.columns[0]].to_list() == list(ids):
        with say_what_is_not_written():
            records.write_text(working / "submission.csv", sample.write_csv())


@contextmanager
def say_what_is_not_written() -> Iterator[None]:
    """A full disk is no reason to end: until the last submission it may have room again."""
    try:
        yield
    except OSError as error:
        print(f"the submission stays as it was: {error}", flush=True)


def predict_test(exp: Path, run: Run, working: Path) -> pl.DataFrame:
    """The RANKING of the test set, and submission.csv."""
    rows = run.competition.table(TEST)
    print(f"{rows.height} rows", flush=True)
    offer_sample(run.competition, working, rows["id"].to_list())
    ranking = answer(exp, run, rows)
    write_submission(run.competition, working, ranking)
    return ranking


def check_dataset(folder: Path) -> None:
    """Every file that the dataset's manifest lists is there, with its size, and its hash where it is small."""
    for entry in records.read_json(folder / MANIFEST)["files"]:
        path = folder / entry["path"]
        if not path.is_file():
            raise FileNotFoundError(f"{entry['path']} is missing in {folder}: was the upload cut?")
        size = path.stat().st_size
        if size != entry["bytes"] or (size < HASHED_BELOW and records.hash_file(path) != entry["sha256"]):
            raise ValueError(f"{path} is not the file of the manifest ({size} bytes, {entry['bytes']} expected)")


def main() -> None:
    start = time.monotonic()
    mounts = parse_mounts()
    for folder in (mounts.bundle, *(path.parent for path in mounts.models.values())):
        check_dataset(folder)
    run = open_run(mounts)
    origin = {"package": Path(kaggle_llm.__file__).resolve(), **mounts.models}
    records.write_json(mounts.working / "origin.json", {name: str(path.resolve()) for name, path in origin.items()})
    print(f"models {', '.join(mounts.models)}, {mounts.deadline - time.time():.0f} s left", flush=True)
    ranking = predict_test(mounts.exp, run, mounts.working)
    ranking.write_parquet(mounts.working / "ranking.parquet")
    seconds = round(time.monotonic() - start, 1)
    done = {"rows": ranking.height, "cut": dict(run.budget.cuts), "seconds": seconds}
    records.write_json(mounts.working / "prediction.json", done)
    said = [f"submission.csv: {ranking.height} rows in {seconds:.0f} s", describe_cuts(run.budget.cuts)]
    print(", ".join(filter(None, said)), flush=True)


if __name__ == "__main__":
    main()
