"""What is fitted on out-of-fold predictions never sees the fold that it is scored on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kaggle_llm import records
from kaggle_llm.cv.nested import OutOfFold, score_prior
from kaggle_llm.metrics import log_loss


@dataclass(frozen=True)
class Seen:
    """A decision that remembers what it was fitted on."""

    ids: tuple[str, ...]
    right: tuple[str, ...]

    def save(self, folder: Path) -> None:
        records.write_json(folder / "seen.json", {"ids": self.ids, "right": self.right})


def fit(predictions: pl.DataFrame, truth: pl.DataFrame) -> Seen:
    return Seen(tuple(predictions["id"]), tuple(truth["items"].list.first()))


class FakeCompetition:
    metric = log_loss(("a", "b"))

    def table(self, name: str) -> pl.DataFrame:
        return pl.DataFrame({"id": list("pqrstu"), "label": list("ababba")})

    def legal_items(self) -> list[str]:
        return ["a", "b"]

    def truth(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows.select("id", items=pl.concat_list("label"), shares=pl.lit([1.0]))


class FakeExperiment:
    """Steps in a folder; what is asked is the rows themselves, and it is counted."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.competition, self.asked = folder, FakeCompetition(), list[str]()

    def ask(self, name: str, rows: pl.DataFrame, models: Any, ask: Any) -> pl.DataFrame:
        self.asked.append(f"{name} with {models}")
        return rows.select("id")

    def step(self, name: str, make: Any, settings: Any = None, inputs: Any = None) -> Path:
        (self.folder / name).mkdir(parents=True)
        make(self.folder / name)
        return self.folder / name


@pytest.fixture
def experiment(tmp_path: Path) -> Any:
    return FakeExperiment(tmp_path)


FOLD = pl.Series("fold", [0, 1, 0, 1, 2, -1])


def test_a_fold_is_decided_by_the_others_and_what_ships_by_all(experiment: Any) -> None:
    found = OutOfFold(experiment, FOLD, lambda k: {"model": f"m{k}"}, None)
    assert found.folds == [0, 1, 2]
    assert records.read_json(found.fit_for(0, "t", fit) / "seen.json") == {"ids": list("qst"), "right": list("bbb")}
    assert sorted(records.read_json(found.fit_all("t", fit) / "seen.json")["ids"]) == list("pqrst")
    assert sorted(experiment.asked) == [f"fold{k}/raw with {{'model': 'm{k}'}}" for k in range(3)], "each asked once"


def test_one_fold_alone_is_refused(experiment: Any) -> None:
    found = OutOfFold(experiment, pl.Series([0, 0, -1, -1, -1, -1]), lambda k: {}, None)
    with pytest.raises(ValueError, match=r"temperature of fold 0 .* set folds.validate to two folds"):
        found.fit_for(0, "temperature", fit)


def test_the_prior_of_a_fold_is_counted_without_it(experiment: Any) -> None:
    """Fold 0 is p and r, both a; trained on b b b a: Laplace's shares are 2/6 and 4/6."""
    import math

    only = pl.Series([0, -1, 0, -1, -1, -1])
    assert score_prior(experiment, only) == pytest.approx(-math.log(2 / 6))
