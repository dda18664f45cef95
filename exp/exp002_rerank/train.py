"""SmolLM2 fine-tuned with LoRA to say Yes for the right candidate, blended with the retrieval's rank."""

from __future__ import annotations

from predict import Config

from kaggle_llm.engines.prompts import TokenGroup
from kaggle_llm.experiment.part import Part
from kaggle_llm.experiment.start import start
from kaggle_llm.retrieval.negatives import draw_groups
from kaggle_llm.tasks.choice_training import ChoiceTask


def main() -> None:
    experiment = start(__file__, Config)
    for part in experiment.parts():
        task = ChoiceTask(experiment.config.choice, part.prompter("reranker").labels)
        part.learn("reranker", task, make_groups)
    experiment.score()
    experiment.ship()


def make_groups(part: Part) -> list[TokenGroup]:
    """The right candidate of every row among hard negatives: wrong candidates that the retrieval ranks high."""
    config, candidates = part.config, part.loaded.retriever.search(part.train)
    drawn = draw_groups(candidates, part.truth, config.choice.group_size, config.depth, config.seed)
    return part.loaded.prompts.groups(part.train, drawn)


if __name__ == "__main__":
    main()
