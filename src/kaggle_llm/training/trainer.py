"""Fine-tunes a model on a task's examples, with transformers' Trainer and steps planned by tokens.

Leaves what base_model.save_trained leaves, and log.jsonl. A killed training resumes from its last checkpoint
(checkpoints.py); on a CPU with the same number of threads the result has the same bits.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, cast

from kaggle_llm.base import paths, processes, records
from kaggle_llm.base.device import describe_device, is_out_of_memory, release_device, trim_heap
from kaggle_llm.base.fingerprint import hash_code, hash_module_of, plain_value
from kaggle_llm.training.base_model import check_quantised, load_trainable, save_trained, unpack_beyond_window
from kaggle_llm.training.callbacks import make_callbacks
from kaggle_llm.training.checkpoints import Checkpoints
from kaggle_llm.training.optimizer import choose_optimizer, group_parameters
from kaggle_llm.training.plan import Share, keep_within, plan_training
from kaggle_llm.training.settings import LoraSettings, TrainingSettings, resolve_training
from kaggle_llm.training.task import Example, Task
from kaggle_llm.training.tracking import tracking
from kaggle_llm.training.tricks import apply_tricks
from kaggle_llm.training.watch import Watch, hold_out
from kaggle_llm.training.weight_tricks import attach_average, attach_freezing, check_trainer, choose_adversary

if TYPE_CHECKING:
    import torch

Arguments = ParamSpec("Arguments")

# Set by accelerate launch; a checkpoint of one launcher does not load into another.
LAUNCHER_VARIABLES = (
    "ACCELERATE_USE_FSDP",
    "FSDP_VERSION",
    "FSDP_STATE_DICT_TYPE",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE",
)
UNKEYED = ("checkpoint_steps", "track", "watch", "tricks")  # the last two have keys where they are on
KEYED_PACKAGES = ("torch", "transformers", "peft")  # a training's result depends on their versions


@dataclass(frozen=True)
class Job:
    """A training's base model, output folder, settings and seed."""

    base: Path
    folder: Path
    lora: LoraSettings
    training: TrainingSettings
    seed: int
    about: Mapping[str, Any] = field(default_factory=dict)
    """For trackers: run, config, git state, parents."""

    def __post_init__(self) -> None:
        check_quantised(self.base, self.lora)
        object.__setattr__(self, "training", resolve_training(self.training))  # frozen; its key names the dtype


def on_device(train: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """A training that leaves the GPU empty: the workers, vLLM or the quantiser that come next are other processes.

    Raises MemoryError with figures and the ways out where the GPU's memory is too small.
    """

    @wraps(train)
    def trained(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
        try:
            train(*args, **kwargs)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            peak, total = measure_memory()
            raise MemoryError(
                f"out of GPU memory: {peak:.1f} of {total:.1f} GB were in use. Lower training.batch_tokens, set "
                f"training.gradient_checkpointing=true, training.dtype=bfloat16 (a T4: float16) or lora.method=qlora"
            ) from error
        release_device()

    return trained


def measure_memory() -> tuple[float, float]:
    """(peak that this process has allocated, size) of the first GPU's memory, in GB."""
    import torch

    if not torch.cuda.is_available():
        return math.nan, math.nan
    return torch.cuda.max_memory_allocated() / 1e9, torch.cuda.get_device_properties(0).total_memory / 1e9


@on_device
def fine_tune(task: Task[Example], examples: Sequence[Example], job: Job) -> None:
    """Train on the first examples within `training.tokens` and save the adapter (or all weights) into job.folder.

    Raises ValueError where no example fits into the budget, a trick does not fit the task, or the loss is not finite.
    """
    training = job.training
    lengths = [task.length(example) for example in examples]
    kept = keep_within(examples, lengths, training.tokens, "examples")
    trained, watched = hold_out(kept, training.watch)
    tricked = apply_tricks(task, trained, training.tricks)
    weights = [tricked.weight(example) for example in trained]
    shares = plan_training(lengths[: len(trained)], weights, task.padded, training, job.seed, processes.world())
    if processes.is_first():
        tokens = sum(lengths[: len(trained)])
        print(f"training on {len(trained)} of {len(examples)} examples, {tokens} tokens", flush=True)
        if len(trained) < training.batch:
            print(f"fewer examples than training.batch = {training.batch}: one step an epoch", flush=True)
    about = {
        "task": describe_task(task),
        "kind": task.kind,
        "examples": [asdict(cast(Any, example)) for example in kept],
        "code": hash_module_of(task),
    }
    checkpoints = Checkpoints(job.folder, describe_job(job, about))
    model = load_trainable(job.base, task.kind, job.lora, training, job.seed, **task.config())
    check_context(lengths, model)
    unpack_beyond_window(model, max(lengths))
    arguments = make_arguments(job, checkpoints, len(shares) // processes.world())
    trainer = make_step_trainer(model, arguments, tricked, trained, shares, choose_adversary(training.tricks))
    watch = Watch(task, watched, training) if watched else None
    run_trainer(trainer, job, checkpoints, watch=watch, loss_is_tricked=True)


def describe_training(task: Task[Any], job: Job) -> dict[str, Any]:
    """All that trained weights depend on, except examples, base and code: the settings in a training's key."""
    return {"task": describe_task(task), **describe_conditions(job)}


def describe_conditions(job: Job) -> dict[str, Any]:
    """The part of `describe_training` that all tasks have."""
    return {
        "lora": asdict(job.lora),
        "training": describe_settings(job.training),
        "launcher": describe_launcher(),
        "device": "cpu" if describe_device() == "cpu" else "cuda",
        "versions": {name: version for name, version in records.package_versions().items() if name in KEYED_PACKAGES},
    }


def describe_task(task: Task[Any]) -> dict[str, Any]:
    """Name of its class, and its settings."""
    return {"name": type(task).__name__, **{name: plain_value(value) for name, value in vars(task).items()}}


def describe_settings(training: TrainingSettings) -> dict[str, Any]:
    """The settings without those that only save or log, and without a watch and tricks that are off."""
    values = {name: value for name, value in asdict(training).items() if name not in UNKEYED}
    watch = {"watch": asdict(training.watch)} if training.watch.rows else {}
    tricks = training.tricks.chosen()
    return {**values, **watch, **({"tricks": tricks} if tricks else {})}


def describe_launcher() -> dict[str, Any]:
    """How many processes train, and how they share the model."""
    return {"world": processes.world(), **{name: os.environ.get(name) for name in LAUNCHER_VARIABLES}}


def check_context(lengths: Sequence[int], model: Any) -> None:
    """Raises ValueError where an example is longer than the model's context."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    long = [length for length in lengths if limit and length > limit]
    if long:
        raise ValueError(
            f"{len(long)} of {len(lengths)} examples are longer than the model's context of {limit} tokens, the "
            f"longest has {max(long)}: lower prompt.budgets"
        )


def describe_job(job: Job, about: Mapping[str, Any]) -> dict[str, Any]:
    """All that the trained weights depend on, for Checkpoints. about: the task's examples, settings and code."""
    return {
        "base": records.hash_content(job.base),
        "seed": job.seed,
        "trainer": hash_code(__name__),
        "lora": asdict(job.lora),
        "training": describe_settings(job.training),
        "launcher": describe_launcher(),
        **about,
    }


def make_arguments(job: Job, checkpoints: Checkpoints, steps: int) -> dict[str, Any]:
    """Arguments for transformers' TrainingArguments or a library's subclass of it."""
    import torch

    training, on_cpu = job.training, not torch.cuda.is_available()
    return {
        "use_cpu": on_cpu,
        "ddp_backend": "gloo" if on_cpu and processes.world() > 1 else None,
        "ddp_find_unused_parameters": False,
        "output_dir": str(checkpoints.folder),
        "max_steps": steps,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.schedule,
        "warmup_steps": math.ceil(training.warmup * steps),
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.clip,
        "bf16": training.dtype == "bfloat16",
        "fp16": training.dtype == "float16",
        "gradient_checkpointing": training.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "steps",
        "save_steps": training.checkpoint_steps,
        "save_total_limit": 2,
        "report_to": [],
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
        "seed": job.seed,
    }


def make_step_trainer(
    model: Any,
    values: dict[str, Any],
    task: Task[Example],
    examples: Sequence[Example],
    shares: Sequence[Share],
    adversary: Callable[[Any], AbstractContextManager[None]] | None = None,
) -> Any:
    """A Trainer whose dataset is the plan: an item is the share of one process in one step.

    adversary: moves a model's weights against their gradients; there each step adds its gradients a second time.
    """
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainingArguments

    class StepTrainer(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

        def training_step(self, model: Any, inputs: dict[str, Share], num_items_in_batch: Any = None) -> torch.Tensor:
            model.train()
            loss = add_gradients(self, model, inputs["share"], examples, task.loss)
            if adversary:
                with adversary(model):
                    add_gradients(self, model, inputs["share"], examples, task.loss)
            return loss

    arguments = TrainingArguments(**values)
    use_one_gpu(arguments)

    def unpack(batch: list[Share]) -> dict[str, Share]:
        return {"share": batch[0]}  # a share is a batch already

    return StepTrainer(model=model, args=arguments, train_dataset=list(shares), data_collator=unpack)


def add_gradients(
    trainer: Any,
    model: Any,
    share: Share,
    examples: Sequence[Any],
    compute_loss: Callable[[Any, Sequence[Any]], torch.Tensor],
) -> torch.Tensor:
    """Σ over this process's parts of loss · world / weight, so that DDP's mean is the mean over units.

    compute_loss: (model, examples of a part) → the sum over their units.
    """
    losses = []
    for number, part in enumerate(share.parts, start=1):
        is_last = number == len(share.parts)
        # Under no_sync FSDP would keep whole gradients on every card, which it is there to avoid.
        sync = nullcontext() if is_last or trainer.is_fsdp_enabled else trainer.accelerator.no_sync(model)
        with sync, trainer.compute_loss_context_manager():
            scale = processes.world() / share.weight if part else 0.0
            loss = compute_loss(model, [examples[i] for i in part] or examples[:1]) * scale
            if trainer.is_deepspeed_enabled:  # its engine syncs and steps by accelerate's flag, not by no_sync
                trainer.accelerator.gradient_state._set_sync_gradients(is_last)
                trainer.accelerator.backward(loss, scale_wrt_gas=False)
            else:
                trainer.accelerator.backward(loss)
        losses.append(loss.detach())
        trim_heap(trainer.args.device.type)
    total: torch.Tensor = sum(losses)
    return total


def use_one_gpu(arguments: Any) -> None:
    """Keep the Trainer from replicating the model over all visible GPUs: several GPUs are torchrun's job."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1


def run_trainer(
    trainer: Any,
    job: Job,
    checkpoints: Checkpoints,
    save: Callable[[Any, Path, Path], None] = save_trained,
    watch: Watch | None = None,
    loss_is_tricked: bool = False,
) -> None:
    """Train with any of transformers' trainers from the latest checkpoint, then save(model, base, folder).

    loss_is_tricked: whether the trainer's loss has the tricks of the settings.
    """
    from transformers import PrinterCallback, ProgressCallback

    if trainer.args.world_size != processes.world():
        seen = trainer.args.world_size
        raise RuntimeError(
            f"{processes.world()} processes were launched, the trainer sees {seen}: they would train apart"
        )
    check_trainer(trainer, job.training, loss_is_tricked)
    optimizer = choose_optimizer(job.training.optimizer)
    trainer.optimizer_cls_and_kwargs = (optimizer, {"params": group_parameters(trainer.model, job.training)})
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    latest = processes.share(checkpoints.open() if processes.is_first() else None)
    log = checkpoints.folder / "log.jsonl"
    average = attach_average(trainer, job.training.tricks.ema, latest)
    if watch:
        watch.attach(trainer, average, latest)
    attach_freezing(trainer, job.training.tricks.freeze)
    for callback in make_callbacks(checkpoints, log):
        trainer.add_callback(callback)
    if latest and processes.is_first():
        print(f"resuming from {latest.name.replace('-', ' of step ')} of {trainer.args.max_steps} steps", flush=True)
    tracker = job.training.track if processes.is_first() else "off"
    with tracking(tracker, job.folder.parent / "tracking", job.about) as trackers:
        for callback in trackers:
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=str(latest) if latest else None)
    if average:
        average.put()
    if watch:
        watch.finish(trainer, job.folder)
    model = gather_weights(trainer)
    if processes.is_first():
        save(model, job.base, job.folder)
        records.write_json(job.folder / records.WEIGHTS, describe_weights(job))
        (job.folder / "log.jsonl").write_bytes(log.read_bytes())
        checkpoints.remove()


def describe_weights(job: Job) -> dict[str, Any]:
    """The content of weights.json, by which merging recognises the base."""
    return {
        "stage": "adapter" if (job.folder / records.ADAPTER).is_file() else "trained",
        "parents": {"base": paths.relative(job.base)},
        "base_sha256": records.hash_content(job.base),
        "method": job.lora.method,
        "dtype": job.training.dtype,
    }


def gather_weights(trainer: Any) -> Any:
    """The model with all its trained weights. Every process must call it: under FSDP and ZeRO-3 each holds a part."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    model = trainer.model
    if trainer.is_fsdp_enabled:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        state = get_model_state_dict(model, options=options)
        for name in getattr(model, "all_tied_weights_keys", ()):  # those that are tied here: else written twice
            state.pop(name, None)
    elif trainer.is_deepspeed_enabled:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    else:
        return model
    model.save_pretrained = partial(model.save_pretrained, state_dict=state)
    return model
