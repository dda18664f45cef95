"""SmolLM2 with LoRA picks the better of two answers, asked in both orders and calibrated by a temperature.

It is easy to be worse than the printed log loss of the labels' shares. Winners (LMSYS, WSDM) distilled 70B teachers'
soft labels into 9B to 14B, averaged adapters over folds, and shipped 8 bits.
"""

from __future__ import annotations

from predict import Config

from kaggle_llm.engines.prompts import TokenGroup
from kaggle_llm.experiment.part import Part
from kaggle_llm.experiment.reports import report_reliability, score_prior
from kaggle_llm.experiment.start import start
from kaggle_llm.tasks.choice_training import ChoiceSettings, ChoiceTask
from kaggle_llm.tasks.pairs import list_pair_examples


def main() -> None:
    experiment = start(__file__, Config)
    for part in experiment.parts():
        part.learn("llm", ChoiceTask(ChoiceSettings(form="labels"), part.prompter("llm").labels), make_examples)
    experiment.score({"shares of training": score_prior(experiment)})
    report_reliability(experiment)
    experiment.ship()


def make_examples(part: Part) -> list[TokenGroup]:
    """Every pair in both orders, with the voters' shares as targets."""
    rows = part.train.sample(fraction=1.0, shuffle=True, seed=part.config.seed)
    labels, truth = part.competition.legal_items(), part.competition.truth(rows)
    return list_pair_examples(rows, truth, labels, part.loaded, part.config.orders, part.config.seed)


if __name__ == "__main__":
    main()
