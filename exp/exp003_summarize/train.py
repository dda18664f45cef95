"""SmolLM2 fine-tuned with QLoRA to write the summary; the loss is on the summary's tokens alone.

Look at the printed length and repeated words beside ROUGE, and compare with a text's own first words. Winners gave a
mean answer where the model is unsure (prompt recovery), or voted over worked solutions (AIMO; tasks/vote.py).
"""

from __future__ import annotations

from predict import Config

from kaggle_llm.experiment.part import Part
from kaggle_llm.experiment.start import start
from kaggle_llm.tasks.writing_training import CompletionExample, GenerationTask, make_completions


def main() -> None:
    experiment = start(__file__, Config)
    for part in experiment.parts():
        part.learn("llm", GenerationTask(), make_examples)
    experiment.score()
    experiment.ship()


def make_examples(part: Part) -> list[CompletionExample]:
    """The first reference of each row, shuffled: training.tokens keeps the first examples."""
    rows = part.train.sample(fraction=1.0, shuffle=True, seed=part.config.seed)
    return make_completions(part.loaded, rows, part.competition.truth(rows))


if __name__ == "__main__":
    main()
