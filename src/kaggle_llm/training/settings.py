"""The config sections `lora` and `training`.

The defaults are those that Kagglers converged on: r = 16 on all linear layers, learning rate 2e-4, 8 rows a step,
one epoch with warm-up and linear decay.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from kaggle_llm.base.device import BFLOAT16_FROM, read_capability


@dataclass
class LoraSettings:
    method: Literal["lora", "rslora", "dora", "qlora", "full"] = "lora"
    """qlora: LoRA on a base in bitsandbytes NF4. full: all weights are trained, there is no adapter."""
    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str = "all-linear"
    """PEFT's target_modules: all-linear, or a regular expression over module names."""

    def __post_init__(self) -> None:
        if self.r < 1 or self.alpha < 1:
            raise ValueError(f"r = {self.r}, alpha = {self.alpha}: both must be 1 or more")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout = {self.dropout}: must be 0 or more and less than 1")


@dataclass
class WatchSettings:
    """The loss of examples that the training never sees, while it trains."""

    rows: int = 0
    """How many of the training's last examples are held out; 0: none, all are trained on."""
    steps: int = 50
    """Steps between two looks; the last step is always looked at."""
    keep: Literal["last", "best"] = "last"
    """The weights that are saved: those of the last step, or of the step with the lowest held-out loss."""
    patience: int = 0
    """Stop after so many looks in a row without a new lowest loss; 0: never."""

    def __post_init__(self) -> None:
        if self.rows < 0 or self.steps < 1 or self.patience < 0:
            raise ValueError(
                f"rows = {self.rows}, steps = {self.steps}, patience = {self.patience}: rows and patience are 0 or "
                f"more, steps 1 or more"
            )
        if not self.rows and (self.keep == "best" or self.patience):
            raise ValueError("keep = best and patience need held-out examples: set rows, such as rows=100")


@dataclass
class TrickSettings:
    """What winners added to a fine-tuning; each is off by default (tricks.py has the formulas)."""

    ema: float = 0.0
    """Save the exponential moving average of the weights, with this decay, such as 0.99."""
    awp: float = 0.0
    """Train each step also on weights moved against it, by this share of their norm, such as 0.01: twice the time."""
    rdrop: float = 0.0
    """Weight of the divergence between two passes with different dropout, such as 1: twice the time."""
    multi_sample_dropout: int = 0
    """Mean loss of so many dropout masks before the head, such as 5."""
    layer_decay: float = 1.0
    """Factor of the learning rate from a layer to the one below it, such as 0.9."""
    label_smoothing: float = 0.0
    """Share of the target that all labels get alike, such as 0.1."""
    focal: float = 0.0
    """Exponent by which rows that are right already count less, such as 2."""
    class_weight: float = 0.0
    """Exponent of the inverse frequency by which a class counts: 1 makes all classes count alike."""
    freeze: float = 0.0
    """Share of the steps, at the beginning, in which only the head is trained, such as 0.2."""

    def __post_init__(self) -> None:
        for name in ("ema", "label_smoothing", "freeze"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 0 or more and less than 1")
        for name in ("awp", "rdrop", "multi_sample_dropout", "focal", "class_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be 0 or more")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay = {self.layer_decay}: must be more than 0 and at most 1")

    def chosen(self) -> dict[str, float]:
        """The tricks that are on."""
        return {name: value for name, value in vars(self).items() if value != getattr(type(self), name)}


@dataclass
class TrainingSettings:
    epochs: int = 1
    tokens: int | None = None
    """Train on the first examples, at most so many tokens an epoch; null: all."""
    batch: int = 8
    """Examples in one step, over all processes."""
    batch_tokens: int | Literal["auto"] = 2048
    """Tokens that one process computes at a time: memory is proportional to it. auto: as many as the first GPU's free
    memory takes with the config's largest model, a power of two; 2048 on a CPU. The recorded config has the number."""
    learning_rate: float = 2e-4
    """The rate of all weights that have none of their own below."""
    lora_b_learning_rate: float | None = None
    """LoRA+ (Hayou, Ghosh, Yu, 2024): trains B faster than A."""
    head_learning_rate: float | None = None
    embedding_learning_rate: float | None = None
    """The rate of the token embeddings, where they are trained (method full)."""
    schedule: Literal["linear", "cosine"] = "linear"
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises, before it falls to 0."""
    weight_decay: float = 0.0
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """8bit: a quarter of AdamW's states in memory, by bitsandbytes (vectors and small matrices stay in float32).
    paged: the states move to the host's memory where the card is full."""
    clip: float = 1.0
    """Largest norm of a step's gradient."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The dtype of frozen weights and of the computation; trained weights are float32. auto: bfloat16 on a GPU, float16
    on one without it (a T4), float32 on a CPU; the run's recorded config names the choice. float16 uses a loss
    scaler."""
    gradient_checkpointing: bool = False
    """Recompute activations instead of keeping them: less memory, a third more time."""
    checkpoint_steps: int = 100
    """Steps between two checkpoints, from which a killed run resumes."""
    track: Literal["off", "tensorboard", "wandb", "wandb-offline"] = "off"
    """Tracker that gets the log too; log.jsonl is always written."""
    watch: WatchSettings = field(default_factory=WatchSettings)
    tricks: TrickSettings = field(default_factory=TrickSettings)

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"tokens = {self.tokens}: must be 1 or more, or null for all")
        tokens = 1 if self.batch_tokens == "auto" else self.batch_tokens
        if min(self.epochs, self.batch, tokens, self.checkpoint_steps) < 1:
            raise ValueError("epochs, batch, batch_tokens and checkpoint_steps must be 1 or more")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup = {self.warmup}: is a share of the steps, between 0 and 1")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate = {self.learning_rate}: must be more than 0")

    @property
    def part_tokens(self) -> int:
        """batch_tokens as a number; raises ValueError for auto, which a run's start decides."""
        if self.batch_tokens == "auto":
            raise ValueError("training.batch_tokens = auto was not decided: start() does it, elsewhere set a number")
        return self.batch_tokens


def resolve_training(training: TrainingSettings) -> TrainingSettings:
    """The settings with dtype auto decided: what this machine's first GPU computes, or float32 without one."""
    if training.dtype != "auto":
        return training
    capability = read_capability()
    if capability is None:
        return replace(training, dtype="float32")
    return replace(training, dtype="float16" if capability < BFLOAT16_FROM else "bfloat16")
