"""An ensemble of complete runs: its members' weights are a decision, fitted on their out-of-fold predictions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from kaggle_llm.competition.rankings import answer_columns, is_values, make_ranking, make_values
from kaggle_llm.decisions.quantiles import Quantiles, fit_quantiles
from kaggle_llm.inference.cross_fit import Decided
from kaggle_llm.inference.run import Run, ask_members, find_member

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.competition.metrics import Metric

Space = Literal["probability", "log", "rank", "rows"]
SMALLEST = 1e-15  # probability whose logarithm is taken
RowAnswer = tuple[list[str], list[float]]  # items and scores


@dataclass
class BlendSettings:
    space: Space = "log"
    """What is averaged for each item. probability: its softmax over the row's scores. log: the logarithm of that. rank:
    minus the logarithm of its rank, where the members' scores have nothing in common. rows: the share of out-of-fold
    rows in which the member gives it less, for AUC and Spearman."""
    rounds: int = 20
    """How many times the forward selection adds a member; one member may be added several times."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds = {self.rounds}: one round is needed")


@dataclass(frozen=True)
class MemberBlend:
    """The members' weights, which sum to 1.

    answers: one frame of all members' RANKINGs (or VALUES) with a column `member`, the member's number.
    """

    space: Space
    rounds: int
    weights: tuple[float, ...]
    quantiles: tuple[Quantiles, ...] = ()
    """Where space is rows: the quantiles of every member and label, or of every member and target of VALUES."""

    def fit(self, answers: pl.DataFrame, truth: pl.DataFrame, metric: Metric) -> MemberBlend:
        """The weights with the best metric that forward selection with replacement finds.

        Each round adds the member that makes the mean best, whether it was added before or not; of equally good
        selections the shortest is kept. Source: Caruana et al., Ensemble Selection from Libraries of Models, ICML 2004,
        sections 2 and 2.2.
        """
        curves = fit_curves(answers) if self.space == "rows" else ()
        answers = read_shares(answers, curves) if curves else answers
        counts = kept = [0] * len(self.weights)
        best = -math.inf
        for _ in range(self.rounds):
            tried = [[n + (m == member) for m, n in enumerate(counts)] for member in range(len(counts))]
            scores = [metric.sign * metric.score(self.weigh(trial).mix(answers, self.space), truth) for trial in tried]
            counts = tried[scores.index(max(scores))]
            if max(scores) > best:
                best, kept = max(scores), counts
        return replace(self.weigh(kept), quantiles=curves)

    def apply(self, answers: pl.DataFrame) -> pl.DataFrame:
        """The blended RANKING or VALUES; a row is blended of the members that answered it.

        In the space rows of what is not fitted yet, logarithms of probabilities are averaged.
        """
        if self.quantiles:
            return self.mix(read_shares(answers, self.quantiles), self.space)
        return self.mix(answers, "log" if self.space == "rows" else self.space)

    def mix(self, answers: pl.DataFrame, space: Space) -> pl.DataFrame:
        """The weighted means of the members' answers; in the space rows of their shares."""
        rows = answers.group_by("id", maintain_order=True).agg("member", *answer_columns(answers)[1:])
        ids = rows["id"].to_list()
        weights = [[self.weights[member] for member in members] for members in rows["member"].to_list()]
        if is_values(answers):
            return make_values(ids, map(average_values, rows["values"].to_list(), weights))
        pairs = zip(rows["items"].to_list(), rows["scores"].to_list(), weights, strict=True)
        mixed = [mix_rows(list(zip(items, scores, strict=True)), own, space) for items, scores, own in pairs]
        return make_ranking(ids, [items for items, _ in mixed], [scores for _, scores in mixed])

    def weigh(self, counts: Sequence[float]) -> MemberBlend:
        """The same members with these weights, made to sum to 1."""
        return replace(self, weights=tuple(count / sum(counts) for count in counts))


def blend_alike(config: Any) -> MemberBlend:
    """All members of the config with equal weights."""
    settings: BlendSettings = config.blend
    return MemberBlend(settings.space, settings.rounds, (1.0,) * len(config.members)).weigh([1] * len(config.members))


def ask_runs(rows: pl.DataFrame, run: Run) -> pl.DataFrame:
    """The answers of config.members in one frame; members without weight are not asked, the heaviest is asked first."""
    numbers = list_asked(run.decision, len(run.config.members))
    members = [find_member(run, number) for number in numbers]
    combine = run.decide if run.decision is not None else blend_alike(run.config).apply  # in CV nothing is fitted yet
    return ask_members(run, rows, members, combine, run.offer, numbers)


def list_asked(decision: Decided | None, count: int) -> list[int]:
    """Numbers of the members with a weight for some row, the heaviest first; all of them before weights are fitted."""
    if decision is None:
        return list(range(count))
    blends = [decision.value, *(decision.parts if decision.rows else ())]
    weighted = {n for blend in blends for n, weight in enumerate(blend.weights) if weight}
    return sorted(weighted, key=lambda n: (-decision.value.weights[n], n))


def mix_rows(rows: Sequence[RowAnswer], weights: Sequence[float], space: Space) -> RowAnswer:
    """The members' answers to one row → items and their weighted means in `space`; equal weights where all are 0.

    An item that a member lacks counts there with the rank after its last, its lowest log-probability, or probability 0.
    """
    total = sum(weights)
    shares = [weight / total for weight in weights] if total else [1 / len(weights)] * len(weights)
    valued = [value_items(*row, space) for row in rows]
    items = dict.fromkeys(item for values, _ in valued for item in values)
    means = {
        item: sum(share * values.get(item, missing) for share, (values, missing) in zip(shares, valued, strict=True))
        for item in items
    }
    if space in ("probability", "rows"):
        means = {item: math.log(max(mean, SMALLEST)) for item, mean in means.items()}
    return list(means), list(means.values())


def average_values(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """The weighted mean of each target's values; the plain mean where all weights are 0."""
    shares = list(weights) if sum(weights) else [1.0] * len(rows)
    targets = zip(*rows, strict=True)
    return [sum(share * value for share, value in zip(shares, own, strict=True)) / sum(shares) for own in targets]


def value_items(items: list[str], scores: list[float], space: Space) -> tuple[dict[str, float], float]:
    """Item → its value in `space`, and the value of an item that the row lacks."""
    if space == "rows":
        return dict(zip(items, scores, strict=True)), 0.0
    if space == "rank":
        return {item: -math.log(rank) for rank, item in enumerate(items, 1)}, -math.log(len(items) + 1)
    peak = max(scores, default=0.0)
    total = peak + math.log(sum(math.exp(score - peak) for score in scores)) if scores else 0.0
    logs = {item: score - total for item, score in zip(items, scores, strict=True)}
    if space == "log":
        return logs, min(logs.values(), default=math.log(SMALLEST))
    return {item: math.exp(value) for item, value in logs.items()}, 0.0


def fit_curves(answers: pl.DataFrame) -> tuple[Quantiles, ...]:
    """The curve of every member and label, or target.

    Raises ValueError where rows are answered with different items: they cannot be compared across rows.
    """
    scores: dict[tuple[int, str], list[float]] = {}
    for member, row in zip(answers["member"], read_log_scores(answers), strict=True):
        for item, score in row.items():
            scores.setdefault((member, item), []).append(score)
    rows = Counter(answers["member"])
    if any(len(own) < rows[member] for (member, _), own in scores.items()):
        raise ValueError("blend.space = rows: the rows' answers score different items; choose log or another space")
    return tuple(fit_quantiles(member, item, own) for (member, item), own in scores.items())


def read_shares(answers: pl.DataFrame, quantiles: Sequence[Quantiles]) -> pl.DataFrame:
    """The answers with shares of rows in the place of scores or values."""
    curves = {(curve.member, curve.item): curve for curve in quantiles}
    ids, rows = answers["id"].to_list(), read_log_scores(answers)
    shares = [
        [curves[member, item].read(score) for item, score in row.items()]
        for member, row in zip(answers["member"], rows, strict=True)
    ]
    frame = make_values(ids, shares) if is_values(answers) else make_ranking(ids, map(list, rows), shares)
    return frame.with_columns(answers["member"])


def read_log_scores(answers: pl.DataFrame) -> list[dict[str, float]]:
    """Each row's items with their log-probabilities; of VALUES, each target's number with its value."""
    if is_values(answers):
        return [{str(target): value for target, value in enumerate(row)} for row in answers["values"].to_list()]
    rows = answers.select("items", "scores").iter_rows()
    return [value_items(items, scores, "log")[0] for items, scores in rows]


def share_firsts(answer: pl.DataFrame, other: pl.DataFrame) -> float:
    """The share of rows with the same first item or value in two answers to the same rows in the same order."""
    column = answer_columns(answer)[1]
    pairs = zip(answer[column].to_list(), other[column].to_list(), strict=True)
    return sum(first[:1] == second[:1] for first, second in pairs) / answer.height
