"""An ensemble of complete runs, each weighted by what it adds on rows that no weight was fitted on."""

from __future__ import annotations

from predict import Config

from kaggle_llm.cv.audit import audit_folds
from kaggle_llm.cv.blends import find_common_fold, fit_members
from kaggle_llm.experiment import start


def main() -> None:
    experiment = start(__file__, Config)
    train = experiment.competition.table("train")
    fold = find_common_fold(train, experiment.recorded)
    audit_folds(experiment, fold)
    fitted = fit_members(experiment, train.filter(fold >= 0))

    experiment.score(fold, lambda k: {"blend": fitted.nested}, lambda k: {"blend": fitted.best}, fitted.also)
    experiment.ship(blend=fitted.shipped)


if __name__ == "__main__":
    main()
