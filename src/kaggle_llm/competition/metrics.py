"""All metrics, and what makes one of your own, to import from one place; the files that they come from explain them."""

from kaggle_llm.competition.label_metrics import (
    accuracy,
    f_beta,
    log_loss,
    matthews_correlation,
    quadratic_kappa,
    quadratic_weighted_kappa,
    roc_auc,
    span_f_beta,
    token_f_beta,
)
from kaggle_llm.competition.metric import (
    Metric,
    bootstrap_interval,
    by_row,
    mean_metric,
    paired_difference,
    whole_metric,
)
from kaggle_llm.competition.ranked_metrics import mean_average_precision, mean_reciprocal_rank, ndcg, precision, recall
from kaggle_llm.competition.text_metrics import (
    bleu,
    chrf,
    exact_match,
    normalise_answer,
    numeric_match,
    repetition,
    rouge,
    sharpened_cosine,
    words,
)
from kaggle_llm.competition.value_metrics import pearson, root_mean_squared_error, spearman

__all__ = [
    "Metric",
    "accuracy",
    "bleu",
    "bootstrap_interval",
    "by_row",
    "chrf",
    "exact_match",
    "f_beta",
    "log_loss",
    "matthews_correlation",
    "mean_average_precision",
    "mean_metric",
    "mean_reciprocal_rank",
    "ndcg",
    "normalise_answer",
    "numeric_match",
    "paired_difference",
    "pearson",
    "precision",
    "quadratic_kappa",
    "quadratic_weighted_kappa",
    "recall",
    "repetition",
    "roc_auc",
    "root_mean_squared_error",
    "rouge",
    "sharpened_cosine",
    "span_f_beta",
    "spearman",
    "token_f_beta",
    "whole_metric",
    "words",
]
