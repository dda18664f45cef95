"""A small GPT-2, written out in model.py and trained from scratch for a minute, writes the misconception itself."""

from __future__ import annotations

from functools import partial

from learn import learn
from predict import Config

from kaggle_llm.experiment.start import start


def main() -> None:
    experiment = start(__file__, Config)
    config, competition = experiment.config, experiment.competition
    documents = competition.table(competition.documents)
    settings = {"model": config.model, "prompt": config.prompt, "fit": config.fit}

    for part in experiment.parts():
        labelled = part.train.join(documents, left_on=competition.target, right_on="id", maintain_order="left")
        inputs = {"labelled": labelled, "documents": documents}
        part.make("gpt2", partial(learn, labelled, documents, config), inputs, settings)
    experiment.score()
    experiment.ship()


if __name__ == "__main__":
    main()
