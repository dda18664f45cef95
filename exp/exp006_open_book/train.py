"""SmolLM2 with LoRA says Yes to the right option, with passages of an encyclopedia in the prompt.

Your texts go into articles.csv. Look at the recall first, then at the score without passages: where that is as high,
the model knows the answers or the options give them away. Winners averaged several depths of overlapping passages of 90
words.
"""

from __future__ import annotations

from predict import Config, answer_closed, search

from kaggle_llm.engines.prompts import TokenGroup
from kaggle_llm.experiment.part import Part
from kaggle_llm.experiment.start import start
from kaggle_llm.retrieval.negatives import draw_groups
from kaggle_llm.retrieval.passages import add_context, cut_documents, rank_alike, report_recall
from kaggle_llm.tasks.choice_training import ChoiceTask


def main() -> None:
    experiment = start(__file__, Config)
    config, competition = experiment.config, experiment.competition
    passages = cut_documents(competition.table("articles"), config.passages)
    right = experiment.train.select("id", document="article")
    recall = report_recall(experiment.ask(search, "retrieval"), passages, right, config.context.depths)

    for part in experiment.parts():
        part.learn("reader", ChoiceTask(config.choice, part.prompter("reader").labels), make_groups)
    closed = experiment.score_of(experiment.ask(answer_closed, "without context"))
    experiment.score({**recall, "without context": closed})
    experiment.ship()


def make_groups(part: Part) -> list[TokenGroup]:
    """All options of a question as one group, with the passages that prediction would retrieve."""
    config, loaded = part.config, part.loaded
    rows = add_context(part.train, loaded.retriever.search(part.train), loaded.passages, config.context.taught)
    options, size = rank_alike(part.train, part.competition.legal_items()), config.choice.group_size
    return loaded.prompts.groups(rows, draw_groups(options, part.truth, size, size, config.seed))


if __name__ == "__main__":
    main()
