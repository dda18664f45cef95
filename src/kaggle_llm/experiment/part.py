"""The rows that one set of models is learned from: all but a fold's, or all; and what train.py does with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import processes, records
from kaggle_llm.base.fingerprint import FROM_TEXTS, hash_code, hash_module_of
from kaggle_llm.engines.prompts import Prompter
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.inference.model import Model, find_model, replace_model
from kaggle_llm.inference.run import Run, import_predict
from kaggle_llm.training.settings import LoraSettings
from kaggle_llm.training.trainer import Job, Task, describe_training, fine_tune, keep_within
from kaggle_llm.weights.average import average_adapters
from kaggle_llm.weights.merge import merge_adapter
from kaggle_llm.weights.quantize import check_group_size, quantize
from kaggle_llm.weights.recorder import collect_prompts

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.experiment.experiment import Experiment

TRAINER = "kaggle_llm.training.trainer"
HEADS = ("sequence", "token")  # kinds of models whose head is new: untrained, they can say nothing


class Part:
    """name: fold<k>, full or average. train: rows with their targets. models: where the config's models come from."""

    def __init__(
        self, experiment: Experiment, name: str, fold: int | None, train: pl.DataFrame, models: Sequence[Model]
    ) -> None:
        self.experiment, self.name, self.fold, self.train = experiment, name, fold, train
        self.config, self.competition = experiment.config, experiment.competition
        self.models: list[Model] = list(models)
        """What predicts this part's rows; `learn` and `make` put theirs in."""
        self.before: list[Model] | None = list(models)
        """What predicts them without a training; None: nothing can."""
        self.learned: dict[str, Path] = {}
        """Model → what its training left: an adapter, or all weights."""

    @cached_property
    def truth(self) -> pl.DataFrame:
        """The right items of the rows."""
        return self.competition.truth(self.train)

    @cached_property
    def run(self) -> Run:
        """For making examples: with the models as they are before the training."""
        return self.experiment.open_run(self.models)

    @property
    def loaded(self) -> Any:
        """What predict.load makes of `run`: the prompts and the retrieval of prediction."""
        return self.run.loaded(import_predict(self.experiment.exp))

    def prompter(self, name: str) -> Prompter:
        """The config's prompts for the tokenizer of model `name`."""
        return Prompter(load_tokenizer(find_model(self.models, name).folder), self.config.prompt)

    def close(self) -> None:
        """Give the memory of `run` back."""
        if "run" in self.__dict__:
            self.__dict__.pop("run").close()

    def learn(self, name: str, task: Task[Any], make_examples: Callable[[Part], Sequence[Any]]) -> None:
        """Fine-tune model `name` on the examples; merge and quantise what comes of it, as the config says.

        make_examples: is called by the first process only; what it gives is the key of the training, with the task, the
        settings, the model and the trainer's code.
        """
        base, config = find_model(self.models, name), self.config
        check_forms(config)
        check_group_size(base.folder, config.quantize)
        examples = processes.share(make_examples(self) if processes.is_first() else None)
        self.close()
        job = Job(base.folder, Path(), config.lora, config.training, config.seed, self.experiment.about)
        kept = keep_within(task, examples, config.training)
        settings = describe_training(task, job)
        inputs = {"examples": kept, "base": base.folder, "code": hash_training(task)}

        def train(folder: Path) -> None:
            fine_tune(task, examples, replace(job, folder=folder))

        step = f"{self.stem(name)}/{'trained' if config.lora.method == 'full' else 'adapter'}"
        self.learned[name] = self.experiment.steps.make(step, train, settings, inputs, together=True)
        if task.kind in HEADS:
            self.before = None
        self.finish(name, base, self.learned[name])

    def make(
        self, name: str, make: Callable[[Path], Any], inputs: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> None:
        """A model of one's own: make(folder) leaves it. It is made again where inputs, settings or the function's code,
        with the files beside it that it imports, have changed."""
        function = make.func if isinstance(make, partial) else make
        code = {"code": hash_module_of(function, FROM_TEXTS)}
        folder = self.experiment.steps.make(f"{self.name}/{name}", make, settings, {**inputs, **code})
        self.learned[name], self.before = folder, None
        self.models = replace_model(self.models, Model(name, folder))

    def stem(self, name: str) -> str:
        """Where the steps of a model stand: the first one of a part has the part's folder to itself."""
        return self.name if not self.learned or name in self.learned else f"{self.name}/{name}"

    def finish(self, name: str, base: Model, trained: Path) -> None:
        """Put model `name` in the form in which it answers: attached, merged or quantised."""
        config, stem = self.config, self.stem(name)
        if not (trained / records.ADAPTER).is_file():
            self.models = replace_model(self.models, Model(name, trained))
        elif config.merge.into == "nothing":
            self.models = replace_model(self.models, Model(name, trained, base.folder))
        else:
            merge = partial(merge_adapter, base.folder, trained, settings=config.merge)
            inputs = {"base": base.folder, "adapter": trained, "code": hash_code("kaggle_llm.weights.merge")}
            merged = self.experiment.steps.make(f"{stem}/merged", merge, {"merge": config.merge}, inputs)
            self.models = replace_model(self.models, Model(name, merged))
        if config.quantize.scheme != "none":
            self.quantize(name, stem)

    def quantize(self, name: str, stem: str) -> None:
        """Model `name` quantised, calibrated on prompts that predict.score asks of training rows."""
        settings, seed, model = self.config.quantize, self.config.seed, find_model(self.models, name)
        drawn = self.train.sample(min(settings.rows, self.train.height), seed=seed)
        rows = self.competition.unlabelled(drawn)
        prompts: list[tuple[int, ...]] = []
        if processes.is_first():
            about = self.config, self.competition, self.models, rows, self.experiment.name
            prompts = collect_prompts(self.experiment.exp, name, *about)

        def make(folder: Path) -> None:
            quantize(model.folder, drawn["id"].to_list(), prompts, settings, folder, seed)

        code = hash_code("kaggle_llm.weights.quantize", "kaggle_llm.weights.quantize_worker")
        inputs = {"model": model.folder, "prompts": prompts, "code": code}
        step = f"{stem}/{settings.scheme}"
        folder = self.experiment.steps.make(step, make, {"quantize": settings}, inputs)
        self.models = replace_model(self.models, Model(name, folder))

    def average(self, parts: Sequence[Part]) -> None:
        """The mean of what the folds learned, in the form in which it answers."""
        for name in parts[0].learned:
            members = {part.name: part.learned[name] for part in parts}
            settings, base = self.config.average, find_model(self.models, name)
            make = partial(average_adapters, list(members.values()), settings=settings)
            inputs = {**members, "code": hash_code("kaggle_llm.weights.average")}
            step = f"{self.stem(name)}/adapter"
            self.learned[name] = self.experiment.steps.make(step, make, {"average": settings}, inputs)
            self.finish(name, base, self.learned[name])


def check_forms(config: Any) -> None:
    """Raises ValueError, before a training, where what comes of it cannot take the form that the config asks for."""
    scheme = config.quantize.scheme
    if scheme != "none" and config.merge.into == "nothing" and config.lora.method != "full":
        raise ValueError(
            f"quantize.scheme = {scheme} and merge.into = nothing: an adapter is not quantised; set merge.into=original"
        )


def hash_training(task: Task[Any]) -> str:
    """Of the trainer's code and the task's."""
    return records.hash_json([hash_code(TRAINER), hash_module_of(task)])


def all_weights() -> LoraSettings:
    """For an experiment that has no adapter."""
    return LoraSettings("full")
