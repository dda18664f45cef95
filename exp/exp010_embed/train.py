"""MiniLM fine-tuned to find the right document: contrastive, with hard negatives that it mines again each epoch.

Look at the encoder's nDCG@10 for seen and unseen targets: one that learns targets by heart gains on the first only. A
decoder as encoder: embedding.pooling=last lora.method=qlora. Winners (Eedi) used embedders of 7B to 14B and negatives
mined by their own earlier rounds.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from predict import Config, search_dense

from kaggle_llm.experiment.part import Part
from kaggle_llm.experiment.reports import score_retrieval
from kaggle_llm.experiment.start import start
from kaggle_llm.tasks.embedding import train_embedder
from kaggle_llm.tasks.embedding_teacher import read_taught
from kaggle_llm.training.trainer import Job, describe_conditions


def main() -> None:
    experiment = start(__file__, Config)
    before = experiment.ask(search_dense, "the untrained encoder")
    for part in experiment.parts():
        learn(part)
    after = experiment.ask(search_dense, "the trained encoder")
    experiment.score(score_retrieval(experiment, {"untrained": before, "trained": after}))
    experiment.ship()


def learn(part: Part) -> None:
    """Train on every right document of the part's rows, against all documents."""
    config, loaded, base = part.config, part.loaded, part.run.model("encoder")
    queries, documents = loaded.queries(part.train), loaded.texts
    job = Job(base, Path(), config.lora, config.training, config.seed, part.experiment.about)
    taught = read_taught(config.distillation, list(queries))
    make = partial(train_embedder, config.embedding, queries, documents, part.truth, job, taught)
    inputs = {"queries": queries, "documents": documents, "truth": part.truth, "base": base, "taught": taught.scores}
    settings = {"embedding": config.embedding, "distillation": config.distillation, **describe_conditions(job)}
    part.make("encoder", make, inputs, settings, together=True)


if __name__ == "__main__":
    main()
