"""The names of metrics as `kaggle-llm init --metric` takes them, and the code that they stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable

METRICS = {  # --metric → the function of competition/metrics.py and its arguments
    "accuracy": "accuracy()",
    "auc": 'roc_auc("{positive}")',
    "bleu": "bleu()",
    "chrf": "chrf()",
    "exact_match": "exact_match()",
    "f": "f_beta({k}, {labels})",
    "log_loss": "log_loss({labels})",
    "map": "mean_average_precision({k})",
    "mcc": "matthews_correlation()",
    "mcrmse": "root_mean_squared_error()",
    "mrr": "mean_reciprocal_rank()",
    "ndcg": "ndcg({k})",
    "pearson": "pearson()",
    "precision": "precision({k})",
    "qwk": "quadratic_weighted_kappa({labels})",
    "recall": "recall({k})",
    "rmse": "root_mean_squared_error()",
    "rouge1": 'rouge("rouge1")',
    "rouge2": 'rouge("rouge2")',
    "rougeL": 'rouge("rougeL")',
    "span_f": "span_f_beta({k})",
    "spearman": "spearman()",
    "token_f": "token_f_beta({k})",
}
NUMBERS, PROBABILITIES, SPANS = ("mcrmse", "pearson", "rmse", "spearman"), ("auc", "log_loss"), ("span_f", "token_f")
USUAL = {  # form → the metric that is assumed
    "LabelColumns": "log_loss",
    "NumberColumns": "rmse",
    "OneLabel": "accuracy",
    "OneProbability": "auc",
    "ProbabilityColumns": "auc",
    "RankedItems": "map",
    "RankedLabels": "map",
    "SeveralItems": "map",
    "Texts": "rougeL",
    "TokenSpans": "token_f1",
}


def split_metric(asked: str) -> tuple[str, str]:
    """map@25 → map, 25; the name is a key of METRICS where it is known."""
    match = re.fullmatch(r"([A-Za-z_]+?)@?(\d*)", asked)
    name, k = match.groups() if match else (asked, "")
    name = f"{name.removesuffix('_l')}L" if name.endswith("_l") else name
    known = {key: key for key in METRICS} | {"rougel": "rougeL", "rouge": "rougeL"}
    return (known[f"{name}{k}"], "") if f"{name}{k}" in known else (known.get(name, name), k)


def write_metric(form: str, labels: Iterable[str], cut: int, asked: str) -> str:
    """The metric as Python; raises ValueError for one that METRICS lacks, or that scores other answers."""
    name, k = split_metric(asked or USUAL[form])
    if name not in METRICS:
        known = ", ".join(METRICS)
        raise ValueError(f"unknown --metric {asked}: there are {known}; how to write another: docs/competition.md")
    if form not in list_forms(name):
        raise ValueError(
            f"--metric {asked} scores {' or '.join(list_forms(name))}, but the files look like {form}: "
            f"say another --metric or --target, or leave both out and write the form by hand (docs/competition.md)"
        )
    listed = "tuple(labels)" if isinstance(labels, dict) else "labels"
    positive = [*labels, "1"][min(len([*labels]), 2) - 1]
    return METRICS[name].format(k=k or cut or 1, labels=listed, positive=positive)


def list_forms(name: str) -> list[str]:
    """The forms that a metric scores."""
    if name in NUMBERS:
        return ["NumberColumns"]
    if name in SPANS:
        return ["TokenSpans"]
    if name == "auc":
        return ["OneProbability", "ProbabilityColumns"]
    if name in PROBABILITIES:
        return ["LabelColumns", "OneProbability"]
    if "{labels}" in METRICS[name]:
        return ["LabelColumns", "OneLabel", "OneProbability"]
    return [form for form in USUAL if form not in ("NumberColumns", "ProbabilityColumns", "TokenSpans")]
