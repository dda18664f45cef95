"""Weights of an ensemble's members, fitted on their out-of-fold answers, and nested for the score that is told.

A row's score under weights that it helped to fit promises too much. So the rows are dealt into parts, groups whole, and
a row is blended by the weights that the other parts gave: that is CV. What ships is fitted on all rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kaggle_llm import paths, records
from kaggle_llm.borrowed import find_member
from kaggle_llm.cv.folds import ALWAYS_TRAIN, FoldSettings, assign_folds
from kaggle_llm.inference.members import Member
from kaggle_llm.rankings import make_ranking, select_rows
from kaggle_llm.tables import print_table

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.experiment import Experiment
    from kaggle_llm.metrics import Metric
    from kaggle_llm.run import Run

Space = Literal["probability", "log", "rank"]
SMALLEST = 1e-15  # of a probability: its logarithm stays finite
Row = tuple[list[str], list[float]]  # items and scores


@dataclass
class BlendSettings:
    space: Space = "log"
    """What is averaged of each item: its probability in the row (a softmax of the scores), the logarithm of that, or
    the logarithm of its place."""
    parts: int = 5
    """Parts of the validated rows: each is scored by weights that were fitted on the others."""
    rounds: int = 20
    """Members that the selection takes at most, one of them as often as it helps."""

    def __post_init__(self) -> None:
        if self.parts < 2 or self.rounds < 1:
            raise ValueError(f"parts = {self.parts}, rounds = {self.rounds}: two parts and a round are needed")


@dataclass(frozen=True)
class MemberBlend:
    """Members that are complete runs, and their weights."""

    space: Space
    members: tuple[Mapping[str, Any], ...]
    """Of each: run, experiment, and its resolved config."""
    weights: tuple[float, ...]
    nested: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Row id → the weights that it did not help to fit; rows that are not in it have `weights`."""

    def weigh(self, counts: Sequence[float]) -> MemberBlend:
        """The same members with these weights, made to sum to 1."""
        return replace(self, weights=tuple(count / sum(counts) for count in counts))

    def take_alone(self) -> list[MemberBlend]:
        """Each member by itself."""
        return [self.weigh([float(n == m) for m in range(len(self.members))]) for n in range(len(self.members))]

    def list_asked(self) -> list[int]:
        """The members whose answer counts for some row, the heaviest first."""
        counted = {n for weights in (self.weights, *self.nested.values()) for n, weight in enumerate(weights) if weight}
        return sorted(counted, key=lambda n: (-self.weights[n], n))

    def list_members(self, run: Run) -> list[Member]:
        """Those of `list_asked` as run.answer_together asks them."""
        if run.exp is None:
            raise ValueError("members are asked through run.answer: it says where their experiments lie")
        found = []
        for number in self.list_asked():
            about = self.members[number]
            exp, models = run.exp.parent / about["experiment"], find_member(run.models, number)
            config = about["config"] | {"competition": asdict(run.config.competition)}
            found.append(Member(exp, config, models, run.recorded.get(about["run"])))
        return found

    def combine(self, answers: Mapping[int, pl.DataFrame]) -> pl.DataFrame:
        """RANKINGs of the same rows, by their place among the asked members → one; weights of absent ones fall away."""
        asked = self.list_asked()
        ids = next(iter(answers.values()))["id"].to_list()
        columns = [answer.select("items", "scores").iter_rows() for answer in answers.values()]
        mixed = []
        for row_id, *rows in zip(ids, *columns, strict=True):
            weights = self.nested.get(row_id, self.weights)
            mixed.append(mix_rows(rows, [weights[asked[place]] for place in answers], self.space))
        return make_ranking(ids, [items for items, _ in mixed], [scores for _, scores in mixed])

    def save(self, folder: Path) -> None:
        records.write_json(folder / "blend.json", asdict(self))

    @classmethod
    def load(cls, folder: Path) -> MemberBlend:
        saved = records.read_json(folder / "blend.json")
        nested = {row: tuple(weights) for row, weights in saved["nested"].items()}
        return cls(saved["space"], tuple(saved["members"]), tuple(saved["weights"]), nested)


def mix_rows(rows: Sequence[Row], weights: Sequence[float], space: Space) -> Row:
    """One row's answers → items and the weighted mean of what they are worth in `space`; alike where all weights are 0.

    An item that an answer lacks has there the place behind the last, the lowest log-probability, or the probability 0.
    """
    total = sum(weights)
    shares = [weight / total for weight in weights] if total else [1 / len(weights)] * len(weights)
    worth = [value_items(*row, space) for row in rows]
    items = dict.fromkeys(item for values, _ in worth for item in values)
    means = {
        item: sum(s * values.get(item, rest) for s, (values, rest) in zip(shares, worth, strict=True)) for item in items
    }
    if space == "probability":
        means = {item: math.log(max(mean, SMALLEST)) for item, mean in means.items()}
    return list(means), list(means.values())


def value_items(items: list[str], scores: list[float], space: Space) -> tuple[dict[str, float], float]:
    """What each item of a row is worth, and what one is worth that the row lacks."""
    if space == "rank":
        return {item: -math.log(place) for place, item in enumerate(items, 1)}, -math.log(len(items) + 1)
    peak = max(scores, default=0.0)
    total = peak + math.log(sum(math.exp(score - peak) for score in scores)) if scores else 0.0
    logs = {item: score - total for item, score in zip(items, scores, strict=True)}
    if space == "log":
        return logs, min(logs.values(), default=math.log(SMALLEST))
    return {item: math.exp(value) for item, value in logs.items()}, 0.0


class Fit:
    """Members' answers of the same labelled rows, and weights fitted on some of them."""

    def __init__(
        self, blend: MemberBlend, answers: Sequence[pl.DataFrame], truth: pl.DataFrame, metric: Metric
    ) -> None:
        self.blend, self.answers, self.truth, self.metric = blend, answers, truth, metric

    def score(self, blend: MemberBlend) -> float:
        """The metric of the blended answers."""
        asked = {place: self.answers[number] for place, number in enumerate(blend.list_asked())}
        return self.metric.score(blend.combine(asked), self.truth)

    def fit_weights(self, rounds: int) -> tuple[float, ...]:
        """Weights that sum to 1, with the best metric that forward selection finds.

        It takes the best member, then again and again the one, taken before or not, that makes the mean best, and keeps
        the shortest selection that was best of all. Source: Caruana et al., Ensemble Selection from Libraries of
        Models, ICML 2004, sections 2 and 2.2 (with replacement).
        """
        taken, best, kept = [0] * len(self.answers), -math.inf, [0] * len(self.answers)
        for _ in range(rounds):
            tried = [[n + (m == member) for m, n in enumerate(taken)] for member in range(len(taken))]
            values = [self.metric.sign * self.score(self.blend.weigh(counts)) for counts in tried]
            taken = tried[values.index(max(values))]
            if max(values) > best:
                best, kept = max(values), taken
        return self.blend.weigh(kept).weights

    def among(self, ids: pl.Series) -> Fit:
        """The same on some of the rows."""
        chosen = [answer.filter(answer["id"].is_in(ids.to_list())) for answer in self.answers]
        return Fit(self.blend, chosen, self.truth, self.metric)


@dataclass(frozen=True)
class Fitted:
    """Folders with a MemberBlend each, and what is told beside the score."""

    nested: Path
    """Every validated row has the weights that the other parts gave."""
    best: Path
    """The best member alone."""
    shipped: Path
    """Weights fitted on all validated rows."""
    also: Mapping[str, float]


def fit_members(experiment: Experiment, rows: pl.DataFrame) -> Fitted:
    """The weights of config.members, fitted on their recorded answers to `rows`, which all of them validated."""
    competition, settings, runs = experiment.competition, experiment.config.blend, experiment.config.members
    metric, equal = competition.metric, open_blend(runs, settings.space, competition.settings.name)
    answers = [select_rows(experiment.recorded[run], rows["id"].to_list()) for run in runs]
    fit = Fit(equal, answers, competition.truth(rows), metric)
    singles = fit.blend.take_alone()
    alone = [fit.score(one) for one in singles]
    shipped = fit.blend.weigh(fit.fit_weights(settings.rounds))
    part = assign_folds(rows[competition.group], FoldSettings(count=settings.parts, unseen=1.0))
    nested = replace(shipped, nested=nest_weights(fit, part, settings.rounds))
    best = alone.index(max(alone, key=lambda score: metric.sign * score))
    alike = [share_firsts(answer, answers[best]) for answer in answers]
    print_weights(nested, alone, alike, f"{metric.name} on {rows.height} rows")
    blends = {"nested": nested, "best": singles[best], "shipped": shipped}
    folders = {name: experiment.step(name, blend.save, blend) for name, blend in blends.items()}
    fitted = fit.score(shipped)
    optimism = metric.sign * (fitted - fit.score(nested))
    also = {"equal weights": fit.score(equal), "not nested": fitted, "optimism of that": optimism}
    return Fitted(**folders, also=also)


def nest_weights(fit: Fit, part: pl.Series, rounds: int) -> dict[str, tuple[float, ...]]:
    """Row id → weights fitted on the rows of all other parts. part: of every row that was answered, in their order."""
    ids = fit.answers[0]["id"]
    weights = {k: fit.among(ids.filter(part != k)).fit_weights(rounds) for k in part.unique().to_list()}
    return {i: weights[k] for i, k in zip(ids.to_list(), part.to_list(), strict=True)}


def share_firsts(one: pl.DataFrame, other: pl.DataFrame) -> float:
    """The share of rows for which two RANKINGs of the same rows, in the same order, name the same item first."""
    pairs = zip(one["items"].to_list(), other["items"].to_list(), strict=True)
    return sum(first[:1] == second[:1] for first, second in pairs) / one.height


def print_weights(blend: MemberBlend, alone: Sequence[float], alike: Sequence[float], title: str) -> None:
    """Each member's own score, how often it answers as the best one does, its weight, and the nested ones."""
    apart = list(dict.fromkeys(blend.nested.values()))
    rows = [
        [about["run"], f"{score:.4f}", f"{same:.0%}", f"{blend.weights[n]:.2f}", " ".join(f"{w[n]:.2f}" for w in apart)]
        for n, (about, score, same) in enumerate(zip(blend.members, alone, alike, strict=True))
    ]
    print_table(title, ("member", "alone", "as the best", "weight", "nested weights"), rows)
    for about, weight in zip(blend.members, blend.weights, strict=True):
        if not weight:
            print(f"{about['run']} has the weight 0: take it out of members, or it travels for nothing", flush=True)


def open_blend(runs: Sequence[str], space: Space, competition: str) -> MemberBlend:
    """Complete runs with equal weights; raises ValueError for one of another competition."""
    members = []
    for run in runs:
        record = records.read_record(paths.run_folder(run))
        if record is None:
            raise FileNotFoundError(f"{run} is no complete run: train it first")
        if (other := record.settings["config"]["competition"]["name"]) != competition:
            raise ValueError(f"members: {run} is of {other}, not of {competition}")
        experiment = paths.experiment_folder(run).name
        members.append({"run": run, "experiment": experiment, "config": record.settings["config"]})
    return MemberBlend(space, tuple(members), (1.0,) * len(members)).weigh([1] * len(members))


def find_common_fold(train: pl.DataFrame, recorded: Mapping[str, pl.DataFrame]) -> pl.Series:
    """The fold of every training row in which all members validated it, -1 where one of them did not.

    Raises ValueError for rows that two of them validated in different folds, and where no row is left.
    """
    import polars as pl

    known = train.select("id")
    for number, answers in enumerate(recorded.values()):
        column = answers.select("id", pl.col("fold").alias(f"{number}"))
        known = known.join(column, on="id", how="left", maintain_order="left")
    folds = pl.exclude("id")
    apart = known.filter(pl.max_horizontal(folds) != pl.min_horizontal(folds))
    if apart.height:
        raise ValueError(
            f"{', '.join(recorded)} validated {apart.height} row(s) in different folds, first {apart['id'][0]!r}: give "
            f"all members the same folds"
        )
    validated = ~pl.any_horizontal(folds.is_null())
    fold = known.select(pl.when(validated).then(pl.col("0")).otherwise(ALWAYS_TRAIN).alias("fold")).to_series()
    if (fold == ALWAYS_TRAIN).all():
        raise ValueError(f"{', '.join(recorded)} validated no row in common: give all members the same folds")
    return fold
