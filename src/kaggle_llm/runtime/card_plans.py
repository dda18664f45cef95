"""Plans an experiment's trainings and inferences on a card: memory, time and cost, before it is rented.

Reads the experiment's config, train.py and the config.json of its models: no weights, no card. Leaves nothing on disk.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.base.accelerators import Accelerator, find_card
from kaggle_llm.base.device import CONTEXT_GB
from kaggle_llm.base.tables import print_table
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.footprint import (
    RESERVE,
    SMALLEST_BATCH,
    Batch,
    Estimate,
    cache_bytes,
    estimate_inference,
    fit_inference,
    read_shape,
    usable_bytes,
)
from kaggle_llm.engines.maker import is_language_model
from kaggle_llm.engines.model_kinds import ModelKind
from kaggle_llm.runtime.doctor import find_model_folders, read_run_config
from kaggle_llm.runtime.facts import FLOAT32_SHARE, HALF_SHARE
from kaggle_llm.runtime.machine import GIB
from kaggle_llm.runtime.speed import describe_seconds
from kaggle_llm.runtime.work import plan_work
from kaggle_llm.training.estimate import estimate_training, fit_batch_tokens
from kaggle_llm.training.scaling_law import Pretraining, best_split
from kaggle_llm.training.settings import LoraSettings, TrainingSettings

TRAINED = re.compile(r"\.learn\(\s*[\"'](\w+)[\"'],?\s*(\w*)")  # part.learn("reranker", ChoiceTask(…), …)
KINDS: dict[str, ModelKind] = {"TokenTask": "token", "MaskedTask": "masked", "make_head_task": "sequence"}
ASSUMED_TOKENS = 1_000_000  # of a training or an inference whose number of tokens is not known
RESULTS = Path("tests") / "gpu" / "results.json"


@dataclass(frozen=True)
class Model:
    """A model of the experiment."""

    name: str
    config: Any
    kind: ModelKind | None
    """None: an encoder of sentences."""


@dataclass(frozen=True)
class Training:
    """One way to train a model on one card."""

    model: Model
    lora: LoraSettings
    training: TrainingSettings
    length: int
    kept: float
    """Share of the tokens that are multiplied by the vocabulary."""

    @cached_property
    def estimate(self) -> Estimate:
        return estimate_training(self.model.config, self.model.kind or "sequence", self.lora, self.training, self.batch)

    @property
    def batch(self) -> Batch:
        tokens = self.training.part_tokens
        length = min(self.length, tokens)
        return Batch(tokens, length, max(1, round(tokens * self.kept)))

    def fits(self, card: Accelerator) -> bool:
        return needed_bytes(self.estimate) <= card_bytes(card)

    @property
    def settings(self) -> str:
        checkpointing = ", gradient_checkpointing" if self.training.gradient_checkpointing else ""
        return f"{self.lora.method}, {self.training.dtype}, batch_tokens={self.training.batch_tokens}{checkpointing}"


@dataclass(frozen=True)
class Speed:
    """Operations a second of one card, and where the number is from."""

    operations: float
    why: str


def card_bytes(card: Accelerator) -> float:
    return (card.memory_gb or 0.0) * GIB


def needed_bytes(estimate: Estimate) -> float:
    """The estimated bytes, with CUDA itself and what lies unused between torch's blocks."""
    return estimate.memory.total * (1 + RESERVE) + CONTEXT_GB * GIB


def list_models(run: str, config: Mapping[str, Any]) -> tuple[list[Model], list[Model]]:
    """(all models that the config names and that lie here, those of them that train.py trains).

    Where train.py names none by part.learn and the config has a section training, all are taken to be trained.
    """
    experiment = paths.experiment_folder(run)
    named = dict(TRAINED.findall((experiment / "train.py").read_text(encoding="utf-8")))
    models = []
    for key, folder in find_model_folders(config):
        name = key.removeprefix("models.")
        models.append(Model(name, read_shape(paths.absolute(folder)), find_kind(paths.absolute(folder))))
    if not config.get("training"):
        return models, []
    trained = [replace(model, kind=KINDS.get(named[model.name], model.kind)) for model in models if model.name in named]
    return models, trained or models


def find_kind(folder: Path) -> ModelKind | None:
    return "causal" if is_language_model(folder) else None


def plan_trainings(run: str, config: Mapping[str, Any], card: Accelerator) -> Iterator[Training]:
    """The config's training of each model that train.py trains."""
    work = plan_work(config, None)
    _, trained = list_models(run, config)
    for model in trained:
        lora = LoraSettings(**(config.get("lora") or {}))
        training = choose_numbers(model, lora, TrainingSettings(**config["training"]), card)
        length = min(work.longest, getattr(model.config.get_text_config(), "max_position_embeddings", work.longest))
        yield Training(model, lora, training, length, work.new / work.longest)


def choose_numbers(model: Model, lora: LoraSettings, training: TrainingSettings, card: Accelerator) -> TrainingSettings:
    """The settings with dtype and batch_tokens `auto` decided for the card."""
    if training.dtype == "auto":
        training = replace(training, dtype=card.half)
    if training.batch_tokens == "auto":
        room = usable_bytes(card.memory_gb or 0.0)
        try:
            tokens = fit_batch_tokens(model.config, model.kind or "sequence", lora, training, room)
        except ValueError:  # the smallest does not fit either: the plan says what would
            tokens = SMALLEST_BATCH
        training = replace(training, batch_tokens=tokens)
    return training


def find_ways(plan: Training, card: Accelerator) -> Iterator[str]:
    """Settings with which a training fits that does not: each alone first, then together, then a smaller batch."""
    checkpointing = replace(plan, training=replace(plan.training, gradient_checkpointing=True))
    qlora = replace(plan, lora=replace(plan.lora, method="qlora"))
    both = replace(qlora, training=checkpointing.training)
    ways = [("training.gradient_checkpointing=true", checkpointing), ("lora.method=qlora", qlora)]
    fitting = [text for text, way in ways if way != plan and way.fits(card)]
    if not fitting and both.fits(card):
        fitting = [" ".join(text for text, _ in ways)]
    tokens = plan.training.part_tokens // 2
    while not fitting and tokens >= SMALLEST_BATCH:
        smaller = replace(both, training=replace(both.training, batch_tokens=tokens))
        if smaller.fits(card):
            fitting = [f"{' '.join(text for text, _ in ways)} training.batch_tokens={tokens}"]
        tokens //= 2
    yield from fitting or ["no setting: take a card with more memory, or a smaller model"]


def read_speed(card: Accelerator, dtype: str, parameters: float) -> Speed | None:
    """What `make test-gpu` measured on such a card, else an assumed share of the data sheet's rate; None: not known."""
    report = records.read_optional(paths.root() / RESULTS, {"machine": {}, "checks": []})
    named = report["machine"].get("card", "")
    is_same = bool(card.driver_name) and card.driver_name in named and dtype != "float32"
    measured = measured_speed(report["checks"], parameters) if is_same else None
    if measured:
        return Speed(measured, f"measured by make test-gpu on {named}")
    peak, share = (card.float32_flops, FLOAT32_SHARE) if dtype == "float32" else (card.half_flops, HALF_SHARE)
    return Speed(share * peak, f"{share:.0%} of {peak / 1e12:.0f} TFLOPS, assumed") if peak else None


def measured_speed(checks: Sequence[Mapping[str, Any]], parameters: float) -> float | None:
    """Operations a second of the check of training whose shape is nearer in size, 0.5B or 7B."""
    named = [check["figures"] for check in checks if check["name"] == "throughput of training"]
    figures: Mapping[str, Any] = named[0] if named else {}
    shape = "7B" if parameters > 2e9 and "7B share of the matrix rate" in figures else "0.5B"
    share = figures.get(f"{shape} share of the matrix rate")
    return None if share is None else share * figures["matrix_tflops"] * 1e12


def describe_memory(estimate: Estimate) -> str:
    """ "14.2 weights + 0.2 adapter …" in GiB, without what is 0."""
    parts = vars(estimate.memory).items()
    return " + ".join(f"{size / GIB:.1f} {name}" for name, size in parts if size >= 0.05 * GIB) or "below 0.1"


def describe_cost(seconds: float, price: float | None) -> str:
    return describe_seconds(seconds) + ("" if price is None else f", {seconds / 3600 * price:.2f} at {price:g} an hour")


def plan_run(run: str, gpu: str, tokens: int | None = None, price: float | None = None) -> list[list[str]]:
    """Rows (model, work, memory, verdict, time) of an experiment on one card; of a blend those of its members.

    tokens: of one epoch's training. price: of an hour. Raises ValueError for an unknown card, and for a blend whose
    members are not trained: a process can import one experiment's predict.py.
    """
    config, card = read_run_config(run), find_card(gpu)
    if members := config.get("members"):
        if untrained := [member for member in members if records.read_record(paths.run_folder(member)) is None]:
            raise ValueError(f"{run} has members that are not trained: plan {', '.join(untrained)} by themselves")
        rows_of = {member: plan_run(member, gpu, tokens, price) for member in members}
        return [[f"{member}: {row[0]}", *row[1:]] for member, rows in rows_of.items() for row in rows]
    rows = [describe_training(plan, card, tokens, price) for plan in plan_trainings(run, config, card)]
    models, _ = list_models(run, config)
    return rows + [describe_inference(model, config, card) for model in models]


def describe_training(plan: Training, card: Accelerator, tokens: int | None, price: float | None) -> list[str]:
    try:
        estimate = plan.estimate
    except ValueError as error:
        return [plan.model.name, plan.settings, str(error), "not known", ""]
    room = f"{needed_bytes(estimate) / GIB:.1f} of {card_bytes(card) / GIB:.1f} GiB"
    fits = plan.fits(card)
    verdict = f"fits, {room}" if fits else f"does not fit, {room}: {' | '.join(find_ways(plan, card))}"
    count = (tokens or plan.training.tokens or ASSUMED_TOKENS) * plan.training.epochs
    speed = read_speed(card, plan.training.dtype, estimate.parameters)
    time = f"the speed of {card.card} is not known"
    if speed:
        seconds = estimate.operations * count / speed.operations
        time = f"{describe_cost(seconds, price)} for {count:,} tokens ({speed.why})"
    return [plan.model.name, f"train: {plan.settings}", describe_memory(estimate), verdict, time]


def describe_inference(model: Model, config: Mapping[str, Any], card: Accelerator) -> list[str]:
    engine, work = EngineSettings(**(config.get("engine") or {})), plan_work(config, None)
    dtype = card.half if engine.dtype == "auto" else engine.dtype
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", work.longest)
    settings = f"infer: {dtype}, batch_tokens={engine.batch_tokens}"
    try:
        tokens = engine.tokens
        if engine.batch_tokens == "auto":
            tokens = fit_inference(model.config, model.kind, dtype, usable_bytes(card.memory_gb or 0.0))
            settings += f" ({tokens})"
        batch = Batch(tokens, min(work.longest, tokens, limit), 1)
        estimate = estimate_inference(model.config, model.kind, dtype, batch, work.new if model.kind else 1)
    except ValueError as error:
        return [model.name, settings, str(error), "not known", ""]
    left = card_bytes(card) - needed_bytes(estimate)
    verdict = f"{'fits' if left >= 0 else 'does not fit'}, {needed_bytes(estimate) / GIB:.1f} of"
    verdict += f" {card_bytes(card) / GIB:.1f} GiB"
    if left < 0:
        verdict += ": quantize it, or a smaller engine.batch_tokens"
    elif model.kind:
        verdict += f"; room for {left / cache_bytes(model.config, dtype):,.0f} tokens of keys and values"
    speed = read_speed(card, dtype, estimate.parameters)
    rate = f"{speed.operations / estimate.operations:,.0f} tokens/s ({speed.why})" if speed else "speed is not known"
    return [model.name, settings, describe_memory(estimate), verdict, rate]


def print_plan(run: str, gpu: str, tokens: int | None, price: float | None) -> None:
    card = find_card(gpu)
    title = f"{run} on one of {card.count} cards, {card.card}" if card.count > 1 else f"{run} on {card.card}"
    rows = plan_run(run, gpu, tokens, price)
    if rows:
        print_table(title, ("model", "work", "GiB", "memory", "time"), rows)
    else:
        print(f"{run}: its config names no model folder that is here, so nothing is planned for a card")


def print_pretraining(pretraining: Pretraining, gpu: str, price: float | None) -> None:
    """The loss by Chinchilla's law, the split of the same operations that it finds best, time and cost by 6·N·D."""
    best, card = best_split(pretraining.operations), find_card(gpu)
    print(
        f"{pretraining.parameters:.3g} parameters, {pretraining.tokens:.3g} tokens: loss about {pretraining.loss:.3f} "
        f"nats a token (Hoffmann et al., 2022: their data and tokenizer), {pretraining.operations:.3g} operations"
    )
    print(
        f"the same operations are best spent on {best.parameters:.3g} parameters and {best.tokens:.3g} tokens: loss "
        f"{best.loss:.3f}"
    )
    if speed := read_speed(card, card.half, pretraining.parameters):
        cost = describe_cost(pretraining.operations / speed.operations, price)
        print(f"on {card.card}: {cost} ({speed.why})")
