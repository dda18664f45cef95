"""Check a run against Kaggle's machine: do its models fit, what is refused, which kernels run them, how long it takes.

Reads files only: the models that the run ships, its config, the runtime's pins. Leaves nothing on disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.base.tables import print_table
from kaggle_llm.competition.competition import read_hours
from kaggle_llm.engines.engine import EngineSettings, choose_shipped_dtype
from kaggle_llm.inference.model import Model, read_models
from kaggle_llm.runtime import rules_engine, rules_numbers, rules_runtime
from kaggle_llm.runtime.case import Case
from kaggle_llm.runtime.findings import Finding
from kaggle_llm.runtime.model_facts import ModelFacts, read_model_facts
from kaggle_llm.runtime.model_memory import held_bytes, judge_memory
from kaggle_llm.runtime.pins import DEFAULT, Runtime, choose_accelerator, load_runtime
from kaggle_llm.runtime.speed import judge_time
from kaggle_llm.runtime.vllm_checks import ask_vllm, read_environment
from kaggle_llm.runtime.work import Work, plan_work

TEXT_TOKENS = 512  # of an encoder's text: assumed
NO_RUN_CONFIG: dict[str, Any] = {}  # of a model without a run
COUNT_PROMPTS = """
import json, sys
from pathlib import Path
from kaggle_llm.base.config import build_config
from kaggle_llm.inference.run import import_predict
predict = import_predict(Path(sys.argv[1]))
count = getattr(predict, "prompts_a_row", None)
print(count(build_config(json.loads(sys.argv[2]), predict.Config)) if count else 1)
"""


@dataclass(frozen=True)
class Diagnosis:
    runtime: str
    findings: dict[str, list[Finding]]
    """Model → its findings; those of the runtime under the runtime's name."""

    @property
    def refused(self) -> bool:
        return any(finding.level == "refused" for findings in self.findings.values() for finding in findings)

    def as_json(self) -> dict[str, Any]:
        """{"runtime", "refused", "findings": [{"model", "name", "level", "detail"}]}."""
        rows = [
            {"model": model, **finding._asdict()} for model, findings in self.findings.items() for finding in findings
        ]
        return {"runtime": self.runtime, "refused": self.refused, "findings": rows}


def examine(
    run: str | None,
    runtime: str = DEFAULT,
    model: Path | None = None,
    rows: int | None = None,
    accelerator: str | None = None,
) -> Diagnosis:
    """Judge the models that `run` ships on `runtime`; before it is trained, those that its config names.

    model: judge only this folder, with the run's config if there is one. rows: of the test set, for the estimated time.
    accelerator: instead of the config's. Raises ValueError without run and model, for an unknown runtime or
    accelerator or one that the competition does not give, and for an ensemble with untrained members.
    """
    if run is None and model is None:
        raise ValueError("nothing to examine: give a run, or a model folder by --model")
    config = read_run_config(run) if run else NO_RUN_CONFIG
    pins = load_runtime(runtime, choose_accelerator(config, accelerator))
    if members := list(config.get("members", ())):
        if untrained := [member for member in members if records.read_record(paths.run_folder(member)) is None]:
            raise ValueError(f"{run} has members that are not trained: {', '.join(untrained)}")
        name = pins.accelerator
        return join_diagnoses([examine(member, runtime, model, rows, name) for member in members], members)
    together = [[read_folder(model)]] if model else list_models(run or "", config)
    engine, prompts = EngineSettings(**config.get("engine", {})), count_prompts(run, config) if run else 1
    engine = replace(engine, dtype=choose_shipped_dtype(engine.dtype, pins.accelerator))
    folders = [paths.root() / "submission", paths.experiment_folder(run)] if run else []
    own = {name: value for name, value in os.environ.items() if name.startswith("VLLM_")}
    environment, hours = {**read_environment(folders), **own}, read_hours(config)
    findings: dict[str, list[Finding]] = {}
    for models in together:
        works = [plan_tokens(facts, config, rows, prompts) for facts in models]
        cases = [
            Case(each, engine, pins, work, {}, hours, environment) for each, work in zip(models, works, strict=True)
        ]
        findings |= {case.model.name: list(examine_case(case)) for case in load_in_turn(cases)}
    return Diagnosis(pins.name, {pins.name: judge_runtime(pins), **findings})


def load_in_turn(cases: Sequence[Case]) -> Iterator[Case]:
    """The cases in the order in which their models are loaded, with the memory that earlier models hold.

    Encoders and heads come first, because retrieval comes before reading; all stay loaded until the run ends.
    """
    taken = 0.0
    for case in sorted(cases, key=lambda case: case.model.is_language_model):
        beside = replace(case, taken=taken)
        taken += held_bytes(beside)
        yield beside


def join_diagnoses(diagnoses: Sequence[Diagnosis], members: Sequence[str]) -> Diagnosis:
    """All members' findings; those of the runtime once."""
    runtime = diagnoses[0].runtime
    joined = {runtime: diagnoses[0].findings[runtime]}
    for member, diagnosis in zip(members, diagnoses, strict=True):
        joined |= {f"{member}: {name}": rows for name, rows in diagnosis.findings.items() if name != runtime}
    return Diagnosis(runtime, joined)


def examine_case(case: Case) -> Iterator[Finding]:
    """All findings of one model; vLLM is asked where it would serve it."""
    if case.on_vllm:
        answers = ask_vllm(case)
        if "error" in answers:
            why = f"the installed vLLM did not answer: {answers['error']}"
            yield Finding("vllm", "warn", f"{why}; the table of known facts is used instead")
        case = replace(case, answers={} if "error" in answers else answers)
    served = f"{'vllm' if case.on_vllm else 'transformers'}, {case.engine.dtype}"
    auto = "; auto: training chooses it by what is installed, and CV is computed with that"
    yield Finding("engine", "ok", served + (auto if case.engine.kind == "auto" else ""))
    yield from judge_memory(case)
    for rule in (*rules_runtime.RULES, *rules_numbers.RULES, *rules_engine.RULES):
        yield from rule(case)
    yield from judge_time(case)


def judge_runtime(runtime: Runtime) -> list[Finding]:
    return list(rules_runtime.judge_pins(runtime)) or [
        Finding("pins", "ok", "torch, CUDA, vLLM and transformers agree")
    ]


def read_run_config(run: str) -> Mapping[str, Any]:
    """The config that the run was trained with; before that the experiment's, checked by its schema."""
    experiment = paths.experiment_folder(run)
    record = records.read_record(paths.run_folder(run))
    if record is not None:
        return dict(record.settings["config"])
    from kaggle_llm.base.config import load_config
    from kaggle_llm.inference.run import import_predict

    return asdict(load_config(experiment / "config.yaml", import_predict(experiment).Config))


def list_models(run: str, config: Mapping[str, Any]) -> list[list[ModelFacts]]:
    """The models that the run ships; before it is complete, the model folders that its config names.

    A list for each fold of an ensemble: their models are loaded one fold after the other, not together.
    """
    record = records.read_record(paths.run_folder(run))
    if record is None:
        folders = {key: paths.absolute(value) for key, value in find_model_folders(config)}
        if not folders:
            raise ValueError(f"{run} is not trained and its config names no model folder that is here: give --model")
        return [[read_model_facts(key, folder) for key, folder in folders.items()]]
    shipped = read_models(record.settings["ship"])
    folds = {model.fold for model in shipped} - {None} or {None}
    return [list(read_shipped([model for model in shipped if model.fold in (None, k)])) for k in sorted(folds, key=str)]


def read_shipped(shipped: Sequence[Model]) -> Iterator[ModelFacts]:
    """The shipped models that have weights; raises FileNotFoundError for a missing folder."""
    for model in shipped:
        if model.base is not None or (model.folder / "config.json").is_file() or not model.folder.is_dir():
            yield read_model_facts(model.label, model.folder, model.base)


def find_model_folders(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value) of every setting that names a model folder."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from find_model_folders(value, f"{prefix}{key}.")
        elif isinstance(value, str) and value and (paths.absolute(value) / "config.json").is_file():
            yield f"{prefix}{key}", value


def read_folder(folder: Path) -> ModelFacts:
    """One model folder; an adapter's base is found by the name in its adapter_config.json."""
    if not (folder / records.ADAPTER).is_file():
        return read_model_facts(folder.name, folder)
    base = paths.absolute(str(records.read_json(folder / records.ADAPTER).get("base_model_name_or_path")))
    return read_model_facts(folder.name, folder, base)


def count_prompts(run: str, config: Mapping[str, Any]) -> int:
    """Prompts of a row, by `prompts_a_row` of the run's predict.py; 1 where it has none.

    In a process of its own: a process can import the predict.py of one experiment, and an ensemble has several.
    """
    words = [str(paths.experiment_folder(run)), json.dumps(config)]
    done = subprocess.run([sys.executable, "-c", COUNT_PROMPTS, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        why = ["it printed nothing", *done.stderr.split("\n")[:-1]][-1].strip()
        raise ValueError(f"{run}: its predict.py does not say how many prompts a row has: {why}")
    return int(done.stdout.split()[-1])


def plan_tokens(model: ModelFacts, config: Mapping[str, Any], rows: int | None, prompts: int) -> Work:
    """Prompts for a language model; one text a row for an encoder or a head."""
    work = plan_work(config, rows, prompts)
    if model.is_language_model:
        return work
    length = min(TEXT_TOKENS, model.longest)
    return Work(0, length, 1, 0, work.rows, f"one text of {length} tokens a row, assumed")


def print_diagnosis(diagnosis: Diagnosis) -> None:
    for model, findings in diagnosis.findings.items():
        print_table(model, ("check", "", "finding"), [list(finding) for finding in findings])
