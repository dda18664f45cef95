"""What a run would meet on two T4s: does each model fit, what is refused, by which kernels it runs, how long it takes.

Reads files only: what the run ships, its config, the runtime's pins. Leaves nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.base.tables import print_table
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.inference.model import Model as Shipped
from kaggle_llm.inference.model import read_models
from kaggle_llm.runtime import rules_engine, rules_numbers, rules_runtime
from kaggle_llm.runtime.case import Case
from kaggle_llm.runtime.findings import Finding, is_refused
from kaggle_llm.runtime.model_facts import Model, read_model
from kaggle_llm.runtime.model_memory import judge_memory
from kaggle_llm.runtime.pins import DEFAULT, Runtime, load_runtime
from kaggle_llm.runtime.speed import judge_time
from kaggle_llm.runtime.vllm_checks import ask_vllm, read_environment
from kaggle_llm.runtime.work import Work, plan_work

TEXT_TOKENS = 512  # of an encoder's text, assumed
ALONE = {"engine": {"dtype": "float16"}}  # the config of a model without a run
ASK = """
import json, sys
from pathlib import Path
from kaggle_llm.base.config import build_config
from kaggle_llm.inference.run import import_predict
predict = import_predict(Path(sys.argv[1]))
asked = getattr(predict, "prompts_a_row", None)
print(asked(build_config(json.loads(sys.argv[2]), predict.Config)) if asked else 1)
"""


@dataclass(frozen=True)
class Diagnosis:
    runtime: str
    findings: dict[str, list[Finding]]
    """By model; those of the runtime itself under its name."""

    @property
    def refused(self) -> bool:
        return any(is_refused(found) for found in self.findings.values())

    def as_json(self) -> dict[str, Any]:
        """{"runtime", "refused", "findings": [{"model", "name", "level", "detail"}]}."""
        flat = [{"model": model, **one._asdict()} for model, found in self.findings.items() for one in found]
        return {"runtime": self.runtime, "refused": self.refused, "findings": flat}


def examine(run: str | None, runtime: str = DEFAULT, model: Path | None = None, rows: int | None = None) -> Diagnosis:
    """Judge what `run` ships on `runtime`, or, before it is trained, the models that its config names.

    model: judge this folder alone, under the run's config or without one. rows: that the time is estimated for.
    Raises ValueError where neither is given, or for an unknown runtime.
    """
    pins = load_runtime(runtime)
    if run is None and model is None:
        raise ValueError("nothing to examine: give a run, or a model folder by --model")
    config = read_config(run) if run else ALONE
    if members := list(config.get("members", ())):
        if untrained := [one for one in members if records.read_record(paths.run_folder(one)) is None]:
            raise ValueError(f"{run} has members that are not trained: {', '.join(untrained)}")
        return join_diagnoses([examine(member, runtime, model, rows) for member in members], members)
    models = [read_alone(model)] if model else list_models(run or "", config)
    engine, asked = EngineSettings(**config.get("engine", {})), count_prompts(run, config) if run else 1
    environment = {
        **read_environment(list_sources(run)),
        **{k: v for k, v in os.environ.items() if k.startswith("VLLM_")},
    }
    cases = [Case(one, engine, pins, plan_tokens(one, config, rows, asked), {}, environment) for one in models]
    found = {case.model.name: list(examine_case(case)) for case in cases}
    return Diagnosis(pins.name, {pins.name: list(judge_runtime(pins)), **found})


def join_diagnoses(found: Sequence[Diagnosis], members: Sequence[str]) -> Diagnosis:
    """Of an ensemble: what each of its members would meet, one after the other; the runtime is told once."""
    runtime = found[0].runtime
    findings = {runtime: found[0].findings[runtime]}
    for member, one in zip(members, found, strict=True):
        findings |= {f"{member}: {name}": said for name, said in one.findings.items() if name != runtime}
    return Diagnosis(runtime, findings)


def examine_case(case: Case) -> Iterator[Finding]:
    """All findings of one model; vLLM is asked where it would serve it."""
    if case.on_vllm:
        answers = ask_vllm(case)
        if "error" in answers:
            why = f"the installed vLLM did not answer: {answers['error']}"
            yield Finding("vllm", "warn", f"{why}; the table of known facts speaks for it")
        case = replace(case, answers={} if "error" in answers else answers)
    served = f"{'vllm' if case.on_vllm else 'transformers'}, {case.engine.dtype}"
    settled = "; auto: training settles it by what it finds, and CV is computed with that"
    yield Finding("engine", "ok", served + (settled if case.engine.kind == "auto" else ""))
    yield from judge_memory(case)
    for rule in (*rules_runtime.RULES, *rules_numbers.RULES, *rules_engine.RULES):
        yield from rule(case)
    yield from judge_time(case)


def judge_runtime(runtime: Runtime) -> list[Finding]:
    return list(rules_runtime.judge_pins(runtime)) or [
        Finding("pins", "ok", "torch, CUDA, vLLM and transformers agree")
    ]


def read_config(run: str) -> Mapping[str, Any]:
    """The config that the run was made with; before that, the experiment's, checked by its schema."""
    experiment = paths.experiment_folder(run)
    record = records.read_record(paths.run_folder(run))
    if record is not None:
        return dict(record.settings["config"])
    from kaggle_llm.base.config import load_config
    from kaggle_llm.inference.run import import_predict

    return asdict(load_config(experiment / "config.yaml", import_predict(experiment).Config))


def list_models(run: str, config: Mapping[str, Any]) -> list[Model]:
    """What the run ships; before it is complete, the model folders that its config names."""
    record = records.read_record(paths.run_folder(run))
    if record is None:
        found = {name: paths.absolute(value) for name, value in find_folders(config)}
        if not found:
            raise ValueError(f"{run} is not trained and its config names no model folder that is here: give --model")
        return [read_model(name, folder) for name, folder in found.items()]
    return list(read_shipped(read_models(record.settings["ship"])))


def read_shipped(shipped: Sequence[Shipped]) -> Iterator[Model]:
    """The models of a run's ship, without what is no model."""
    for one in shipped:
        if one.base is not None or (one.folder / "config.json").is_file() or not one.folder.is_dir():
            yield read_model(one.label, one.folder, one.base)


def find_folders(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, value) of every setting that names a model folder."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from find_folders(value, f"{prefix}{key}.")
        elif isinstance(value, str) and value and (paths.absolute(value) / "config.json").is_file():
            yield f"{prefix}{key}", value


def read_alone(folder: Path) -> Model:
    """A folder by itself; an adapter's base by the name that it was trained on."""
    if not (folder / records.ADAPTER).is_file():
        return read_model(folder.name, folder)
    base = paths.absolute(str(records.read_json(folder / records.ADAPTER).get("base_model_name_or_path")))
    return read_model(folder.name, folder, base)


def count_prompts(run: str, config: Mapping[str, Any]) -> int:
    """How many prompts a row of the run has, by its predict.py; 1 where that does not say.

    Asked in a process of its own: one has the predict.py of one experiment, and an ensemble's members are several.
    """
    words = [str(paths.experiment_folder(run)), json.dumps(config)]
    done = subprocess.run([sys.executable, "-c", ASK, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        why = ["no word", *done.stderr.split("\n")[:-1]][-1].strip()
        raise ValueError(f"{run}: its predict.py does not say how many prompts a row has: {why}")
    return int(done.stdout.split()[-1])


def plan_tokens(model: Model, config: Mapping[str, Any], rows: int | None, asked: int) -> Work:
    """Prompts are for language models; an encoder or a head reads texts."""
    work = plan_work(config, rows, asked)
    if model.is_language_model:
        return work
    length = min(TEXT_TOKENS, model.longest)
    return Work(0, length, 1, 0, work.rows, f"one text of {length} tokens a row, assumed")


def list_sources(run: str | None) -> Iterable[Path]:
    """Where the notebook's process gets its variables from."""
    if run is None:
        return []
    return [paths.root() / "submission", paths.experiment_folder(run)]


def print_diagnosis(diagnosis: Diagnosis) -> None:
    for model, found in diagnosis.findings.items():
        print_table(model, ("check", "", "finding"), [list(one) for one in found])
