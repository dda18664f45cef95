"""Reports that some experiments print beside their score."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from kaggle_llm.base import processes
from kaggle_llm.base.tables import print_table
from kaggle_llm.competition.metrics import mean_reciprocal_rank, ndcg, recall
from kaggle_llm.competition.rankings import answer_columns, select_rows, share_labels
from kaggle_llm.decisions.member_blend import share_firsts
from kaggle_llm.experiment.reliability import write_reliability
from kaggle_llm.tasks.heads import HeadKind, rank_prior
from kaggle_llm.tasks.linear import answer_by_rule, predict_by_length, predict_by_words

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.experiment.experiment import Experiment


def report_reliability(experiment: Experiment) -> None:
    """reliability.json and reliability.png of the out-of-fold predictions, with the decision and without it."""
    if not processes.is_first():
        return
    scores = experiment.scores
    rankings = {"raw": scores.apply_neutral(), "decided": scores.ranking}
    write_reliability(rankings, scores.truth, experiment.folder, experiment.name)


def score_prior(experiment: Experiment) -> float:
    """The metric of the simplest baseline: every row gets the labels' mean shares in its fold's training rows."""
    import polars as pl

    competition, train, fold = experiment.competition, experiment.train, experiment.fold
    labels = list(competition.legal_items() or [])
    targets = list(share_labels(competition.truth(train), labels).values())
    rankings = []
    for k in experiment.folds:
        trained = [target for target, own in zip(targets, fold.to_list(), strict=True) if own != k]
        rankings.append(rank_prior(experiment.rows_of(k)["id"].to_list(), labels, trained))
    return experiment.score_of(pl.concat(rankings))


def score_simple_rules(experiment: Experiment, task: HeadKind) -> dict[str, float]:
    """The metric of two baselines, each with its own decision: linear models of the texts' length and words."""
    if not processes.is_first():
        return {}
    import polars as pl

    scores = {}
    for name, rule in {"length alone": predict_by_length, "ridge on TF-IDF": predict_by_words}.items():
        answers = [
            answer_by_rule(rule, task, experiment.competition, experiment.train_of(k), experiment.rows_of(k))
            for k in experiment.folds
        ]
        scores[name] = experiment.score_of(experiment.scores.decide(pl.concat(answers), f" of {name}"))
    return scores


def score_retrieval(experiment: Experiment, rankings: Mapping[str, pl.DataFrame]) -> dict[str, float]:
    """recall, MRR and nDCG@10 of each named RANKING of the validated rows, the last one of seen and unseen rows too."""
    if not processes.is_first():
        return {}
    truth, scores = experiment.competition.truth(experiment.train), {}
    groups = group_rows(experiment)
    for name, ranking in rankings.items():
        for metric in (recall(1), recall(10), recall(100), mean_reciprocal_rank(), ndcg(10)):
            scores[f"{metric.name}, {name}"] = metric.score(ranking, truth)
        for group, ids in groups.items() if len(groups) > 1 else ():
            scores[f"ndcg@10, {name}, {group}"] = ndcg(10).score(select_rows(ranking, ids), truth)
    return scores


def group_rows(experiment: Experiment) -> dict[str, list[str]]:
    """Group → ids of the validated rows that are scored apart."""
    ids: dict[str, list[str]] = {}
    for k in experiment.folds:
        rows = experiment.rows_of(k)
        names = experiment.competition.groups(experiment.train_of(k), rows)
        for row, name in zip(rows["id"], names, strict=True):
            ids.setdefault(name, []).append(row)
    return ids


def take_best(experiment: Experiment) -> pl.DataFrame:
    """The out-of-fold RANKING of the best member, which an ensemble has to beat."""
    metric, truth = experiment.competition.metric, experiment.scores.truth
    return max(list_recorded(experiment), key=lambda answer: metric.sign * metric.score(answer, truth))


def list_recorded(experiment: Experiment) -> list[pl.DataFrame]:
    """The out-of-fold answers of each member, all in the order of the ensemble's own."""
    ids, recorded = experiment.scores.ranking["id"].to_list(), experiment.recorded
    return [select_rows(recorded[run].select(answer_columns(recorded[run])), ids) for run in experiment.members]


def report_members(experiment: Experiment) -> None:
    """Print each member's own score, its agreement with the best member, and its weights: shipped, and cross-fitted."""
    if not processes.is_first():
        return
    scores, members, metric = experiment.scores, experiment.members, experiment.competition.metric
    answers, best = list_recorded(experiment), take_best(experiment)
    shipped, decided = scores.shipped, scores.decided
    assert shipped is not None and decided is not None
    rows = [
        [
            *(run, f"{metric.score(answers[n], scores.truth):.4f}", f"{share_firsts(answers[n], best):.0%}"),
            *(f"{shipped.value.weights[n]:.2f}", " ".join(f"{part.weights[n]:.2f}" for part in decided.parts)),
        ]
        for n, run in enumerate(members)
    ]
    print_table(f"{metric.name} of members", ("member", "alone", "as the best", "weight", "weights of the parts"), rows)
    for run, weight in zip(members, shipped.value.weights, strict=True):
        if not weight:
            print(f"{run} has the weight 0: take it out of members, or it is shipped for nothing", flush=True)
