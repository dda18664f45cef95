"""A run from train.py's first line to its last: its parts are trained and predicted in turn, then scored and shipped.

Leaves in output/<run>/: a folder for each step of a part, config.yaml, oof.parquet, metrics.json, leaks.json, decision/
and, written last, record.json.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import paths, processes, records
from kaggle_llm.base.config import save_config
from kaggle_llm.competition.audit import audit_folds
from kaggle_llm.competition.competition import TRAIN, Competition, load_competition
from kaggle_llm.competition.data_files import list_data_files
from kaggle_llm.competition.folds import ALWAYS_TRAIN, describe_missing_classes, find_common_fold, split_rows
from kaggle_llm.experiment.part import Part
from kaggle_llm.experiment.recorded import hash_prediction, read_answers
from kaggle_llm.experiment.scores import Predicted, Scores, print_metrics, with_cells
from kaggle_llm.experiment.steps import Steps, describe_changes
from kaggle_llm.inference.borrowed import (
    check_held_out,
    check_member_runs,
    check_not_itself,
    find_fold,
    find_shipped,
    list_borrowed_runs,
)
from kaggle_llm.inference.cross_fit import DECISION_MODEL
from kaggle_llm.inference.model import Model, check_folds_match, describe_models, join_folds, replace_model, split_folds
from kaggle_llm.inference.run import Run, import_predict, score_rows
from kaggle_llm.inference.vectors import ABOUT, SUFFIX, link_index
from kaggle_llm.weights.parity import report_parity

if TYPE_CHECKING:
    import polars as pl

Ask = Callable[["pl.DataFrame", Any, Run], "pl.DataFrame"]  # (rows, the result of predict.load, run)


class Experiment:
    """What `start` returns. command: makes this run again. merged: runs whose weights it merges."""

    def __init__(
        self, exp: Path, name: str, config: Any, smoke: bool, command: Sequence[str] = (), merged: Sequence[str] = ()
    ) -> None:
        self.exp, self.name, self.config, self.smoke = exp, name, config, smoke
        self.command, self.merged = list(command), list(merged)
        self.started = time.monotonic()
        self.steps = Steps(name, config.seed)
        self.folder = self.steps.folder
        self.competition: Competition = load_competition(config.competition)
        self.competition.check()
        self.train = self.competition.table(TRAIN)
        self.members: list[str] = getattr(config, "members", [])
        check_not_itself(name, asdict(config))
        check_member_runs(self.members, config.competition.name)
        self.recorded = {member: read_answers(member) for member in self.members}
        self.predict = import_predict(exp)
        self.fold = self._assign_folds()
        self.folds = sorted(set(self.fold.to_list()) - {ALWAYS_TRAIN})
        if not self.folds:
            raise ValueError("no row has a fold of 0 or more: there is nothing to validate")
        if config.ship in ("folds", "average") and len(self.folds) < 2:
            raise ValueError(
                f"ship = {config.ship}, but only fold {self.folds} is validated: name two in folds.validate"
            )
        check_held_out(config.models, {k: self.rows_of(k)["id"].to_list() for k in self.folds})
        self.fold_parts: list[Part] = []
        """The folds' parts that are trained and predicted."""
        self._full: Part | None = None
        self._predicted: list[Predicted] = []
        self._running: Iterator[Part] | None = None
        if processes.is_first():
            self._print_changed_settings()
            records.keep_changes(self.folder)
            for line in describe_missing_classes(self.competition, self.train, self.fold):
                print(f"{self.name}: {line}", flush=True)
            audit_folds(self.competition, self._assign_folds(whole=True), self.folds, config, self.folder)

    def _assign_folds(self, whole: bool = False) -> pl.Series:
        """The fold of every training row. whole: as if all folds and rows were validated, for the leak audit.

        An ensemble learns from rows that all members validated: for the audit other rows have no fold (null).
        """
        if self.members:
            fold = find_common_fold(self.train, self.recorded)
            return fold.replace(ALWAYS_TRAIN, None) if whole else fold
        settings = replace(self.config.folds, rows=None, validate=None) if whole else self.config.folds
        return split_rows(self.competition, self.train, settings)

    def rows_of(self, fold: int) -> pl.DataFrame:
        """The labelled rows that a fold validates."""
        return self.train.filter(self.fold == fold)

    def train_of(self, fold: int) -> pl.DataFrame:
        """The labelled rows that a fold trains on."""
        return self.train.filter(self.fold != fold)

    @property
    def about(self) -> dict[str, Any]:
        """The run's description for a tracker: name, competition, config, git state and parent."""
        return {
            "run": self.name,
            "competition": self.config.competition.name,
            "config": asdict(self.config),
            "git": records.git_state(),
            "parent": records.read_optional(self.folder / "parent.json", {}).get("parent", ""),
        }

    # what train.py calls ------------------------------------------------------------------------------------

    def parts(self) -> Iterator[Part]:
        """Every validated fold; then, with `ship: full`, all rows.

        When train.py asks for the next part, the rows of the last one are predicted and its score is printed. CV with
        its decisions is written after the last fold, before a training on all rows.
        """
        self._running = self._iterate_parts()
        return self._running

    def _iterate_parts(self) -> Iterator[Part]:
        for k in self.folds:
            models = find_fold(self.config.models, self.members, k)
            part = Part(self, f"fold{k}", k, self.train_of(k), models)
            yield part
            part.close()
            if self.config.ship == "average":
                check_adapters(part.name, part.learned)
            self.fold_parts.append(part)
            if processes.is_first():
                self._predict(part)
        if processes.is_first():
            self.scores = Scores(self._predicted, self.predict, self.config, self.competition, self.train)
            self._write_scores({})
        if self.config.ship == "full":
            shipped = find_shipped(self.config.models, self.members)
            self._full = Part(self, "full", None, self.train, shipped)
            yield self._full
            self._full.close()

    def ask(self, function: Ask, name: str) -> pl.DataFrame:
        """The result of `function` of predict.py for all validated rows, for a figure beside the score.

        It uses a fold's trained models, and before the fold is trained those of the config. name: for the log.
        """
        import polars as pl

        print(f"{self.name}: {name}", flush=True)
        frames = [self._ask_fold(function, k) for k in self.folds] if processes.is_first() else []
        answers: pl.DataFrame = processes.share(pl.concat(frames) if frames else None)
        return answers

    def _ask_fold(self, function: Ask, fold: int) -> pl.DataFrame:
        learned = {part.fold: part.models for part in self.fold_parts}
        rows = self.competition.unlabelled(self.rows_of(fold))
        with self.open_run(learned.get(fold) or find_fold(self.config.models, self.members, fold)) as run:
            run.exp = self.exp
            return function(rows, run.loaded(self.predict), run)

    def score_of(self, ranking: pl.DataFrame) -> float:
        """The competition's metric of a RANKING of training rows."""
        return self.competition.metric.score(ranking, self.competition.truth(self.train))

    def score(
        self, also: Mapping[str, float] | None = None, before: Callable[[Experiment], pl.DataFrame] | None = None
    ) -> None:
        """Write CV to metrics.json and print it; goes through the parts where train.py did not.

        also: name → other numbers to report. before: makes the RANKING that the experiment has to beat, where that is
        not the one of its models before the training.
        """
        if self._running is None:
            self.parts()
        for part in self._running or ():
            if part.fold is not None and part.learned:
                raise RuntimeError(f"{part.name} was not learned: go through experiment.parts() to its end")
        if not processes.is_first():
            return
        if before is not None:
            self.scores.before = before(self)
        metrics = self._write_scores(also or {})
        print_metrics(self.name, metrics, self.competition.metric, self.scores)

    def ship(self) -> None:
        """Choose and record the models that `bundle` packs, and check their parity. Completes the run."""
        average = self._make_average() if self.config.ship == "average" else None
        if not processes.is_first():
            return
        models = self._choose_models(average)
        if getattr(getattr(self.config, "retrieval", None), "ship_index", False):
            models = check_folds_match([*models, *self._make_indexes(models)])
        save_config(self.config, self.folder / "config.yaml")
        settings = {
            "config": asdict(self.config),
            "ship": describe_models(models),
            "fold_models": {str(part.fold): describe_models(self._of_fold(part)) for part in self.fold_parts},
            "command": self.command,
            "runs": [*list_borrowed_runs(asdict(self.config)), *self.merged],
        }
        inputs = {path.name: records.hash_file(path) for path in list_data_files(self.competition.folder)}
        inputs |= {model.label: records.hash_content(model.folder) for model in models}
        inputs["code"] = hash_prediction(self.exp, self.config)
        files = {name: records.hash_file(self.folder / name) for name in ("metrics.json", "oof.parquet", "config.yaml")}
        seconds = time.monotonic() - self.started
        record = records.make_record("run", settings, inputs, self.config.seed, files, seconds)
        records.write_record(self.folder, record)
        if any((model.folder / records.WEIGHTS).is_file() and model.member is None for model in models):
            report_parity(self.name, self.smoke)
        print(f"{self.name}: complete in {seconds:.0f} s, {paths.relative(self.folder)}", flush=True)

    # what Part and the methods above call -------------------------------------------------------------------

    def open_run(self, models: Sequence[Model]) -> Run:
        """A Run with these models, which reuses and keeps their answers."""
        return Run(self.config, self.competition, models, recorded=self.recorded, keep_for=self.name)

    def _predict(self, part: Part) -> None:
        """Predict the part's validation rows after and before its training, and print the score."""
        assert part.fold is not None
        rows = self.competition.unlabelled(self.rows_of(part.fold))
        with self.open_run(part.models) as run:
            after = score_rows(self.exp, run, rows)
        before = None
        if part.learned and part.before is not None:
            with self.open_run(part.before) as before_run:
                before = score_rows(self.exp, before_run, rows)
        predicted = Predicted(part.fold, rows["id"].to_list(), after, before, run.fallback, bool(part.learned))
        self._predicted.append(predicted)
        scores = Scores([predicted], self.predict, self.config, self.competition, self.train, fit=False)
        note = ", its decision not fitted yet" if scores.neutral is not None else ""
        metric = self.competition.metric
        score = metric.try_score(scores.ranking, scores.truth)
        value = "not defined" if score is None else f"{score:.4f}"
        print(f"{self.name}: {part.name}: {metric.name} {value} on {rows.height} rows{note}", flush=True)

    def _write_scores(self, also: Mapping[str, float]) -> dict[str, Any]:
        """oof.parquet, the decisions, and metrics.json."""
        (self.folder / records.RECORD).unlink(missing_ok=True)  # the run is incomplete until it ships again
        scores = self.scores
        groups = {k: self.competition.groups(self.train_of(k), self.rows_of(k)) for k in self.folds}
        metrics = scores.measure(self.name, groups, self.smoke)
        metrics["also"] |= also
        oof = with_cells(scores.oof, self.competition, self.config.seed)
        records.write_file(self.folder / "oof.parquet", oof.write_parquet)
        records.write_json(self.folder / "metrics.json", metrics)
        if scores.decided is not None and scores.shipped is not None:
            for fold in self._predicted:
                scores.decided.among(fold.ids).save(self.folder / f"fold{fold.fold}" / DECISION_MODEL)
            scores.shipped.save(self.folder / DECISION_MODEL)
        return metrics

    def _with_decision(self, models: Sequence[Model], folder: Path) -> list[Model]:
        """The models, with the decision as one of them where there is one."""
        return (
            list(models)
            if self.scores.decided is None
            else replace_model(models, Model(DECISION_MODEL, folder / DECISION_MODEL))
        )

    def _of_fold(self, part: Part) -> list[Model]:
        return self._with_decision(part.models, self.folder / part.name)

    def _make_average(self) -> Part:
        rows = ", ".join(str(self.rows_of(k).height) for k in self.folds)
        held_out = f"no row was held out by all {len(self.folds)} members (they held out {rows} rows)"
        print(f"average of folds {self.folds}: {held_out}: there are none to score it on", flush=True)
        part = Part(self, "average", None, self.train, find_shipped(self.config.models, self.members))
        part.average(self.fold_parts)
        part.close()
        return part

    def _choose_models(self, average: Part | None) -> list[Model]:
        """The models that ship, by config.ship."""
        if self.config.ship == "full":
            assert self._full is not None
            models = self._full.models
        elif average is not None:
            models = average.models
        elif self.config.ship == "folds":
            models = join_folds({k: part.models for k, part in zip(self.folds, self.fold_parts, strict=True)})
        else:
            models = self._own_and_shipped(self.fold_parts[0])
        return check_folds_match(self._with_decision(models, self.folder))

    def _make_indexes(self, models: Sequence[Model]) -> list[Model]:
        """The documents' vectors by the encoders that ship, of each fold where they differ, and BM25's index, as models
        to ship too."""
        made: list[Model] = []
        for fold, own in split_folds(models).items():
            with self.open_run(own) as run:
                run.exp = self.exp
                run.loaded(self.predict)
                for name, path in run.artefacts.items():
                    encoders = [model for model in models if model.name == name and model.fold in (None, fold)]
                    own_fold = encoders[0].fold if encoders else None  # BM25's index is of no model
                    step = f"index/{name}" if own_fold is None else f"fold{fold}/{name}{SUFFIX}"
                    encoder = {"encoder": encoders[0].folder} if encoders else {}
                    inputs = {"index": records.read_json(path / ABOUT), **encoder}
                    folder = self.steps.make(step, partial(link_index, source=path), {}, inputs)
                    made.append(Model(f"{name}{SUFFIX}", folder, fold=own_fold))
        return list(dict.fromkeys(made))

    def _own_and_shipped(self, part: Part) -> list[Model]:
        """The models that a part trained, and borrowed ones as their own run ships them."""
        own = [model for model in part.models if model.name in part.learned and model.member is None]
        shipped = find_shipped(self.config.models, self.members)
        borrowed = [model for model in shipped if model.member is not None or model.name not in part.learned]
        return [*borrowed, *own]

    def _print_changed_settings(self) -> None:
        record = records.read_record(self.folder)
        if record and (changes := describe_changes(record.settings["config"], asdict(self.config))):
            print(f"{paths.relative(self.folder)} was made with other settings: {changes}", file=sys.stderr)
            print("steps that depend on them are made again; run=name makes another run", file=sys.stderr)


def check_adapters(part: str, learned: Mapping[str, Path]) -> None:
    """Raises ValueError where a fold trained what `ship: average` cannot average: before the other folds are trained.

    learned: model → the folder of its training.
    """
    for name, folder in learned.items():
        if not (folder / records.ADAPTER).is_file():
            raise ValueError(
                f"ship = average, but {name} of {part} is no adapter: only adapters are averaged, set ship=folds or "
                f"ship=full"
            )
