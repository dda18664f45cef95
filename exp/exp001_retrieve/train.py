"""BM25 and MiniLM, fused by reciprocal rank: the baseline that every reranker has to beat."""

from __future__ import annotations

from predict import Config

from kaggle_llm.experiment.start import start


def main() -> None:
    experiment = start(__file__, Config)
    experiment.score()
    experiment.ship()


if __name__ == "__main__":
    main()
