"""An ensemble of complete runs, weighted by a cross-fitted forward selection on their out-of-fold predictions."""

from __future__ import annotations

from predict import Config

from kaggle_llm.experiment.reports import report_members, take_best
from kaggle_llm.experiment.start import start


def main() -> None:
    experiment = start(__file__, Config)
    experiment.score(before=take_best)
    report_members(experiment)
    experiment.ship()


if __name__ == "__main__":
    main()
