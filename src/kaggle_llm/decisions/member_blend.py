"""An ensemble of complete runs: the weights of its members are a decision, fitted on their out-of-fold answers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from kaggle_llm.base import paths
from kaggle_llm.base.config import read_values
from kaggle_llm.competition.rankings import answer_columns, is_values, make_ranking, make_values
from kaggle_llm.inference.cross_fit import Decided
from kaggle_llm.inference.ensemble import Member
from kaggle_llm.inference.model import of_member
from kaggle_llm.inference.run import Run, ask_members

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.competition.metrics import Metric

Space = Literal["probability", "log", "rank"]
SMALLEST = 1e-15  # of a probability: its logarithm stays finite
MEMBERS = "members"  # the folder of a bundle with the members' configs
Row = tuple[list[str], list[float]]  # items and scores


@dataclass
class BlendSettings:
    space: Space = "log"
    """What is averaged of each item: its probability in the row (a softmax of the scores), the logarithm of that, or
    the logarithm of its place."""
    rounds: int = 20
    """Members that the selection takes at most, one of them as often as it helps."""

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds = {self.rounds}: one round is needed")


@dataclass(frozen=True)
class MemberBlend:
    """The weights of members, in their order, that sum to 1. What members said is one frame: their RANKINGs below each
    other, with a column `member`."""

    space: Space
    rounds: int
    weights: tuple[float, ...]

    def fit(self, said: pl.DataFrame, truth: pl.DataFrame, metric: Metric) -> MemberBlend:
        """The weights with the best metric that forward selection finds.

        It takes the best member, then again and again the one, taken before or not, that makes the mean best, and keeps
        the shortest selection that was best of all. Source: Caruana et al., Ensemble Selection from Libraries of
        Models, ICML 2004, sections 2 and 2.2 (with replacement).
        """
        taken = kept = [0] * len(self.weights)
        best = -math.inf
        for _ in range(self.rounds):
            tried = [[n + (m == member) for m, n in enumerate(taken)] for member in range(len(taken))]
            values = [metric.sign * metric.score(self.weigh(counts).apply(said), truth) for counts in tried]
            taken = tried[values.index(max(values))]
            if max(values) > best:
                best, kept = max(values), taken
        return self.weigh(kept)

    def apply(self, said: pl.DataFrame) -> pl.DataFrame:
        """One RANKING, or VALUES; the weights of members that did not answer a row fall away."""
        import polars as pl

        if is_values(said):
            rows = said.group_by("id", maintain_order=True).agg(pl.col("member"), pl.col("values")).iter_rows()
            means = {i: mean_values(values, [self.weights[member] for member in own]) for i, own, values in rows}
            return make_values(list(means), means.values())
        known = said.group_by("id", maintain_order=True).agg(pl.col("member"), pl.col("items"), pl.col("scores"))
        mixed = [
            mix_rows(list(zip(items, scores, strict=True)), [self.weights[member] for member in members], self.space)
            for _, members, items, scores in known.iter_rows()
        ]
        return make_ranking(known["id"].to_list(), [items for items, _ in mixed], [scores for _, scores in mixed])

    def weigh(self, counts: Sequence[float]) -> MemberBlend:
        """The same members with these weights, made to sum to 1."""
        return replace(self, weights=tuple(count / sum(counts) for count in counts))


def blend_alike(config: Any) -> MemberBlend:
    """All members of the config with the same weight."""
    settings: BlendSettings = config.blend
    return MemberBlend(settings.space, settings.rounds, (1.0,) * len(config.members)).weigh([1] * len(config.members))


def ask_runs(rows: pl.DataFrame, run: Run) -> pl.DataFrame:
    """What the members of config.members say, those whose weight counts, the heaviest first."""
    numbers = list_asked(run.decision, len(run.config.members))
    asked = [open_run(run, number) for number in numbers]
    combine = run.decide if run.decision is not None else blend_alike(run.config).apply  # in CV nothing is fitted yet
    return ask_members(run, rows, asked, combine, run.offer, numbers)


def list_asked(decision: Decided | None, count: int) -> list[int]:
    """The members whose answer counts for some row; all of them before there are weights."""
    if decision is None:
        return list(range(count))
    blends = [decision.value, *(decision.parts if decision.rows else ())]
    counted = {n for blend in blends for n, weight in enumerate(blend.weights) if weight}
    return sorted(counted, key=lambda n: (-decision.value.weights[n], n))


def open_run(run: Run, number: int) -> Member:
    """Member `number` as run.ask_members asks it; in CV by its recorded answers."""
    if run.exp is None:
        raise ValueError("members are asked through run.answer: it says where their experiments lie")
    name = run.config.members[number]
    exp = run.exp.parent / name.split("--")[0]
    beside = run.exp.parents[1] / MEMBERS / f"{name}.yaml"  # of a bundle
    config = read_values(beside if beside.is_file() else paths.run_folder(name) / "config.yaml")
    config |= {"competition": asdict(run.config.competition)}
    return Member(exp, config, of_member(run.models, number), run.recorded.get(name))


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


def mean_values(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """The weighted mean of each value; of all alike where all weights are 0."""
    shares = list(weights) if sum(weights) else [1.0] * len(rows)
    return [
        sum(s * value for s, value in zip(shares, own, strict=True)) / sum(shares) for own in zip(*rows, strict=True)
    ]


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


def share_firsts(one: pl.DataFrame, other: pl.DataFrame) -> float:
    """The share of rows for which two answers to the same rows in one order have the same first item or value."""
    column = answer_columns(one)[1]
    pairs = zip(one[column].to_list(), other[column].to_list(), strict=True)
    return sum(first[:1] == second[:1] for first, second in pairs) / one.height
