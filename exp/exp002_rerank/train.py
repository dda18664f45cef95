"""SmolLM2 fine-tuned with LoRA to say Yes for the right candidate, blended with the retrieval's rank.

Winners (Eedi) blended rerankers of 14B to 72B by rank.
"""

from __future__ import annotations

from predict import Config

from kaggle_llm.engines.prompts import Group
from kaggle_llm.experiment.part import Part
from kaggle_llm.experiment.start import start
from kaggle_llm.retrieval.negatives import draw_groups


def main() -> None:
    experiment = start(__file__, Config)
    for part in experiment.parts():
        part.loaded.reranker.learn(part, draw_candidates)
    experiment.score()
    experiment.ship()


def draw_candidates(part: Part, size: int) -> list[Group]:
    """The right candidate of every row among hard negatives: wrong candidates that the retrieval ranks high."""
    config, retrieved = part.config, part.loaded.retriever.search(part.train)
    return draw_groups(retrieved, part.truth, size, config.depth, config.seed)


if __name__ == "__main__":
    main()
