"""An encoder with a head for levels, classes or numbers; levels are cut by thresholds fitted for the kappa.

A causal model as body: models.body=input/models/SmolLM2-135M-Instruct lora.method=lora; quantize.scheme=gptq then
quantises all but the head. Look at the printed TF-IDF ridge: a head below it has not read the texts. Winners (AES 2.0)
voted with models that had thresholds of their own, scored on rows of the test set's source.
"""

from __future__ import annotations

from predict import Config

from kaggle_llm.experiment.part import Part
from kaggle_llm.experiment.reports import score_simple_rules
from kaggle_llm.experiment.start import start
from kaggle_llm.tasks.heads_training import HeadExample, list_head_examples, make_head_task


def main() -> None:
    experiment = start(__file__, Config)
    for part in experiment.parts():
        part.learn("body", make_head_task(part.loaded, part.competition, part.train), make_examples)
    experiment.score(score_simple_rules(experiment, experiment.config.head.task))
    experiment.ship()


def make_examples(part: Part) -> list[HeadExample]:
    """Every row's text with its label or numbers."""
    rows = part.train.sample(fraction=1.0, shuffle=True, seed=part.config.seed)
    return list_head_examples(part.loaded, part.competition, rows)


if __name__ == "__main__":
    main()
