"""BM25 and MiniLM, fused by reciprocal rank: the floor that every reranker has to beat."""

from __future__ import annotations

from predict import Config

from kaggle_llm.cv.audit import audit_folds
from kaggle_llm.cv.folds import assign_folds
from kaggle_llm.experiment import start
from kaggle_llm.paths import model_folder


def main() -> None:
    experiment = start(__file__, Config)
    config, competition = experiment.config, experiment.competition

    train = competition.table("train")
    fold = assign_folds(train[competition.target], config.folds)
    audit_folds(experiment, fold)
    models = {"encoder": model_folder(config.retrieval.encoder)}

    experiment.score(fold, models=lambda k: models)
    experiment.ship(**models)


if __name__ == "__main__":
    main()
