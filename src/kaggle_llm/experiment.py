"""All that train.py touches: steps that are skipped when they are complete, the score, and what ships.

Leaves in output/<run>/: one folder a step, each with its record.json; config.yaml, oof.parquet, metrics.json, and
record.json of the run, written last.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kaggle_llm import paths, processes, records
from kaggle_llm.arguments import USAGE, parse_arguments, run_name
from kaggle_llm.borrowed import check_held_out, find_fold, find_shipped, join_models, name_members
from kaggle_llm.competition import TRAIN, Competition, load_competition
from kaggle_llm.config import load_config, save_config
from kaggle_llm.errors import report_errors
from kaggle_llm.fingerprint import hash_code, hash_input, hash_source, read_answers
from kaggle_llm.folders import read_idea
from kaggle_llm.inference.maker import resolve_engine
from kaggle_llm.memory import Memory, RememberingRun
from kaggle_llm.metrics import bootstrap_interval, paired_difference
from kaggle_llm.run import Run, answer, import_predict
from kaggle_llm.tables import print_table

if TYPE_CHECKING:
    import polars as pl

C = TypeVar("C")
Ask = Callable[["pl.DataFrame", Any, Run], Any]  # (rows, what predict.load made, run)

PREDICTION = "prediction code"  # among the inputs of a step that runs predict.py
ASKED = "asked.parquet"


def start(file: str, config: type[C]) -> Experiment:
    """The experiment that the train.py `file` belongs to, its config read from beside it and checked.

    Reads the command line: key=value, run=name, --smoke, --debug, --help.
    """
    report_errors("--debug" in sys.argv)
    if not processes.is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (as long as the process: one of them talks)
    folder = Path(file).resolve().parent
    os.environ.setdefault("KAGGLE_LLM_ROOT", str(folder.parents[1]))
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(USAGE.format(file=file, name=folder.name, idea=read_idea(folder)))
        raise SystemExit(0)
    arguments = parse_arguments(sys.argv[1:])
    loaded: Any = load_config(folder / "config.yaml", config, arguments.overrides, arguments.smoke)
    loaded.engine = resolve_engine(loaded.engine)  # what computes CV is what ships
    words = [*arguments.overrides, *([f"run={arguments.run}"] if arguments.run else [])]
    words += ["--smoke"] if arguments.smoke else []
    return Experiment(folder, run_name(folder.name, arguments), loaded, arguments.smoke, words)


class Experiment:
    """A run in the making."""

    def __init__(self, exp: Path, name: str, config: Any, smoke: bool, words: Sequence[str] = ()) -> None:
        self.exp, self.name, self.config, self.smoke, self.words = exp, name, config, smoke, list(words)
        self.folder = paths.run_folder(name)
        self.started = time.monotonic()
        self._lock = lock_run(self.folder) if processes.is_first() else None
        self.competition: Competition = load_competition(config.competition)
        self.competition.check()
        self._fold_models: dict[str, dict[str, str]] = {}
        members: list[str] = getattr(config, "members", [])
        self._borrowed: dict[str, str] = {**getattr(config, "models", {}), **name_members(members)}
        self.recorded = {member: read_answers(member) for member in members}
        self._beside = find_shipped(self._borrowed)
        self._memory: Memory = {}
        if processes.is_first():
            self._say_what_changed()
            records.keep_changes(self.folder)

    def step(
        self,
        name: str,
        make: Callable[[Path], Any],
        settings: Any = None,
        inputs: Mapping[str, Any] | None = None,
        together: bool = False,
    ) -> Path:
        """output/<run>/<name>/, made by make(folder); skipped where a complete one has the same key.

        settings: a dataclass or mapping; inputs: paths (hashed by content), frames, or values of JSON.
        together: under torchrun all processes make it (a training); else the first one does and the others wait.
        Killed or failed at any moment, a half-written folder is never read: the step starts again.
        """
        folder = self.folder / name
        described = _as_mapping(settings)
        hashed = {key: hash_input(value) for key, value in (inputs or {}).items()}
        beside = self._find_beside(name)
        if PREDICTION in hashed:
            hashed |= {f"models.{key}": hash_input(path) for key, path in beside.items()}
        seed = getattr(self.config, "seed", 0)
        kind = re.sub(r"^fold-?\d+/", "", name)
        known = processes.share(records.read_record(folder) if processes.is_first() else None)
        if known and known.key == records.step_key(kind, described, hashed, seed):
            print(f"{self.name}: {name} is complete, reused", flush=True)
            return folder
        if known:
            changes = describe_changes({**known.settings, **known.inputs}, {**described, **hashed})
            print(f"{self.name}: {name} is made again: {changes}", flush=True)
        else:
            print(f"{self.name}: {name} …", flush=True)
        if processes.is_first():
            (self.folder / records.RECORD).unlink(missing_ok=True)  # the run is complete again when it ships
        start = time.monotonic()

        def finish(made: Path) -> None:
            seconds = time.monotonic() - start
            files = records.hash_files(made)
            records.write_record(made, records.make_record(kind, described, hashed, seed, files, seconds))

        with self._borrow(beside):
            if processes.is_first():
                records.make_folder(folder, make, finish)
            elif together:
                make(records.temporary_folder(folder))
        processes.share(None)
        return folder

    def _find_beside(self, step: str) -> dict[str, Path]:
        """The borrowed models that go with a step: a fold's in fold<k>/…, else those that ship."""
        fold = re.match(r"fold(\d+)/", step)
        return find_fold(self._borrowed, int(fold[1])) if fold else find_shipped(self._borrowed)

    @contextmanager
    def _borrow(self, models: dict[str, Path]) -> Iterator[None]:
        """Inside of it, every Run has these models too."""
        before, self._beside = self._beside, models
        try:
            yield
        finally:
            self._beside = before

    @property
    def about(self) -> dict[str, Any]:
        """What a tracker is told of the run: its name, competition, config, git state and parent."""
        parent = self.folder / "parent.json"
        return {
            "run": self.name,
            "competition": self.config.competition.name,
            "config": asdict(self.config),
            "git": records.git_state(),
            "parent": records.read_json(parent)["parent"] if parent.is_file() else "",
        }

    @property
    def settings(self) -> dict[str, Any]:
        """The config for a step's key, without what a step takes as its inputs (rows, weights) or is only checked."""
        elsewhere = {"competition", "folds", "leaks", "merge", "quantize", "average", "ship", "parity"}
        elsewhere |= {"models", "members", "sources"}
        return {name: value for name, value in asdict(self.config).items() if name not in elsewhere}

    def prediction_inputs(self, rows: pl.DataFrame, models: Mapping[str, Path]) -> dict[str, Any]:
        """All that a prediction of `rows` comes from, as a step's inputs: rows, side tables, models and code."""
        code = {"predict.py": hash_source(self.exp / "predict.py"), PREDICTION: hash_code(self.config.competition.name)}
        return {"rows": rows, **self.competition.side_tables(), **code, **models}

    def run(self, models: Mapping[str, Path]) -> Run:
        """A Run with these models, for CV and what is fitted on predictions; all of them share a memory of scores."""
        return RememberingRun(self.config, self.competition, self.add_borrowed(models), self.recorded, self._memory)

    def ask(self, name: str, rows: pl.DataFrame, models: Mapping[str, Path], ask: Ask) -> pl.DataFrame:
        """What `ask` of predict.py gives for training rows, as a step: for what is fitted on, or told of, predictions.

        ask: (rows without their targets, what predict.load made, run) → a frame.
        """
        import polars as pl

        asked = self.competition.unlabelled(rows)

        def make(folder: Path) -> None:
            with self.run(models) as run:
                ask(asked, run.loaded(import_predict(self.exp)), run).write_parquet(folder / ASKED)

        inputs = self.prediction_inputs(asked, models)
        return pl.read_parquet(self.step(name, make, self.settings, inputs) / ASKED)

    def add_borrowed(self, models: Mapping[str, Path]) -> dict[str, Path]:
        """The models, and those that the config takes from elsewhere: in a step of fold k that fold's."""
        return join_models(models, self._beside)

    def score(
        self,
        fold: pl.Series,
        models: Callable[[int], Mapping[str, Path]],
        before: Callable[[int], Mapping[str, Path]] | None = None,
        also: Mapping[str, float] | None = None,
    ) -> None:
        """Predict every validation fold with its models through `answer()`; write oof.parquet and metrics.json.

        fold: of every training row; fold −1 is always trained on and never validated.
        models: fold → name → folder. before: the same for the untrained model, whose score stands beside.
        also: name → number, to be told beside the competition's own further metrics.
        """
        import polars as pl

        train = self.competition.table(TRAIN)
        folds = sorted(set(fold.to_list()) - {-1})
        if not folds:
            raise ValueError("no row has a fold of 0 or more: there is nothing to validate")
        check_held_out(self._borrowed, {k: train.filter(fold == k)["id"].to_list() for k in folds})
        after = self._predict_folds("oof", folds, fold, train, models)
        base = self._predict_folds("before", folds, fold, train, before) if before else None
        if not processes.is_first():
            return
        groups = [self.competition.groups(train.filter(fold != k), train.filter(fold == k)) for k in folds]
        truth = self.competition.truth(train)
        metrics = self._metrics(after, base, truth, pl.concat(groups))
        metrics["also"] |= also or {}
        records.write_file(self.folder / "oof.parquet", self._with_cells(after).write_parquet)
        records.write_json(self.folder / "metrics.json", metrics)
        self._report(metrics, after, base, truth)

    def ship(self, **models: Path) -> None:
        """What bundle takes, and nothing else. Completes the run: writes config.yaml and record.json."""
        if not processes.is_first():
            return
        models = join_models(models, find_shipped(self._borrowed))
        save_config(self.config, self.folder / "config.yaml")
        settings = {
            "config": asdict(self.config),
            "ship": {name: paths.relative(path) for name, path in models.items()},
            "fold_models": self._fold_models,
            "words": self.words,
        }
        inputs = {path.name: records.hash_file(path) for path in sorted(self.competition.folder.glob("*.csv"))}
        inputs |= {name: records.hash_content(path) for name, path in models.items()}
        files = {name: records.hash_file(self.folder / name) for name in ("metrics.json", "oof.parquet", "config.yaml")}
        seconds = time.monotonic() - self.started
        seed = getattr(self.config, "seed", 0)
        records.write_record(self.folder, records.make_record("run", settings, inputs, seed, files, seconds))
        print(f"{self.name}: complete in {seconds:.0f} s, {paths.relative(self.folder)}", flush=True)

    def _predict_folds(
        self,
        name: str,
        folds: list[int],
        fold: pl.Series,
        train: pl.DataFrame,
        models: Callable[[int], Mapping[str, Path]],
    ) -> pl.DataFrame:
        import polars as pl

        parts = []
        for k in folds:
            found = models(k)
            if name == "oof":
                every = join_models(found, find_fold(self._borrowed, k))
                self._fold_models[str(k)] = {key: paths.relative(path) for key, path in every.items()}
            rows = self.competition.unlabelled(train.filter(fold == k))
            path = self._predict_fold(f"fold{k}/{name}", rows, found)
            parts.append(pl.read_parquet(path).with_columns(fold=pl.lit(k)))
        return pl.concat(parts)

    def _predict_fold(self, name: str, rows: pl.DataFrame, models: Mapping[str, Path]) -> Path:
        def make(folder: Path) -> None:
            with self.run(models) as run:
                answer(self.exp, run, rows).write_parquet(folder / "ranking.parquet")

        return self.step(name, make, self.settings, self.prediction_inputs(rows, models)) / "ranking.parquet"

    def _metrics(
        self, after: pl.DataFrame, base: pl.DataFrame | None, truth: pl.DataFrame, group: pl.Series
    ) -> dict[str, Any]:
        metric = self.competition.metric
        return {
            "run": self.name,
            "metric": metric.name,
            "greater_is_better": metric.greater_is_better,
            "cv": metric.score(after, truth),
            "interval": list(bootstrap_interval(metric, after, truth)),
            "before": metric.score(base, truth) if base is not None else None,
            "folds": [
                {"fold": k, "score": metric.score(part, truth), "rows": part.height}
                for (k,), part in after.group_by("fold", maintain_order=True)
            ],
            "groups": {
                name: metric.score(after.filter(group == name), truth) for name in sorted(group.unique().to_list())
            },
            "also": {also.name: also.score(after, truth) for also in self.competition.also},
            "smoke": self.smoke,
        }

    def _with_cells(self, ranking: pl.DataFrame) -> pl.DataFrame:
        """RANKING + fold, seed and prediction (the submission's cells, joined by blanks)."""
        import polars as pl

        rows = ranking.select("items", "scores").iter_rows()
        cells = [" ".join(self.competition.cells(*row)) if row[0] else self.competition.nothing for row in rows]
        return ranking.with_columns(
            seed=pl.lit(getattr(self.config, "seed", 0)), prediction=pl.Series(cells, dtype=pl.String())
        )

    def _report(
        self, metrics: Mapping[str, Any], after: pl.DataFrame, base: pl.DataFrame | None, truth: pl.DataFrame
    ) -> None:
        low, high = metrics["interval"]
        rows = [["cv", f"{metrics['cv']:.4f}  [{low:.4f}, {high:.4f}]"]]
        rows += [[name, f"{value:.4f}"] for name, value in {**metrics["groups"], **metrics["also"]}.items()]
        if base is not None:
            difference, low, high = paired_difference(self.competition.metric, after, base, truth)
            rows.append(["before", f"{metrics['before']:.4f}"])
            rows.append(["gained", f"{difference:+.4f}  paired 95 % interval [{low:+.4f}, {high:+.4f}]"])
        print_table(f"{self.name}: {metrics['metric']} on {after.height} rows", ("score", "value"), rows)

    def _say_what_changed(self) -> None:
        known = records.read_record(self.folder)
        if known is None:
            return
        changes = describe_changes(known.settings["config"], asdict(self.config))
        if changes:
            print(f"{paths.relative(self.folder)} was made with other settings: {changes}", file=sys.stderr)
            print("what depends on them is made again in its place; run=name keeps both", file=sys.stderr)


def lock_run(folder: Path) -> int:
    """An open lock on the run's folder, held until the process ends; raises BlockingIOError where another holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise BlockingIOError(
            f"{paths.relative(folder)} is being made by another process: wait, or use run=name"
        ) from error
    return descriptor


def describe_changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str:
    """`a.b: 1 → 2; c: new` for two nested mappings; "" where they are equal. Hashes are shortened."""
    found = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found.append(describe_changes(before, after, f"{prefix}{key}."))
        elif before != after:
            found.append(f"{prefix}{key}: {_short(before)} → {_short(after)}")
    return "; ".join(part for part in found if part)


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False) if value is not None else "none"
    return text if len(text) <= 40 else f"{text[:12]}…{text[-1]}"


def _as_mapping(settings: Any) -> dict[str, Any]:
    """Settings as record.json will give them back: dataclasses, also inside a mapping, as plain values."""
    if settings is None:
        return {}
    if is_dataclass(settings) and not isinstance(settings, type):
        settings = asdict(settings)
    return json.loads(json.dumps(dict(settings), default=asdict))
