"""SmolLM2 fine-tuned with LoRA to say Yes for the right candidate, blended with the retrieval's rank."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from predict import Config

from kaggle_llm.engines.prompts import TokenGroup
from kaggle_llm.experiment.part import Part
from kaggle_llm.experiment.start import start
from kaggle_llm.retrieval.negatives import draw_groups
from kaggle_llm.tasks.cross_encoder_training import fill_cross_encoder, label_pairs
from kaggle_llm.tasks.windows_training import make_rerank_task, mix_examples
from kaggle_llm.training.trainer import Job, describe_conditions


def main() -> None:
    experiment = start(__file__, Config)
    config = experiment.config
    for part in experiment.parts():
        if config.reranker == "cross_encoder":
            learn_pairs(part)
        else:
            task = make_rerank_task(config.reranker, config.choice, config.windows, part.prompter("reranker"))
            part.learn("reranker", task, make_groups)
    experiment.score()
    experiment.ship()


def make_groups(part: Part) -> list[TokenGroup]:
    """The right candidate of every row among hard negatives: wrong candidates that the retrieval ranks high."""
    config, candidates = part.config, part.loaded.retriever.search(part.train)
    drawn = draw_groups(candidates, part.truth, config.choice.group_size, config.depth, config.seed)
    groups: list[TokenGroup] = part.loaded.prompts.groups(part.train, drawn)
    if config.reranker == "pointwise":
        return groups
    drawn = draw_groups(candidates, part.truth, config.windows.size, config.depth, config.seed)
    windows: list[TokenGroup] = part.loaded.windows.examples(part.train, drawn)
    return mix_examples(groups, windows, seed=config.seed) if config.reranker == "both" else windows


def learn_pairs(part: Part) -> None:
    """A cross-encoder learns the same groups as pairs of texts."""
    config, retriever, base = part.config, part.loaded.retriever, part.run.model("cross_encoder")
    candidates = retriever.search(part.train)
    drawn = draw_groups(candidates, part.truth, config.choice.group_size, config.depth, config.seed)
    pairs = label_pairs(drawn, retriever.queries(part.train), retriever.texts)
    job = Job(base, Path(), config.lora, config.training, config.seed, part.experiment.about)
    make = partial(fill_cross_encoder, config.cross_encoder, pairs, job)
    settings = {"cross_encoder": config.cross_encoder, **describe_conditions(job)}
    part.make("cross_encoder", make, {"pairs": pairs, "base": base}, settings, together=True)


if __name__ == "__main__":
    main()
