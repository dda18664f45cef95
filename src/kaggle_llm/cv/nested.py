"""What is fitted on out-of-fold predictions: for a fold on the other folds', for what ships on all of them.

A temperature or a threshold that a row helped to fit promises too much for that row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from kaggle_llm.competition import TRAIN
from kaggle_llm.experiment import Ask, Experiment
from kaggle_llm.inference.heads import rank_prior

if TYPE_CHECKING:
    import polars as pl


class Decision(Protocol):
    """What is fitted."""

    def save(self, folder: Path) -> None: ...


Fit = Callable[["pl.DataFrame", "pl.DataFrame"], Decision]  # (predictions, truth)


class OutOfFold:
    """Predictions of every validated row by models that were trained without it, asked once and kept.

    models: fold → name → folder, all that `ask` of predict.py needs. name: of the steps, fold<k>/<name>.
    """

    def __init__(
        self,
        experiment: Experiment,
        fold: pl.Series,
        models: Callable[[int], Mapping[str, Path]],
        ask: Ask,
        name: str = "raw",
    ) -> None:
        self.experiment, self.fold, self.models, self.ask, self.name = experiment, fold, models, ask, name
        self.folds: list[int] = sorted(set(fold.to_list()) - {-1})
        self._said: dict[int, pl.DataFrame] = {}

    def predict(self, folds: Sequence[int]) -> pl.DataFrame:
        """What `ask` gave for the rows of these folds."""
        import polars as pl

        train = self.experiment.competition.table(TRAIN)
        for k in set(folds) - self._said.keys():
            rows = train.filter(self.fold == k)
            self._said[k] = self.experiment.ask(f"fold{k}/{self.name}", rows, self.models(k), self.ask)
        return pl.concat([self._said[k] for k in folds])

    def fit_for(self, k: int, name: str, fit: Fit) -> Path:
        """fold<k>/<name>, fitted on the other folds; raises ValueError where there is none."""
        others = [other for other in self.folds if other != k]
        if not others:
            raise ValueError(f"{name} of fold {k} is fitted on other folds: set folds.validate to two folds or more")
        return self._fit(f"fold{k}/{name}", others, fit)

    def fit_all(self, name: str, fit: Fit) -> Path:
        """<name>, fitted on all folds: for what ships."""
        return self._fit(name, self.folds, fit)

    def _fit(self, name: str, folds: Sequence[int], fit: Fit) -> Path:
        competition = self.experiment.competition
        found = self.predict(folds)
        rows = competition.table(TRAIN)
        truth = competition.truth(rows.filter(rows["id"].is_in(found["id"].to_list())))
        inputs = {"predictions": found, "truth": truth}
        return self.experiment.step(name, lambda folder: fit(found, truth).save(folder), inputs=inputs)


def score_prior(experiment: Experiment, fold: pl.Series) -> float:
    """The simplest rule: every row of a fold gets the labels' shares among the rows that its model was trained on."""
    import polars as pl

    competition = experiment.competition
    train, labels = competition.table(TRAIN), list(competition.legal_items() or [])
    truth = competition.truth(train)
    known = [dict(zip(items, shares, strict=True)) for items, shares in truth.select("items", "shares").iter_rows()]
    targets = [[own.get(label, 0.0) for label in labels] for own in known]
    said = []
    for k in sorted(set(fold.to_list()) - {-1}):
        trained = [target for target, own in zip(targets, fold.to_list(), strict=True) if own != k]
        said.append(rank_prior(train.filter(fold == k)["id"].to_list(), labels, trained))
    return competition.metric.score(pl.concat(said), truth)
