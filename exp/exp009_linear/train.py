"""A linear model of words and characters, fitted in seconds on one core: what a language model has to beat."""

from __future__ import annotations

from functools import partial

from predict import Config

from kaggle_llm.experiment.start import start
from kaggle_llm.tasks.linear_model import fit_linear


def main() -> None:
    experiment = start(__file__, Config)
    config, competition = experiment.config, experiment.competition
    settings = {"head": config.head, "linear": config.linear, "seed": config.seed}
    for part in experiment.parts():
        fit = partial(fit_linear, part.train, competition, config.head.task, config.linear, config.seed)
        part.make("linear", fit, {"rows": part.train}, settings)
    experiment.score()
    experiment.ship()


if __name__ == "__main__":
    main()
