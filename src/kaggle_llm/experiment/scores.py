"""CV: what the folds' models said of rows that they were not trained on, decided, measured and told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from kaggle_llm.base.tables import print_table
from kaggle_llm.competition.metrics import bootstrap_interval, paired_difference
from kaggle_llm.competition.rankings import check_answer, replace_rows
from kaggle_llm.inference.cross_fit import Decided, cross_fit, join_scored
from kaggle_llm.inference.run import neutral_decision

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.competition.competition import Competition
    from kaggle_llm.competition.metrics import Metric


@dataclass(frozen=True)
class Predicted:
    """A fold's validation rows."""

    fold: int
    ids: list[str]
    after: Any
    """What predict.score said with the fold's models."""
    before: Any
    """The same with its models before their training; None where they could say nothing."""
    spare: pl.DataFrame | None
    """predict.fallback's RANKING."""
    learned: bool
    """Whether a model was trained."""


class Scores:
    """All folds together. fit: whether decisions are fitted; else the neutral one is applied."""

    def __init__(
        self,
        predicted: Sequence[Predicted],
        predict: ModuleType,
        config: Any,
        competition: Competition,
        train: pl.DataFrame,
        fit: bool = True,
    ) -> None:
        self.predicted, self.competition, self.metric = list(predicted), competition, competition.metric
        self.truth = competition.truth(train)
        self.neutral, self._fit = neutral_decision(predict, config), fit
        self._groups: dict[str, str] = dict(train.select("id", competition.group).iter_rows())
        self.scored = join_scored([one.after for one in predicted])
        """What predict.score said of every validated row, before a decision."""
        self.decided, self.shipped = self._decide(self.scored, "")
        """The decision for CV, of which no row has one that it helped to fit; and the one that ships."""
        self.ranking = self._apply(self.decided, self.scored)
        self.base = self._find_base()
        """RANKING before the training; None where there is none."""

    @property
    def score(self) -> float:
        return self.metric.score(self.ranking, self.truth)

    @property
    def oof(self) -> pl.DataFrame:
        """The RANKING of every validated row, and its fold."""
        import polars as pl

        fold = [one.fold for one in self.predicted for _ in one.ids]
        return self.ranking.with_columns(fold=pl.Series(fold, dtype=pl.Int64()))

    @property
    def spare(self) -> pl.DataFrame | None:
        """What rows get without a model."""
        import polars as pl

        found = [one.spare for one in self.predicted if one.spare is not None]
        return pl.concat(found) if found else None

    def apply_neutral(self) -> pl.DataFrame:
        """The RANKING as it is before anything is fitted."""
        return self._apply(Decided(self.neutral) if self.neutral is not None else None, self.scored)

    def _decide(self, scored: Any, what: str) -> tuple[Decided | None, Decided | None]:
        if self.neutral is None:
            return None, None
        if not self._fit:
            return Decided(self.neutral), Decided(self.neutral)
        labels = () if self.competition.documents else self.competition.legal_items() or ()
        decided, shipped, notes = cross_fit(self.neutral, scored, self.truth, self._groups, self.metric, labels)
        for note in notes:
            print(f"the decision{what} is not fitted in {note}", flush=True)
        return decided, shipped

    def _apply(self, decision: Decided | None, scored: Any) -> pl.DataFrame:
        found = scored if decision is None else decision.apply(scored)
        found = found if self.spare is None else replace_rows(self.spare, found)
        return check_answer(found, [i for one in self.predicted for i in one.ids])

    def _find_base(self) -> pl.DataFrame | None:
        if not any(one.learned for one in self.predicted):
            return None
        if any(one.before is None for one in self.predicted):
            return self.spare
        scored = join_scored([one.before for one in self.predicted])
        return self._apply(self._decide(scored, " before the training")[0], scored)

    def measure(self, run: str, groups: Mapping[int, pl.Series], smoke: bool) -> dict[str, Any]:
        """metrics.json. groups: fold → the group of each of its rows that is scored apart."""
        import polars as pl

        metric, truth, oof = self.metric, self.truth, self.oof
        group = pl.concat([groups[one.fold] for one in self.predicted])
        also = {one.name: one.score(self.ranking, truth) for one in self.competition.also}
        if self.spare is not None and self.spare is not self.base:
            also["without a model"] = metric.score(self.spare, truth)
        if self.shipped is not None and self.shipped.value != self.neutral:
            fitted = metric.score(self._apply(self.shipped, self.scored), truth)
            also["optimism of the decision"] = metric.sign * (fitted - self.score)
        return {
            "run": run,
            "metric": metric.name,
            "greater_is_better": metric.greater_is_better,
            "cv": self.score,
            "interval": list(bootstrap_interval(metric, self.ranking, truth)),
            "before": metric.score(self.base, truth) if self.base is not None else None,
            "folds": [
                {"fold": k, "score": metric.score(part, truth), "rows": part.height}
                for (k,), part in oof.group_by("fold", maintain_order=True)
            ],
            "groups": {name: metric.score(oof.filter(group == name), truth) for name in sorted(set(group.to_list()))},
            "also": also,
            "smoke": smoke,
        }


def with_cells(ranking: pl.DataFrame, competition: Competition, seed: int) -> pl.DataFrame:
    """With columns seed and prediction (the submission's cells, joined by blanks)."""
    import polars as pl

    cells = [" ".join(row) for row in competition.cells_of(ranking)]
    return ranking.with_columns(seed=pl.lit(seed), prediction=pl.Series(cells, dtype=pl.String()))


def print_metrics(run: str, metrics: Mapping[str, Any], metric: Metric, scores: Scores) -> None:
    """The table that a training ends with."""
    low, high = metrics["interval"]
    rows = [["cv", f"{metrics['cv']:.4f}  [{low:.4f}, {high:.4f}]"]]
    rows += [[name, f"{value:.4f}"] for name, value in {**metrics["groups"], **metrics["also"]}.items()]
    if scores.base is not None:
        difference, low, high = paired_difference(metric, scores.ranking, scores.base, scores.truth)
        rows.append(["before", f"{metrics['before']:.4f}"])
        rows.append(["gained", f"{difference:+.4f}  paired 95 % interval [{low:+.4f}, {high:+.4f}]"])
    print_table(f"{run}: {metrics['metric']} on {scores.ranking.height} rows", ("score", "value"), rows)
