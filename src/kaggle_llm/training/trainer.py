"""Fine-tuning of a task's examples, by transformers' Trainer with steps that are planned by tokens.

Leaves what models.save_trained leaves, and log.jsonl. Killed at any step, the next start goes on from the last
checkpoint (checkpoints.py); on a CPU with the same number of threads it ends with the same bits.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from kaggle_llm.base import paths, processes, records
from kaggle_llm.base.device import describe_device
from kaggle_llm.base.fingerprint import hash_code, hash_module_of, plain_value
from kaggle_llm.training.base_model import Kind, check_quantised, load_trainable, save_trained
from kaggle_llm.training.callbacks import make_callbacks
from kaggle_llm.training.checkpoints import Checkpoints
from kaggle_llm.training.optimizer import group_parameters
from kaggle_llm.training.plan import Share, plan_training, within_budget
from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.tracking import tracking

if TYPE_CHECKING:
    import torch

E = TypeVar("E", contravariant=True)

# Set by accelerate launch; checkpoints of one kind do not load into another.
LAUNCHER = (
    "ACCELERATE_USE_FSDP",
    "FSDP_VERSION",
    "FSDP_STATE_DICT_TYPE",
    "ACCELERATE_USE_DEEPSPEED",
    "ACCELERATE_DEEPSPEED_ZERO_STAGE",
)


PACKAGES = ("torch", "transformers", "peft")  # whose versions a training depends on


class Task(Protocol[E]):
    """What a kind of training says about its examples; everything else is the same for all of them."""

    kind: Kind
    padded: bool
    """Are examples that are computed together padded to the longest?"""

    def config(self) -> dict[str, Any]:
        """Changes of the model's config, such as num_labels or attn_implementation."""

    def length(self, example: E) -> int:
        """Tokens."""

    def weight(self, example: E) -> float:
        """Loss units: what the loss is a mean over (1 a row or group, or its loss tokens)."""

    def loss(self, model: Any, examples: Sequence[E]) -> torch.Tensor:
        """Sum over the examples' loss units; a scalar."""


@dataclass(frozen=True)
class Job:
    """Where a training starts from and what it leaves where."""

    base: Path
    folder: Path
    lora: LoraSettings
    training: TrainingSettings
    seed: int
    about: Mapping[str, Any] = field(default_factory=dict)
    """For trackers: run, config, git state, parents."""

    def __post_init__(self) -> None:
        check_quantised(self.base, self.lora)


def fine_tune(task: Task[E], examples: Sequence[E], job: Job) -> None:
    """Train on the first examples within `training.tokens` and save the adapter (or all weights) into job.folder.

    Raises ValueError where no example fits into the budget and where the loss is not finite, MemoryError with peak
    figures and the settings to change where a GPU's memory is not enough.
    """
    kept = keep_within(task, examples, job.training)
    lengths = [task.length(example) for example in kept]
    weights = [task.weight(example) for example in kept]
    shares = plan_training(lengths, weights, task.padded, job.training, job.seed, processes.world())
    if processes.is_first():
        print(f"training on {len(kept)} of {len(examples)} examples, {sum(lengths)} tokens", flush=True)
        if len(kept) < job.training.batch:
            print(f"fewer examples than training.batch = {job.training.batch}: one step an epoch", flush=True)
    about = {
        "task": describe_task(task),
        "kind": task.kind,
        "examples": [asdict(cast(Any, example)) for example in kept],
        "code": hash_module_of(task),
    }
    checkpoints = Checkpoints(job.folder, describe_job(job, about))
    model = load_trainable(job.base, task.kind, job.lora, job.training, job.seed, **task.config())
    check_lengths(lengths, model)
    arguments = make_arguments(job, checkpoints, len(shares) // processes.world())
    trainer = make_step_trainer(model, arguments, task, kept, shares)
    run_trainer(trainer, job, checkpoints)


def keep_within(task: Task[E], examples: Sequence[E], training: TrainingSettings) -> Sequence[E]:
    """The first examples, as many as `training.tokens` allows; raises ValueError where that is none."""
    kept = examples[: within_budget([task.length(example) for example in examples], training.tokens)]
    if not kept:
        raise ValueError(f"training.tokens = {training.tokens}: not even the first of {len(examples)} examples fits")
    return kept


def describe_training(task: Task[Any], job: Job) -> dict[str, Any]:
    """All that trained weights depend on but for the examples, the base and the code: the settings of a step's key."""
    return {
        "task": describe_task(task),
        "lora": asdict(job.lora),
        "training": describe_settings(job.training),
        "launcher": describe_launcher(),
        "device": "cpu" if describe_device() == "cpu" else "cuda",
        "versions": {name: version for name, version in records.package_versions().items() if name in PACKAGES},
    }


def describe_task(task: Task[Any]) -> dict[str, Any]:
    """Its class and its settings."""
    return {"name": type(task).__name__, **{name: plain_value(value) for name, value in vars(task).items()}}


def describe_settings(training: TrainingSettings) -> dict[str, Any]:
    """Without what only saves or logs."""
    return {name: value for name, value in asdict(training).items() if name not in ("checkpoint_steps", "track")}


def describe_launcher() -> dict[str, Any]:
    """How many processes train, and how they share the model."""
    return {"world": processes.world(), **{name: os.environ.get(name) for name in LAUNCHER}}


def check_lengths(lengths: Sequence[int], model: Any) -> None:
    """Raises ValueError where an example is longer than the model's context."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    long = [length for length in lengths if limit and length > limit]
    if long:
        raise ValueError(
            f"{len(long)} of {len(lengths)} examples are longer than the model's context of {limit} tokens, the "
            f"longest has {max(long)}: lower prompt.budgets"
        )


def describe_job(job: Job, about: Mapping[str, Any]) -> dict[str, Any]:
    """All that the trained weights depend on, for Checkpoints. about: examples, their kind's settings and code."""
    settings = {"lora": asdict(job.lora), "training": describe_settings(job.training), "launcher": describe_launcher()}
    known = {"base": records.hash_content(job.base), "seed": job.seed, "trainer": hash_code(__name__)}
    return {**known, **settings, **about}


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
    model: Any, values: dict[str, Any], task: Task[E], examples: Sequence[E], shares: Sequence[Share]
) -> Any:
    """A Trainer whose dataset is the plan: an item is what one process computes in one step."""
    from torch.utils.data import SequentialSampler
    from transformers import Trainer, TrainingArguments

    class StepTrainer(Trainer):
        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return SequentialSampler(self.train_dataset)

        def training_step(self, model: Any, inputs: dict[str, Share], num_items_in_batch: Any = None) -> torch.Tensor:
            """Σ over this process's parts of loss · world / weight, so that DDP's mean is the mean over units."""
            model.train()
            share = inputs["share"]
            losses = []
            for number, part in enumerate(share.parts, start=1):
                # FSDP that waits would keep whole gradients on every card: what it is there to avoid.
                now = number == len(share.parts) or self.is_fsdp_enabled
                wait = nullcontext() if now else self.accelerator.no_sync(model)
                with wait, self.compute_loss_context_manager():
                    chosen = [examples[i] for i in part] or examples[:1]
                    scale = processes.world() / share.weight if part else 0.0
                    loss = task.loss(model, chosen) * scale
                    self.add_gradient(loss, number == len(share.parts))
                losses.append(loss.detach())
                trim_heap(self.args.device.type)
            return sum(losses)

        def add_gradient(self, loss: torch.Tensor, last: bool) -> None:
            if self.is_deepspeed_enabled:  # its engine reduces and steps where accelerate says so, not under no_sync
                self.accelerator.gradient_state._set_sync_gradients(last)
                self.accelerator.backward(loss, scale_wrt_gas=False)
            else:
                self.accelerator.backward(loss)

    arguments = TrainingArguments(**values)
    # Two visible GPUs in one process would make the Trainer replicate the model: that is what torchrun is for.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return StepTrainer(model=model, args=arguments, train_dataset=list(shares), data_collator=_only)


def trim_heap(device: str) -> None:
    """On a CPU, give back what activations took: glibc keeps pieces that the next part's do not fit into."""
    if device == "cpu" and sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # other C libraries have none
        if trim:
            trim(0)


def _only(batch: list[Share]) -> dict[str, Share]:
    """A share is a batch already."""
    (share,) = batch
    return {"share": share}


def run_trainer(
    trainer: Any, job: Job, checkpoints: Checkpoints, save: Callable[[Any, Path, Path], None] = save_trained
) -> None:
    """Train with any of transformers' trainers, from the latest checkpoint on; save(model, base, folder) at the end."""
    from torch.optim import AdamW
    from transformers import PrinterCallback, ProgressCallback

    if trainer.args.world_size != processes.world():
        raise RuntimeError(f"{processes.world()} processes train {trainer.args.world_size} apart: each would go alone")
    trainer.optimizer_cls_and_kwargs = (AdamW, {"params": group_parameters(trainer.model, job.training)})
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    latest = processes.share(checkpoints.open() if processes.is_first() else None)
    log = checkpoints.folder / "log.jsonl"
    for callback in make_callbacks(checkpoints, log):
        trainer.add_callback(callback)
    if latest and processes.is_first():
        print(f"going on from {latest.name.replace('-', ' of step ')} of {trainer.args.max_steps} steps", flush=True)
    word = job.training.track if processes.is_first() else "off"
    with tracking(word, job.folder.parent / "tracking", job.about) as trackers:
        for callback in trackers:
            trainer.add_callback(callback)
        train_within_memory(trainer, latest)
    whole = gather_weights(trainer)
    if processes.is_first():
        save(whole, job.base, job.folder)
        records.write_json(job.folder / records.WEIGHTS, describe_weights(job))
        (job.folder / "log.jsonl").write_bytes(log.read_bytes())
        checkpoints.remove()


def describe_weights(job: Job) -> dict[str, Any]:
    """weights.json: what was trained from what; merging needs it to know its base again."""
    return {
        "stage": "adapter" if (job.folder / records.ADAPTER).is_file() else "trained",
        "parents": {"base": paths.relative(job.base)},
        "base_sha256": records.hash_content(job.base),
        "method": job.lora.method,
        "dtype": job.training.dtype,
    }


def gather_weights(trainer: Any) -> Any:
    """The model with all its trained weights: under FSDP and ZeRO-3 each process holds a part, all must call this."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    model = trainer.model
    if trainer.is_fsdp_enabled:
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        state = get_model_state_dict(model, options=options)
        for name in getattr(model, "_tied_weights_keys", None) or ():  # gathered apart, they would be written twice
            state.pop(name, None)
    elif trainer.is_deepspeed_enabled:
        state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    else:
        return model
    model.save_pretrained = partial(model.save_pretrained, state_dict=state)
    return model


def train_within_memory(trainer: Any, latest: Path | None) -> None:
    """trainer.train(); a GPU that is too small is reported with its figures and the way out."""
    import torch

    try:
        trainer.train(resume_from_checkpoint=str(latest) if latest else None)
    except torch.OutOfMemoryError as error:
        peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else math.nan
        total = torch.cuda.get_device_properties(0).total_memory / 1e9 if torch.cuda.is_available() else math.nan
        raise MemoryError(
            f"out of GPU memory at step {trainer.state.global_step}: {peak:.1f} of {total:.1f} GB were in use. Lower "
            f"training.batch_tokens first, then set training.gradient_checkpointing=true"
        ) from error
