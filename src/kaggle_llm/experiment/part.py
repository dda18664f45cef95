"""The rows that a fold trains on, or all training rows, and the models that train.py trains on them."""

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
from kaggle_llm.training.plan import keep_within
from kaggle_llm.training.task import Task
from kaggle_llm.training.trainer import Job, describe_training, fine_tune
from kaggle_llm.weights.average import average_adapters
from kaggle_llm.weights.merge import merge_adapter
from kaggle_llm.weights.quantize import check_group_size, quantize
from kaggle_llm.weights.recorder import collect_prompts
from kaggle_llm.weights.soup import WITH_BASE, SoupSettings, merge_checkpoints

if TYPE_CHECKING:
    import polars as pl

    from kaggle_llm.experiment.experiment import Experiment

TRAINER = "kaggle_llm.training.trainer"
HEADS = ("sequence", "token")  # kinds of tasks with a new head: untrained, it cannot predict


class Part:
    """name: fold<k>, full or average. train: rows with their targets. models: those of the config."""

    def __init__(
        self, experiment: Experiment, name: str, fold: int | None, train: pl.DataFrame, models: Sequence[Model]
    ) -> None:
        self.experiment, self.name, self.fold, self.train = experiment, name, fold, train
        self.config, self.competition = experiment.config, experiment.competition
        self.models: list[Model] = list(models)
        """The models that predict; `learn`, `make` and `merge` replace theirs."""
        self.before: list[Model] | None = list(models)
        """The models before the training; None where they cannot predict untrained."""
        self.learned: dict[str, Path] = {}
        """Model → the folder of its training: an adapter, or all weights."""

    @cached_property
    def truth(self) -> pl.DataFrame:
        """The right items of the training rows."""
        return self.competition.truth(self.train)

    @cached_property
    def run(self) -> Run:
        """A Run for making examples, with the models before the training."""
        return self.experiment.open_run(self.models)

    @property
    def loaded(self) -> Any:
        """The result of predict.load, such as prompts and retrieval, for making examples as prediction does."""
        return self.run.loaded(import_predict(self.experiment.exp))

    def prompter(self, name: str) -> Prompter:
        """The config's prompts with the tokenizer of model `name`."""
        return Prompter(load_tokenizer(find_model(self.models, name).folder), self.config.prompt)

    def close(self) -> None:
        """Free the memory of `run`."""
        if "run" in self.__dict__:
            self.__dict__.pop("run").close()

    def learn(self, name: str, task: Task[Any], make_examples: Callable[[Part], Sequence[Any]]) -> None:
        """Fine-tune model `name` on the examples, then merge and quantise it as the config says.

        make_examples: called by the first process only. The training is reused where examples, task, settings, base
        model and the trainer's code have not changed.
        """
        base, config = find_model(self.models, name), self.config
        check_quantizable(config)
        check_group_size(base.folder, config.quantize)
        examples = processes.share(make_examples(self) if processes.is_first() else None)
        self.close()
        job = Job(base.folder, Path(), config.lora, config.training, config.seed, self.experiment.about)
        kept = keep_within(examples, [task.length(row) for row in examples], config.training.tokens, "examples")
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
        self,
        name: str,
        make: Callable[[Path], Any],
        inputs: Mapping[str, Any],
        settings: Mapping[str, Any],
        together: bool = False,
    ) -> None:
        """A model that train.py makes itself: make(folder) fills its folder.

        It is made again where inputs, settings, or the code of the function and its imports have changed. together:
        under torchrun all processes call make, else the first one does.
        """
        function = make.func if isinstance(make, partial) else make
        inputs = {**inputs, "code": hash_module_of(function, FROM_TEXTS)}
        if name not in [model.name for model in self.models if model.member is None]:
            self.before = None  # there is no untrained model that could predict
        self.close()
        folder = self.experiment.steps.make(f"{self.name}/{name}", make, settings, inputs, together)
        self.learned[name] = folder
        self.models = replace_model(self.models, Model(name, folder))

    def stem(self, name: str) -> str:
        """The folder of a model's steps: the part's own for its first model, a subfolder for others."""
        return self.name if name == next(iter(self.learned), name) else f"{self.name}/{name}"

    def finish(self, name: str, base: Model, trained: Path) -> None:
        """Bring model `name` into the form that predicts: adapter attached or merged, quantised if asked."""
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
        """Quantise model `name`, calibrated on the prompts of predict.score for training rows."""
        settings, seed, model = self.config.quantize, self.config.seed, find_model(self.models, name)
        rows = self.competition.unlabelled(self.train.sample(min(settings.rows, self.train.height), seed=seed))
        prompts: list[tuple[int, ...]] = []
        if processes.is_first():
            run = self.config, self.competition, self.models, rows, self.experiment.name
            prompts = collect_prompts(self.experiment.exp, name, *run)

        def make(folder: Path) -> None:
            quantize(model.folder, rows["id"].to_list(), prompts, settings, folder, seed)

        code = hash_code("kaggle_llm.weights.quantize", "kaggle_llm.weights.quantize_worker")
        inputs = {"model": model.folder, "prompts": prompts, "code": code}
        step = f"{stem}/{settings.scheme}"
        folder = self.experiment.steps.make(step, make, {"quantize": settings}, inputs)
        self.models = replace_model(self.models, Model(name, folder))

    def merge(self, name: str, weights: Mapping[str, Path], settings: SoupSettings) -> None:
        """Merge model `name` from other runs' weights. weights: run → folder."""
        base = find_model(self.models, name)
        needed = base.folder if settings.method in WITH_BASE else None
        make = partial(merge_checkpoints, list(weights.values()), settings=settings, base=needed)
        inputs = {**weights, "base": needed, "code": hash_code("kaggle_llm.weights.soup")}
        step = f"{self.stem(name)}/merged"
        self.learned[name] = self.experiment.steps.make(step, make, {"merge": settings}, inputs)
        self.finish(name, base, self.learned[name])

    def average(self, parts: Sequence[Part]) -> None:
        """Average the adapters that the folds trained, and bring them into the form that predicts."""
        for name in parts[0].learned:
            members = {part.name: part.learned[name] for part in parts}
            settings, base = self.config.average, find_model(self.models, name)
            make = partial(average_adapters, list(members.values()), settings=settings)
            inputs = {**members, "code": hash_code("kaggle_llm.weights.average")}
            step = f"{self.stem(name)}/adapter"
            self.learned[name] = self.experiment.steps.make(step, make, {"average": settings}, inputs)
            self.finish(name, base, self.learned[name])


def check_quantizable(config: Any) -> None:
    """Raises ValueError where the config asks for a quantised adapter."""
    scheme = config.quantize.scheme
    if scheme != "none" and config.merge.into == "nothing" and config.lora.method != "full":
        raise ValueError(
            f"quantize.scheme = {scheme} and merge.into = nothing: an adapter is not quantised; set merge.into=original"
        )


def hash_training(task: Task[Any]) -> str:
    """Hash of the trainer's code and the task's."""
    return records.hash_json([hash_code(TRAINER), hash_module_of(task)])
