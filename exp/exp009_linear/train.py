"""A linear model of words and characters, fitted in seconds on one core: what a language model has to beat."""

from __future__ import annotations

from functools import partial

from predict import Config

from kaggle_llm.experiment.reports import take_best
from kaggle_llm.experiment.start import start
from kaggle_llm.tasks.heads import describe_head
from kaggle_llm.tasks.linear_model import fit_linear
from kaggle_llm.tasks.stacking import stack_rows


def main() -> None:
    experiment = start(__file__, Config)
    config, competition = experiment.config, experiment.competition
    settings = {"head": config.head, "linear": config.linear, "seed": config.seed}
    for part in experiment.parts():
        rows, columns = stack_rows(part.train, experiment.recorded, describe_head(config.head.task, competition))
        fit = partial(fit_linear, rows, competition, config.head.task, config.linear, config.seed, columns=columns)
        part.make("linear", fit, {"rows": rows, "columns": columns}, settings)
    experiment.score(before=take_best if config.members else None)
    experiment.ship()


if __name__ == "__main__":
    main()
