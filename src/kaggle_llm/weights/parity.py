"""Compares the stages of a model on the same held-out rows: adapter attached → merged → quantised → engine that ships.

Leaves output/<run>/parity.json and parity.png. All answers are those of predict.py; each stage has a decision
that was fitted on its own answers.
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
from kaggle_llm.competition.rankings import check_answer
from kaggle_llm.engines.engine import NonFiniteError
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.inference.borrowed import list_borrowed_runs
from kaggle_llm.inference.cross_fit import Decided, fit_on, join_scored, list_ids
from kaggle_llm.inference.model import Model, find_model, read_models, split_folds
from kaggle_llm.inference.run import Run, import_predict, neutral_decision, score_rows
from kaggle_llm.weights.differences import Differences, find_differences
from kaggle_llm.weights.headroom import LIMIT, Headroom, measure_headroom
from kaggle_llm.weights.plot import draw_parity
from kaggle_llm.weights.recorder import Call, RecordingRun
from kaggle_llm.weights.ship import describe_cv
from kaggle_llm.weights.stages import Stage, describe_stage, list_stages

if TYPE_CHECKING:
    import polars as pl

PARITY = "parity.json"
MIN_ROWS = 100  # with fewer rows the metric's interval is too wide to decide
SMOKE_ROWS = 8
HEADROOM_PROMPTS = 64  # spread over all prompts

Status = Literal["passed", "failed", "undecided"]


@dataclass
class ParitySettings:
    rows: int = 200
    """Held-out rows on which the metric is compared: quantised weights, half precision, another engine."""
    exact_rows: int = 32
    """Held-out rows on which numbers must be equal: adapter attached and merged, both computed in float32."""
    largest: float = 1e-4
    """Largest |Δ log-probability| allowed between adapter and merged weights in float32."""
    largest_engine: float = 1e-3
    """The same between two engines in float32."""
    dtype: Literal["trained", "float32", "float16", "bfloat16"] = "trained"
    """The dtype of the stages before the engine that ships. trained: the one that the model was trained in; float32
    takes twice the memory. What does not fit into the free memory of the card is computed on the CPU, and the report
    says so."""
    loss: float = 0.02
    """Largest loss of the metric allowed: upper end of the 95 % interval of the paired difference."""

    def __post_init__(self) -> None:
        if self.rows < self.exact_rows or self.exact_rows < 1:
            raise ValueError(f"rows = {self.rows}, exact_rows = {self.exact_rows}: 1 ≤ exact_rows ≤ rows")


@dataclass(frozen=True)
class Answer:
    """The answers of one stage: on the exact_rows first rows, then on the rest."""

    rankings: list[pl.DataFrame]
    calls: list[list[Call]]
    bad: int
    """Number of non-finite scores; where there are any, the stage has no answers."""


@dataclass(frozen=True)
class Step:
    """The comparison of a stage with the next one."""

    model: str
    before: str
    after: str
    rows: int
    status: Status
    reason: str
    score_before: float | None
    score: float | None
    loss: tuple[float, float, float] | None
    """Loss of the metric (positive: worse), and its paired 95 % interval."""
    non_finite: int
    differences: Differences | None


def check_parity(run: str, rows: int | None = None, again: bool = False) -> dict[str, Any]:
    """Compare the stages of every model that `run` ships; write and return parity.json.

    rows: how many at most, instead of the config's. again: also where parity.json is of these weights. Raises
    FileNotFoundError where the run is not complete or a stage is gone.
    """
    record = records.read_complete(run)
    previous: dict[str, Any] = records.read_optional(paths.run_folder(run) / PARITY, {})
    if not again and previous and previous["record"] == record.key and previous["rows"] == rows:
        return previous
    exp = paths.experiment_folder(run)
    config = load_config(paths.run_folder(run) / "config.yaml", import_predict(exp).Config)
    settings = getattr(config, "parity", ParitySettings())
    if rows is not None:
        settings = replace(settings, rows=rows, exact_rows=min(rows, settings.exact_rows))
    start = time.monotonic()
    gate = Gate(exp, config, load_competition(config.competition), settings, run)
    steps = [step for tested in gate.list_tested(record) for step in gate.check(tested)]
    report = {
        "run": run,
        "record": record.key,
        "rows": rows,
        "status": worst_status([step.status for step in steps] + [gate.headroom_status()]),
        "settings": asdict(settings),
        "note": describe_cv(record.settings["config"]),
        "steps": [asdict(step) for step in steps],
        "reference": gate.reference,
        "headroom": {
            name: {"limit": LIMIT, "largest": headroom.largest, "over": headroom.over, "layers": headroom.layers}
            for name, headroom in gate.headroom.items()
        },
        "seconds": round(time.monotonic() - start, 1),
    }
    records.write_json(paths.run_folder(run) / PARITY, report)
    if steps:
        draw_parity(report, paths.run_folder(run) / "parity.png")
    return report


def report_parity(run: str, smoke: bool = False) -> None:
    """Check parity at the end of a train.py and print the table. A smoke run has too few rows to decide."""
    if processes.is_first():
        print_parity(check_parity(run, SMOKE_ROWS if smoke else None))


def find_fault(run: str) -> str:
    """Why `run` must not be uploaded yet; "" where parity passed or there are no stages to compare."""
    record, report = records.read_record(paths.run_folder(run)), records.read_optional(paths.run_folder(run) / PARITY)
    if record is None:
        return "the run is not complete"
    for source in list_borrowed_runs(record.settings["config"]):
        if fault := find_fault(source):
            return f"{source}: {fault}"
    if report is None:
        shipped = [model.folder for model in read_models(record.settings["ship"])]
        own = [path for path in shipped if path.is_relative_to(paths.run_folder(run))]
        made = [path for path in own if (path / records.WEIGHTS).is_file()]
        return f"parity of {paths.relative(made[0])} was never checked: kaggle-llm parity {run}" if made else ""
    if report["record"] != record.key:
        return f"parity.json belongs to other weights than the run's: kaggle-llm parity {run}"
    if report["status"] == "passed":
        return ""
    reasons = [f"{step['before']} → {step['after']}: {step['reason']}" for step in report["steps"] if step["reason"]]
    return f"parity {report['status']}: {'; '.join(reasons) or 'activations overflow in float16'}"


def worst_status(statuses: Sequence[Status]) -> Status:
    return next((status for status in ("failed", "undecided") if status in statuses), "passed")


@dataclass(frozen=True)
class TestedModels:
    """Models that answer together, and rows that they were not trained on."""

    fold: int | None
    """None where no ensemble of folds ships."""
    models: Sequence[Model]
    rows: pl.DataFrame


class Gate:
    """Runs the stages and judges the steps between them."""

    def __init__(self, exp: Path, config: Any, competition: Competition, settings: ParitySettings, run: str) -> None:
        self.exp, self.config, self.competition, self.settings, self.run = exp, config, competition, settings, run
        predict, train = import_predict(exp), competition.table(TRAIN)
        self.truth = competition.truth(train)
        self.groups = dict(zip(train["id"], train[competition.group or "id"], strict=True))
        self.neutral = neutral_decision(predict, config, competition)
        hook = getattr(predict, "asks_in_turns", None)
        self.in_turns: bool = hook is not None and hook(config)
        """Whether prompts depend on answers before them."""
        self.headroom: dict[str, Headroom] = {}
        self.reference: dict[str, dict[str, str]] = {}
        """Model → stage → its dtype and device."""

    def list_tested(self, record: records.Record) -> Iterator[TestedModels]:
        """The models that ship; of an ensemble each member with the rows of its fold."""
        import polars as pl

        oof = pl.read_parquet(paths.run_folder(self.run) / "oof.parquet", columns=["id", "fold"])
        folds = sorted(oof["fold"].unique().to_list())
        members = split_folds(read_models(record.settings["ship"]))
        for fold, (member, models) in zip(folds, members.items(), strict=False):
            ids = oof.filter(pl.col("fold") == fold).head(self.settings.rows).select("id")
            train = self.competition.unlabelled(self.competition.table(TRAIN))
            yield TestedModels(member, models, ids.join(train, on="id", how="left", maintain_order="left"))

    def check(self, tested: TestedModels) -> Iterator[Step]:
        """Every step between the stages of every model."""
        for model in tested.models:
            stages = list_stages(model, tested.models, self.config.engine, self.settings.dtype)
            if model.member is not None or not stages:  # an ensemble's member has its own parity
                continue
            name, label, last = model.name, replace(model, fold=tested.fold).label, None
            self.reference[label] = {stage.name: describe_stage(stage) for stage in stages}
            for number, stage in enumerate(stages):
                compared = stages[max(number, 1) : number + 2]  # this stage with the one before, the next with this
                answers = self.ask(name, stage, tested.rows, exact_only=all(after.exact for after in compared))
                if last is not None:
                    yield self.judge(label, name, *last, stage, answers)
                last = stage, answers
            reference = [stage for stage in stages if stage.engine == stages[0].engine][-1]
            self.measure(label, name, reference, answers)

    def ask(self, name: str, stage: Stage, rows: pl.DataFrame, exact_only: bool) -> Answer:
        """The stage's answers to all rows; exact_only: to the exact_rows first ones."""
        cut = self.settings.exact_rows
        parts = [rows.head(cut)] if exact_only or rows.height <= cut else [rows.head(cut), rows.tail(-cut)]
        where = f", {describe_stage(stage)}" if stage.on_cpu else ""
        print(f"{self.run}: {name}, {stage.name}: {sum(part.height for part in parts)} rows{where}", flush=True)
        scored, fallbacks, calls = [], [], []
        with RecordingRun(name, self.config, self.competition, stage.models, stage.engine, on_cpu=stage.on_cpu) as run:
            for part in parts:
                run.calls.clear()
                try:
                    scored.append(score_rows(self.exp, run, part))
                except NonFiniteError as error:
                    return Answer([], [], error.bad)
                except (KeyError, OSError) as error:  # predict.py looks for a file that this stage lacks
                    raise ValueError(
                        f"parity: predict.py cannot answer with {name} as {stage.name} ({error}): let it use only "
                        f"run.engine({name!r}) and the tokenizer, which every stage has"
                    ) from error
                fallbacks.append(run.fallback)
                calls.append(list(run.calls))
            run.decision = self.fit_decision(scored)
            rankings = [rank(run, *part) for part in zip(parts, scored, fallbacks, strict=True)]
        return Answer(rankings, calls, 0)

    def fit_decision(self, scored: Sequence[Any]) -> Decided | None:
        """The decision fitted on a stage's own answers to all rows, as if it shipped.

        The one that ships was fitted on the answers of the last stage: it would make every stage before look worse.
        """
        if self.neutral is None:
            return None
        answers = join_scored(scored)
        ids, metric = list_ids(answers), self.competition.metric
        value, _ = fit_on(self.neutral, answers, self.truth, ids, self.groups, metric, required=set())
        return Decided(value)

    def judge(self, label: str, name: str, stage: Stage, first: Answer, after: Stage, second: Answer) -> Step:
        """The step from one stage to the next, on the rows that both answered."""
        import polars as pl

        common = min(len(first.rankings), len(second.rankings), 1 if after.exact else 2)
        if not common:
            bad = first.bad + second.bad
            reason = f"{bad} non-finite scores"
            return Step(label, stage.name, after.name, 0, "failed", reason, None, None, None, bad, None)
        before, ranking = (pl.concat(answer.rankings[:common]) for answer in (first, second))
        asked, again = ([call for part in answer.calls[:common] for call in part] for answer in (first, second))
        differences = find_differences(asked, again, self.in_turns)
        loss = self.find_loss(ranking, before)
        limit = self.settings.largest if after.name == "merged" else self.settings.largest_engine
        faults = compare_tokenizers(name, stage, after)
        if differences.other_prompts and not (self.in_turns and differences.other_prompts < differences.prompts):
            faults.append(f"{differences.other_prompts} of {differences.prompts} prompts differ")
        status, reason = judge_exact(differences, limit) if after.exact else self.judge_loss(loss, ranking.height)
        if faults:
            status, reason = "failed", "; ".join([*faults, *([reason] if status == "failed" else [])])
        score_before, score = (self.competition.metric.try_score(frame, self.truth) for frame in (before, ranking))
        rows = ranking.height
        return Step(label, stage.name, after.name, rows, status, reason, score_before, score, loss, 0, differences)

    def find_loss(self, ranking: pl.DataFrame, before: pl.DataFrame) -> tuple[float, float, float] | None:
        """(loss, low, high): what the metric loses from `before` to `ranking`, and its interval; None: not defined."""
        metric = self.competition.metric
        if metric.try_score(ranking, self.truth) is None:
            return None
        difference, low, high = paired_difference(metric, ranking, before, self.truth)
        return (0 - difference, 0 - high, 0 - low) if metric.greater_is_better else (difference, low, high)

    def judge_loss(self, loss: tuple[float, float, float] | None, rows: int) -> tuple[Status, str]:
        if rows < MIN_ROWS:
            return "undecided", f"{rows} rows, {MIN_ROWS} are needed"
        if loss is None:
            return "undecided", f"the metric is not defined on these {rows} rows"
        if loss[2] > self.settings.loss:
            return "failed", f"the metric may lose {loss[2]:.4f} (95 %), {self.settings.loss} is allowed"
        return "passed", ""

    def measure(self, label: str, name: str, stage: Stage, answers: Answer) -> None:
        """Measure the headroom of the last stage on prompts of its calls, where it has any."""
        calls = [call for part in answers.calls for call in part]
        prompts = [prompt for call in calls for prompt in call.prompts]
        if not prompts:
            return
        model = find_model(stage.models, name)
        spread = prompts[:: max(1, len(prompts) // HEADROOM_PROMPTS)]
        self.headroom[label] = measure_headroom(
            model.folder, spread, calls[0].method, model.base, stage.engine.dtype, "cpu" if stage.on_cpu else ""
        )

    def headroom_status(self) -> Status:
        half = self.config.engine.dtype == "float16"
        return "failed" if half and any(headroom.over for headroom in self.headroom.values()) else "passed"


def rank(run: Run, rows: pl.DataFrame, scored: Any, fallback: pl.DataFrame | None) -> pl.DataFrame:
    """The RANKING of rows that predict.py scored, by the run's decision."""
    run.fallback = fallback
    return check_answer(run.decide(scored), rows["id"].to_list())


def judge_exact(differences: Differences, limit: float) -> tuple[Status, str]:
    if differences.largest is None:
        return ("failed", f"{differences.other_texts} other texts") if differences.other_texts else ("passed", "")
    if not differences.largest <= limit:
        return "failed", f"largest difference {differences.largest:.2g}, {limit:g} is allowed"
    return "passed", ""


def compare_tokenizers(name: str, stage: Stage, after: Stage) -> list[str]:
    """Differences in vocabulary and chat template between two stages, whether these prompts show them or not."""
    first, second = (load_tokenizer(find_model(each.models, name).folder) for each in (stage, after))
    faults = []
    if first.get_vocab() != second.get_vocab():
        faults.append("another vocabulary")
    if first.chat_template != second.chat_template:
        faults.append("another chat template")
    return faults


def print_parity(report: Mapping[str, Any]) -> None:
    """The table of the steps, and a line of headroom for each model."""
    if not report["steps"]:
        print(f"{report['run']}: every model has one stage only, so there is no parity to check")
        return
    columns = ("model", "step", "rows", "max |Δ|", "mean |Δ|", "KL", "Spearman", "loss of the metric", "non-finite", "")
    print_table(f"{report['run']}: parity {report['status']}", columns, [format_step(step) for step in report["steps"]])
    for name, stages in report.get("reference", {}).items():  # older reports have none
        print(f"{name}: {', '.join(f'{stage} in {where}' for stage, where in stages.items())}")
    for name, headroom in report["headroom"].items():
        over = f"; OVERFLOW in float16: {', '.join(headroom['over'])}" if headroom["over"] else ""
        share = headroom["largest"] / headroom["limit"]
        print(f"{name}: largest activation {headroom['largest']:.0f}, {share:.1%} of float16's limit{over}")


def format_step(step: Mapping[str, Any]) -> list[str]:
    differences, loss = step["differences"] or {}, step["loss"]
    return [
        step["model"],
        f"{step['before']} → {step['after']}",
        str(step["rows"]),
        *(format_number(differences.get(key), "{:.2g}") for key in ("largest", "mean", "kl")),
        format_number(differences.get("spearman"), "{:.4f}"),
        "–" if loss is None else f"{loss[0]:+.4f} [{loss[1]:+.4f}, {loss[2]:+.4f}]",
        str(step["non_finite"]),
        f"{step['status']}{': ' if step['reason'] else ''}{step['reason']}",
    ]


def format_number(value: float | None, pattern: str) -> str:
    return "–" if value is None else pattern.format(value)
