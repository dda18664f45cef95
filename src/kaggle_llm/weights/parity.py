"""The gate at every stage: adapter attached → merged → quantised → the engine that ships, on the same held-out rows.

Leaves output/<run>/parity.json and parity.png. All answers come from `run.answer`, so predict.py decides what is asked.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kaggle_llm.base import paths, processes, records
from kaggle_llm.base.config import load_config
from kaggle_llm.base.tables import print_table
from kaggle_llm.competition.competition import TRAIN, Competition, load_competition
from kaggle_llm.competition.metrics import paired_difference
from kaggle_llm.engines.engine import NonFiniteError
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.inference.borrowed import list_lenders
from kaggle_llm.inference.model import Model, find_model, read_models, split_folds
from kaggle_llm.inference.run import answer, import_predict
from kaggle_llm.weights.differences import Differences, find_differences
from kaggle_llm.weights.headroom import LIMIT, Headroom, measure_headroom
from kaggle_llm.weights.plot import draw_parity
from kaggle_llm.weights.recorder import Call, RecordingRun
from kaggle_llm.weights.ship import describe_cv
from kaggle_llm.weights.stages import Stage, list_stages

if TYPE_CHECKING:
    import polars as pl

PARITY = "parity.json"
ENOUGH = 100  # rows that the metric's interval needs to say anything
SMOKE_ROWS = 8
HEADROOM_PROMPTS = 64  # spread over the rows

Status = Literal["passed", "failed", "undecided"]


@dataclass
class ParitySettings:
    rows: int = 200
    """Held-out rows on which the metric decides: quantised weights, half precision, another engine."""
    exact_rows: int = 32
    """Held-out rows for stages that have to give the same numbers: adapter attached and merged, in float32."""
    largest: float = 1e-4
    """|Δ log-probability| that float32 allows between adapter and merged weights."""
    largest_engine: float = 1e-3
    """The same between two engines in float32."""
    loss: float = 0.02
    """What the metric may lose: the upper end of the 95 % interval of the paired loss."""

    def __post_init__(self) -> None:
        if self.rows < self.exact_rows or self.exact_rows < 1:
            raise ValueError(f"rows = {self.rows}, exact_rows = {self.exact_rows}: 1 ≤ exact_rows ≤ rows")


@dataclass(frozen=True)
class Answer:
    """What one stage said: first on the rows that the exact stages share, then on the rest."""

    rankings: list[pl.DataFrame]
    calls: list[list[Call]]
    bad: int
    """Non-finite scores; the stage has no answers then."""


@dataclass(frozen=True)
class Step:
    """From one stage to the next."""

    model: str
    before: str
    after: str
    rows: int
    status: Status
    reason: str
    score_before: float | None
    score: float | None
    loss: tuple[float, float, float] | None
    """What the metric loses (positive: worse), and its paired 95 % interval."""
    non_finite: int
    differences: Differences | None


def check_parity(run: str, rows: int | None = None, again: bool = False) -> dict[str, Any]:
    """Compare the stages of every model that `run` ships; write and return parity.json.

    rows: at most so many, whatever the config says. again: also where parity.json is of these very weights.
    Raises FileNotFoundError where the run is not complete or a stage is gone.
    """
    record = records.read_record(paths.run_folder(run))
    if record is None:
        raise FileNotFoundError(f"{run} is no complete run: finish its train.py first")
    known = read_parity(run)
    if known and not again and known["record"] == record.key and known["rows"] == rows:
        return known
    exp = paths.experiment_folder(run)
    config = load_config(paths.run_folder(run) / "config.yaml", import_predict(exp).Config)
    settings = getattr(config, "parity", ParitySettings())
    if rows is not None:
        settings = replace(settings, rows=rows, exact_rows=min(rows, settings.exact_rows))
    start = time.monotonic()
    gate = Gate(exp, config, load_competition(config.competition), settings, run)
    steps = [step for unit in gate.units(record) for step in gate.check(unit)]
    report = {
        "run": run,
        "record": record.key,
        "rows": rows,
        "status": worst([step.status for step in steps] + [gate.headroom_status(config)]),
        "settings": asdict(settings),
        "note": describe_cv(record.settings["config"]),
        "steps": [asdict(step) for step in steps],
        "headroom": {name: describe_headroom(found) for name, found in gate.headroom.items()},
        "seconds": round(time.monotonic() - start, 1),
    }
    records.write_json(paths.run_folder(run) / PARITY, report)
    if steps:
        draw_parity(report, paths.run_folder(run) / "parity.png")
    return report


def report_parity(run: str, smoke: bool = False) -> None:
    """What a train.py ends with: the table of the stages that it made. A smoke run's few rows decide nothing."""
    if processes.is_first():
        print_parity(check_parity(run, SMOKE_ROWS if smoke else None))


def read_parity(run: str) -> dict[str, Any] | None:
    path = paths.run_folder(run) / PARITY
    return records.read_json(path) if path.is_file() else None


def find_fault(run: str) -> str:
    """Why `run` must not be uploaded as it is; "" where its parity was passed or it has no stages to compare."""
    record, report = records.read_record(paths.run_folder(run)), read_parity(run)
    if record is None:
        return "the run is not complete"
    for lender in list_lenders(record.settings["config"]):
        if fault := find_fault(lender):
            return f"{lender}: {fault}"
    if report is None:
        shipped = [model.folder for model in read_models(record.settings["ship"])]
        own = [path for path in shipped if path.is_relative_to(paths.run_folder(run))]
        made = [path for path in own if (path / records.WEIGHTS).is_file()]
        return f"parity of {paths.relative(made[0])} was never checked: kaggle-llm parity {run}" if made else ""
    if report["record"] != record.key:
        return f"parity is of other weights than the run's: kaggle-llm parity {run}"
    if report["status"] == "passed":
        return ""
    reasons = [f"{step['before']} → {step['after']}: {step['reason']}" for step in report["steps"] if step["reason"]]
    return f"parity {report['status']}: {'; '.join(reasons) or 'activations overflow in float16'}"


def worst(statuses: Sequence[Status]) -> Status:
    return next((status for status in ("failed", "undecided") if status in statuses), "passed")


@dataclass(frozen=True)
class Unit:
    """One set of models that answers by itself, and the rows that it was not trained on."""

    fold: int | None
    """In an ensemble of folds."""
    models: Sequence[Model]
    rows: pl.DataFrame


class Gate:
    """Runs the stages and judges the steps between them."""

    def __init__(self, exp: Path, config: Any, competition: Competition, settings: ParitySettings, run: str) -> None:
        self.exp, self.config, self.competition, self.settings, self.run = exp, config, competition, settings, run
        self.truth = competition.truth(competition.table(TRAIN))
        self.headroom: dict[str, Headroom] = {}

    def units(self, record: records.Record) -> Iterator[Unit]:
        """What ships; of an ensemble every member with its own fold's rows."""
        import polars as pl

        oof = pl.read_parquet(paths.run_folder(self.run) / "oof.parquet", columns=["id", "fold"])
        folds = sorted(oof["fold"].unique().to_list())
        members = split_folds(read_models(record.settings["ship"]))
        for fold, (member, models) in zip(folds, members.items(), strict=False):
            ids = oof.filter(pl.col("fold") == fold).head(self.settings.rows).select("id")
            train = self.competition.unlabelled(self.competition.table(TRAIN))
            yield Unit(member, models, ids.join(train, on="id", how="left", maintain_order="left"))

    def check(self, unit: Unit) -> Iterator[Step]:
        """Every step of every model of the unit."""
        for model in (one for one in unit.models if one.member is None):  # each member has a gate of its own
            stages = list_stages(model, unit.models, self.config.engine)
            if not stages:
                continue
            name, label, last = model.name, replace(model, fold=unit.fold).label, None
            for number, stage in enumerate(stages):
                steps = stages[max(number, 1) : number + 2]  # the ones that lead here and away
                found = self.ask(name, stage, unit.rows, exact_only=all(after.exact for after in steps))
                if last is not None:
                    yield self.judge(label, name, *last, stage, found)
                last = stage, found
            self.measure(label, name, stages[-1], found)

    def ask(self, name: str, stage: Stage, rows: pl.DataFrame, exact_only: bool) -> Answer:
        """The stage's answers; exact_only: to the first rows, which is all that its neighbours are compared on."""
        cut = self.settings.exact_rows
        parts = [rows.head(cut)] if exact_only or rows.height <= cut else [rows.head(cut), rows.tail(-cut)]
        print(f"{self.run}: {name}, {stage.name}: {sum(part.height for part in parts)} rows", flush=True)
        rankings, calls = [], []
        with RecordingRun(name, self.config, self.competition, stage.models, stage.engine) as run:
            for part in parts:
                run.calls.clear()
                try:
                    rankings.append(answer(self.exp, run, part))
                except NonFiniteError as error:
                    return Answer([], [], error.bad)
                except (KeyError, OSError) as error:  # predict.py looks for a file of another form
                    raise ValueError(
                        f"parity: predict.py cannot answer with {name} as {stage.name} ({error}): let it ask "
                        f"run.engine({name!r}) and the tokenizer only, which every form has"
                    ) from error
                calls.append(list(run.calls))
        return Answer(rankings, calls, 0)

    def judge(self, label: str, name: str, stage: Stage, found: Answer, after: Stage, answers: Answer) -> Step:
        """The step from one stage to the next, on the rows that both answered."""
        import polars as pl

        common = min(len(found.rankings), len(answers.rankings), 1 if after.exact else 2)
        if not common:
            bad = found.bad + answers.bad
            reason = f"{bad} non-finite scores"
            return Step(label, stage.name, after.name, 0, "failed", reason, None, None, None, bad, None)
        before, ranking = (pl.concat(one.rankings[:common]) for one in (found, answers))
        calls = ([call for part in one.calls[:common] for call in part] for one in (found, answers))
        differences = find_differences(*calls)
        loss = self.find_loss(ranking, before)
        limit = self.settings.largest if after.name == "merged" else self.settings.largest_engine
        faults = [*find_other_texts(name, stage, after), *judge_prompts(differences)]
        status, reason = judge_exact(differences, limit) if after.exact else self.judge_loss(loss, ranking.height)
        if faults:
            status, reason = "failed", "; ".join([*faults, *([reason] if status == "failed" else [])])
        scored, score = (self.competition.metric.score(one, self.truth) for one in (before, ranking))
        rows = ranking.height
        return Step(label, stage.name, after.name, rows, status, reason, scored, score, loss, 0, differences)

    def find_loss(self, ranking: pl.DataFrame, before: pl.DataFrame) -> tuple[float, float, float]:
        """What the metric loses from `before` to `ranking`, with the ends of its interval in this order."""
        metric = self.competition.metric
        difference, low, high = paired_difference(metric, ranking, before, self.truth)
        return (0 - difference, 0 - high, 0 - low) if metric.greater_is_better else (difference, low, high)

    def judge_loss(self, loss: tuple[float, float, float], rows: int) -> tuple[Status, str]:
        if rows < ENOUGH:
            return "undecided", f"{rows} rows, {ENOUGH} are needed"
        if loss[2] > self.settings.loss:
            return "failed", f"the metric may lose {loss[2]:.4f} (95 %), {self.settings.loss} is allowed"
        return "passed", ""

    def measure(self, label: str, name: str, stage: Stage, found: Answer) -> None:
        """Headroom of the last stage, on prompts that the rows asked; none where it gave no answers."""
        calls = [call for part in found.calls for call in part]
        prompts = [prompt for call in calls for prompt in call.prompts]
        if not prompts:
            return
        model = find_model(stage.models, name)
        spread = prompts[:: max(1, len(prompts) // HEADROOM_PROMPTS)]
        self.headroom[label] = measure_headroom(model.folder, spread, calls[0].kind, model.base)

    def headroom_status(self, config: Any) -> Status:
        half = config.engine.dtype == "float16"
        return "failed" if half and any(found.over for found in self.headroom.values()) else "passed"


def judge_exact(differences: Differences, limit: float) -> tuple[Status, str]:
    if differences.largest is None:
        return ("failed", f"{differences.other_texts} other texts") if differences.other_texts else ("passed", "")
    if not differences.largest <= limit:
        return "failed", f"largest difference {differences.largest:.2g}, {limit:g} is allowed"
    return "passed", ""


def judge_prompts(differences: Differences) -> list[str]:
    other = differences.other_prompts
    return [f"{other} of {differences.prompts} prompts are others"] if other else []


def find_other_texts(name: str, stage: Stage, after: Stage) -> list[str]:
    """What the tokenizers of two stages do otherwise: vocabulary and chat template, used by these prompts or not."""
    first, second = (load_tokenizer(find_model(one.models, name).folder) for one in (stage, after))
    faults = []
    if first.get_vocab() != second.get_vocab():
        faults.append("another vocabulary")
    if first.chat_template != second.chat_template:
        faults.append("another chat template")
    return faults


def describe_headroom(found: Headroom) -> dict[str, Any]:
    return {"limit": LIMIT, "largest": found.largest, "over": found.over, "layers": found.layers}


def print_parity(report: Mapping[str, Any]) -> None:
    """The table of the steps, and a line of headroom for each model."""
    if not report["steps"]:
        print(f"{report['run']}: one form of every model ships, so there is no parity to check")
        return
    columns = ("model", "step", "rows", "max |Δ|", "mean |Δ|", "KL", "Spearman", "loss of the metric", "non-finite", "")
    print_table(f"{report['run']}: parity {report['status']}", columns, [describe_step(one) for one in report["steps"]])
    for name, found in report["headroom"].items():
        over = f"; OVERFLOW in float16: {', '.join(found['over'])}" if found["over"] else ""
        share = found["largest"] / found["limit"]
        print(f"{name}: largest activation {found['largest']:.0f}, {share:.1%} of what float16 holds{over}")


def describe_step(step: Mapping[str, Any]) -> list[str]:
    found, loss = step["differences"] or {}, step["loss"]
    return [
        step["model"],
        f"{step['before']} → {step['after']}",
        str(step["rows"]),
        *(show(found.get(key), "{:.2g}") for key in ("largest", "mean", "kl")),
        show(found.get("spearman"), "{:.4f}"),
        "–" if loss is None else f"{loss[0]:+.4f} [{loss[1]:+.4f}, {loss[2]:+.4f}]",
        str(step["non_finite"]),
        f"{step['status']}{': ' if step['reason'] else ''}{step['reason']}",
    ]


def show(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
