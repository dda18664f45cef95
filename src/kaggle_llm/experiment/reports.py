"""What some experiments tell beside their score."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kaggle_llm.base import processes
from kaggle_llm.base.tables import print_table
from kaggle_llm.decisions.member_blend import share_firsts
from kaggle_llm.experiment.reliability import write_reliability
from kaggle_llm.tasks.heads import rank_prior

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.experiment.experiment import Experiment


def report_reliability(experiment: Experiment) -> None:
    """reliability.json and reliability.png of the out-of-fold rows: as they count, and before the decision."""
    if not processes.is_first():
        return
    scores = experiment.scores
    found = {"raw": scores.apply_neutral(), "decided": scores.ranking}
    write_reliability(found, scores.truth, experiment.folder, experiment.name)


def score_prior(experiment: Experiment) -> float:
    """The simplest rule: every row of a fold gets the labels' shares among the rows that its model was trained on."""
    import polars as pl

    competition, train, fold = experiment.competition, experiment.train, experiment.fold
    labels, truth = list(competition.legal_items() or []), competition.truth(train)
    known = [dict(zip(items, shares, strict=True)) for items, shares in truth.select("items", "shares").iter_rows()]
    targets = [[own.get(label, 0.0) for label in labels] for own in known]
    said = []
    for k in experiment.folds:
        trained = [target for target, own in zip(targets, fold.to_list(), strict=True) if own != k]
        said.append(rank_prior(experiment.rows_of(k)["id"].to_list(), labels, trained))
    return experiment.score_of(pl.concat(said))


def take_best(experiment: Experiment) -> pl.DataFrame:
    """The out-of-fold RANKING of the best member alone: what an ensemble has to beat."""
    metric, scores = experiment.competition.metric, experiment.scores
    parts = list_members(scores.scored)
    return max(parts, key=lambda part: metric.sign * metric.score(part, scores.truth))


def list_members(said: pl.DataFrame) -> list[pl.DataFrame]:
    """What each member said, in their order."""
    return [said.filter(said["member"] == number).drop("member") for number in sorted(set(said["member"].to_list()))]


def report_members(experiment: Experiment) -> None:
    """Each member's own score, how often it answers as the best one does, its weight, and those of the parts."""
    if not processes.is_first():
        return
    scores, members, metric = experiment.scores, experiment.members, experiment.competition.metric
    parts, best, shipped, decided = list_members(scores.scored), take_best(experiment), scores.shipped, scores.decided
    assert shipped is not None and decided is not None
    rows = [
        [
            *(run, f"{metric.score(parts[n], scores.truth):.4f}", f"{share_firsts(parts[n], best):.0%}"),
            *(f"{shipped.value.weights[n]:.2f}", " ".join(f"{part.weights[n]:.2f}" for part in decided.parts)),
        ]
        for n, run in enumerate(members)
    ]
    print_table(f"{metric.name} of members", ("member", "alone", "as the best", "weight", "weights of the parts"), rows)
    for run, weight in zip(members, shipped.value.weights, strict=True):
        if not weight:
            print(f"{run} has the weight 0: take it out of members, or it travels for nothing", flush=True)
