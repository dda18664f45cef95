"""CV: the folds' out-of-fold predictions, decided and measured."""

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
    """The predictions for a fold's validation rows."""

    fold: int
    ids: list[str]
    after: Any
    """What predict.score returned with the fold's models."""
    before: Any
    """The same with the models before their training; None where they cannot predict untrained."""
    fallback: pl.DataFrame | None
    """The RANKING of predict.fallback."""
    learned: bool
    """Whether a model was trained."""


class Scores:
    """The predictions of all folds and their metrics. fit: whether decisions are fitted; else they stay neutral."""

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
        self.neutral, self._fit = neutral_decision(predict, config, competition), fit
        self._groups: dict[str, str] = dict(zip(train["id"], train[competition.group or "id"], strict=True))
        self.scored = join_scored([fold.after for fold in predicted])
        """What predict.score returned for all validated rows, before a decision."""
        self.decided, self.shipped = self._decide(self.scored, "")
        """The cross-fitted decision for CV, and the one that ships, fitted on all rows."""
        self.ranking = self._apply(self.decided, self.scored)
        self.before = self._rank_before()
        """RANKING before the training; None where there is none."""

    @property
    def score(self) -> float:
        return self.metric.score(self.ranking, self.truth)

    @property
    def oof(self) -> pl.DataFrame:
        """The RANKING of all validated rows, with a column `fold`."""
        import polars as pl

        folds = [fold.fold for fold in self.predicted for _ in fold.ids]
        return self.ranking.with_columns(fold=pl.Series(folds, dtype=pl.Int64()))

    @property
    def fallback(self) -> pl.DataFrame | None:
        """The RANKING of predict.fallback for all validated rows."""
        import polars as pl

        rankings = [fold.fallback for fold in self.predicted if fold.fallback is not None]
        return pl.concat(rankings) if rankings else None

    def apply_neutral(self) -> pl.DataFrame:
        """The RANKING with the neutral decision."""
        return self._apply(Decided(self.neutral) if self.neutral is not None else None, self.scored)

    def _decide(self, scored: Any, note: str) -> tuple[Decided | None, Decided | None]:
        """Decisions for CV and for shipping; prints where they are not fitted. note: names the decision there."""
        if self.neutral is None:
            return None, None
        if not self._fit:
            return Decided(self.neutral), Decided(self.neutral)
        labels = () if self.competition.documents else self.competition.legal_items() or ()
        decided, shipped, unfitted = cross_fit(self.neutral, scored, self.truth, self._groups, self.metric, labels)
        for part in unfitted:
            print(f"the decision{note} is not fitted in {part}", flush=True)
        return decided, shipped

    def _apply(self, decision: Decided | None, scored: Any) -> pl.DataFrame:
        ranking = scored if decision is None else decision.apply(scored)
        ranking = ranking if self.fallback is None else replace_rows(self.fallback, ranking)
        return check_answer(ranking, [row for fold in self.predicted for row in fold.ids])

    def _rank_before(self) -> pl.DataFrame | None:
        if not any(fold.learned for fold in self.predicted):
            return None
        if any(fold.before is None for fold in self.predicted):
            return self.fallback
        return self.decide(join_scored([fold.before for fold in self.predicted]), " before the training")

    def decide(self, scored: Any, note: str = "") -> pl.DataFrame:
        """The RANKING or VALUES of other scores of the validated rows, with a decision cross-fitted for them."""
        return self._apply(self._decide(scored, note)[0], scored)

    def measure(self, run: str, groups: Mapping[int, pl.Series], smoke: bool) -> dict[str, Any]:
        """metrics.json. groups: fold → [rows] the groups that are scored apart."""
        import polars as pl

        metric, truth, oof = self.metric, self.truth, self.oof
        group = pl.concat([groups[fold.fold] for fold in self.predicted])
        names = sorted(set(group.to_list()))
        by_group = {name: metric.try_score(oof.filter(group == name), truth) for name in names}
        also = {other.name: other.score(self.ranking, truth) for other in self.competition.also}
        if self.fallback is not None and self.fallback is not self.before:
            also["without a model"] = metric.score(self.fallback, truth)
        if self.shipped is not None and self.shipped.value != self.neutral:
            fitted = metric.score(self._apply(self.shipped, self.scored), truth)
            also["optimism of the decision"] = metric.sign * (fitted - self.score)
        return {
            "run": run,
            "metric": metric.name,
            "greater_is_better": metric.greater_is_better,
            "cv": self.score,
            "interval": list(bootstrap_interval(metric, self.ranking, truth)),
            "before": metric.score(self.before, truth) if self.before is not None else None,
            "folds": [
                {"fold": k, "score": metric.try_score(part, truth), "rows": part.height}
                for (k,), part in oof.group_by("fold", maintain_order=True)
            ],
            "groups": {name: score for name, score in by_group.items() if score is not None},
            "also": also,
            "smoke": smoke,
        }


def with_cells(ranking: pl.DataFrame, competition: Competition, seed: int) -> pl.DataFrame:
    """The ranking with columns seed and prediction (the submission's cells, joined by spaces)."""
    import polars as pl

    cells = [" ".join(row) for row in competition.cells_of(ranking)]
    return ranking.with_columns(seed=pl.lit(seed), prediction=pl.Series(cells, dtype=pl.String()))


def print_metrics(run: str, metrics: Mapping[str, Any], metric: Metric, scores: Scores) -> None:
    """The table of scores at the end of a training."""
    low, high = metrics["interval"]
    rows = [["cv", f"{metrics['cv']:.4f}  [{low:.4f}, {high:.4f}]"]]
    rows += [[name, f"{value:.4f}"] for name, value in {**metrics["groups"], **metrics["also"]}.items()]
    if scores.before is not None:
        difference, low, high = paired_difference(metric, scores.ranking, scores.before, scores.truth)
        rows.append(["before", f"{metrics['before']:.4f}"])
        rows.append(["gained", f"{difference:+.4f}  paired 95 % interval [{low:+.4f}, {high:+.4f}]"])
    print_table(f"{run}: {metrics['metric']} on {scores.ranking.height} rows", ("score", "value"), rows)
