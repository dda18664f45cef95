"""An ensemble of complete runs, weighted by a cross-fitted forward selection on their out-of-fold predictions.

Members are complete runs with the same folds, none of them an ensemble of runs itself. One near 100 % in the column
`as the best` adds nothing, and one with the weight 0 ships and costs time: take both out. Winners blended by rank
(Eedi), by vote (essays, AIMO), by mean and maximum of scores.
"""

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
