"""Trains on preferences between two answers with TRL: DPO, or a reward model.

Leaves an adapter or a whole model, and log.jsonl. A reward model has a sequence head with one label: its reward is
Engine.logits(). PPO and GRPO are not supported: they generate while they train.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kaggle_llm.base import processes
from kaggle_llm.base.fingerprint import hash_code
from kaggle_llm.engines.attention import keep_caps
from kaggle_llm.engines.engine import EngineSettings, resolve_dtype
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.packing import compute_logits, pack
from kaggle_llm.engines.tokenizer import choose_pad, load_tokenizer
from kaggle_llm.engines.trial import pack_where_possible
from kaggle_llm.training.base_model import load_trainable, trainable_parameters, unpack_beyond_window
from kaggle_llm.training.checkpoints import Checkpoints
from kaggle_llm.training.plan import keep_within, within_budget
from kaggle_llm.training.settings import TrainingSettings
from kaggle_llm.training.trainer import Job, describe_job, make_arguments, on_device, run_trainer, use_one_gpu

if TYPE_CHECKING:
    import torch


@dataclass
class PreferenceSettings:
    kind: Literal["dpo", "reward"]
    """dpo: the language model itself learns (Rafailov et al., 2023). reward: a head scores every answer."""
    beta: float = 0.1
    """dpo: penalty for moving away from the base model."""
    max_tokens: int = 1024
    """Tokens of a prompt with one of its completions; longer completions are cut at the end."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta = {self.beta}: must be more than 0")
        if self.max_tokens < 2:
            raise ValueError(f"max_tokens = {self.max_tokens}: a prompt and a completion need at least 2")


@dataclass(frozen=True)
class PreferenceExample:
    """Token ids; completions end with the end-of-text token. Leave ties out."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    def __len__(self) -> int:
        """Tokens that training computes: both completions, each with the prompt."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longer completion."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


@on_device
def train_preference(settings: PreferenceSettings, pairs: Sequence[PreferenceExample], job: Job) -> None:
    """Train on the first pairs within `training.tokens` and save into job.folder.

    DPO's reference is the base without the adapter, or with method full a second, frozen copy of the base. Raises
    ValueError for pairs that cannot be trained on (fit_pairs) or are longer than the model's context, and where the
    processes cannot share a step equally.
    """
    fitted = fit_pairs(pairs, settings.max_tokens)
    kept = keep_within(fitted, [len(pair) for pair in fitted], job.training.tokens, "pairs")
    size, parts = split_batch(kept, job.training, processes.world())
    if processes.is_first():
        print(f"training on {len(kept)} of {len(pairs)} pairs, {sum(map(len, kept))} tokens", flush=True)
        if len(kept) < job.training.batch:
            print(f"fewer pairs than training.batch = {job.training.batch}: one step an epoch", flush=True)
    about = {"code": hash_code(__name__), "preference": asdict(settings), "pairs": [asdict(pair) for pair in kept]}
    checkpoints = Checkpoints(job.folder, describe_job(job, about))
    steps = job.training.epochs * math.ceil(math.ceil(len(kept) / (size * processes.world())) / parts)
    values = make_arguments(job, checkpoints, steps)
    values |= {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
    run_trainer(make_preference_trainer(settings, kept, values, job), job, checkpoints)


def fit_pairs(pairs: Sequence[PreferenceExample], max_tokens: int) -> list[PreferenceExample]:
    """The pairs with completions cut to max_tokens; prints how many were cut.

    Raises ValueError with the indices of pairs that have an empty part, a prompt that leaves no room, or two equal
    completions, before or after cutting.
    """
    _refuse(pairs, lambda pair: not (pair.prompt and pair.chosen and pair.rejected), "has an empty part: leave it out")
    too_long = f"has a prompt of preference.max_tokens = {max_tokens} or more: raise it, or lower prompt.budgets"
    _refuse(pairs, lambda pair: len(pair.prompt) >= max_tokens, too_long)
    same = "has two completions that are the same: leave it out"
    _refuse(pairs, lambda pair: pair.chosen == pair.rejected, same)
    fitted = []
    for pair in pairs:
        room = max_tokens - len(pair.prompt)
        fitted.append(replace(pair, chosen=pair.chosen[:room], rejected=pair.rejected[:room]))
    cut = sum(len(after) < len(before) for after, before in zip(fitted, pairs, strict=True))
    if cut and processes.is_first():
        print(f"{cut} of {len(pairs)} pairs are longer than preference.max_tokens = {max_tokens}: cut", flush=True)
    alike = f"differs only after preference.max_tokens = {max_tokens}: raise it, or leave it out"
    _refuse(fitted, lambda pair: pair.chosen == pair.rejected, alike)
    return fitted


def _refuse(pairs: Sequence[PreferenceExample], is_bad: Callable[[PreferenceExample], bool], fault: str) -> None:
    """Raises ValueError with the indices of bad pairs."""
    bad = [str(i) for i, pair in enumerate(pairs) if is_bad(pair)]
    if bad:
        more = ", …" if len(bad) > 10 else ""
        raise ValueError(f"{len(bad)} of {len(pairs)} pairs, counted from 0: {', '.join(bad[:10])}{more}: each {fault}")


def split_batch(pairs: Sequence[PreferenceExample], training: TrainingSettings, world: int) -> tuple[int, int]:
    """(pairs that a process computes at a time, how many times it does so in a step of `training.batch` pairs).

    As many as fit into `batch_tokens` with both completions of all padded to the longest, at least one.
    """
    if training.batch % world:
        raise ValueError(f"training.batch = {training.batch} is no multiple of the {world} processes")
    share = training.batch // world
    longest = max(pair.longest for pair in pairs)
    fit = max(1, training.part_tokens // (2 * longest))
    size = max(count for count in range(1, share + 1) if share % count == 0 and count <= fit)
    return size, share // size


def make_preference_trainer(
    settings: PreferenceSettings, pairs: Sequence[PreferenceExample], values: dict[str, Any], job: Job
) -> Any:
    """TRL's DPOTrainer or RewardTrainer on token ids, without telemetry and model card.

    values: of TrainingArguments. Dropout is off, as in TRL, unless lora.dropout is set.
    """
    import trl
    from datasets import Dataset

    dpo = settings.kind == "dpo"
    parent: Any = trl.DPOTrainer if dpo else trl.RewardTrainer

    class PairTrainer(parent):
        loss_is_scaled_for_ga = True

        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            """Unchanged: the rows are token ids already."""
            return dataset

        def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any) -> int:
            return sum(len(batch["input_ids"]) // 2 for batch in batch_samples)

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> torch.Tensor:
            """This part's share of the mean over the step's pairs: TRL would weigh a short last part more."""
            count = len(inputs["input_ids"]) // 2
            return super().compute_loss(model, inputs) * (count / num_items_in_batch)

        def create_model_card(self, *_: Any, **__: Any) -> None:
            pass

        def _send_telemetry(self) -> None:
            pass

    values = values | {"max_length": None, "disable_dropout": not job.lora.dropout}
    arguments = trl.DPOConfig(**values, beta=settings.beta) if dpo else trl.RewardConfig(**values)
    use_one_gpu(arguments)
    model = load_preference(settings, pairs, job)
    rows = Dataset.from_list([make_row(settings, pair) for pair in pairs])
    tokenizer = padding_tokenizer(job.base, pairs)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    trainer = PairTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")  # TRL's copy of the new adapter: the reference is then the bare base
    for _, weight in trainable_parameters(model):
        weight.data = weight.data.float()  # TRL turns QLoRA's to bfloat16
    return trainer


def make_row(settings: PreferenceSettings, pair: PreferenceExample) -> dict[str, list[int]]:
    """A pair for TRL's collators; the reward model reads prompt and completion as one text."""
    if settings.kind == "dpo":
        return {"prompt_ids": [*pair.prompt], "chosen_ids": [*pair.chosen], "rejected_ids": [*pair.rejected]}
    return {"chosen_ids": [*pair.prompt, *pair.chosen], "rejected_ids": [*pair.prompt, *pair.rejected]}


def load_preference(settings: PreferenceSettings, pairs: Sequence[PreferenceExample], job: Job) -> Any:
    """The trainable model; raises ValueError where a pair is longer than its context."""
    if settings.kind == "dpo":
        model = load_trainable(job.base, "causal", job.lora, job.training, job.seed)
    else:
        model = load_trainable(job.base, "sequence", job.lora, job.training, job.seed, num_labels=1)
    longest = max(pair.longest for pair in pairs)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", math.inf)
    if longest > context:
        raise ValueError(f"a pair of {longest} tokens, {job.base.name} takes {context}: lower preference.max_tokens")
    return model


def padding_tokenizer(base: Path, pairs: Sequence[PreferenceExample]) -> Any:
    """The tokenizer with a padding token that no completion ends with: a head reads the last token before it."""
    tokenizer = load_tokenizer(base)
    pad = choose_pad(
        [completion for pair in pairs for completion in (pair.chosen, pair.rejected)], tokenizer.pad_token_id
    )
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(pad)
    return tokenizer


# before and after training --------------------------------------------------------------------------------


def prefer(scores: np.ndarray) -> float:
    """Share of pairs whose chosen completion scores higher; ties count half. scores: [n, 2] chosen, rejected.

    The baseline of a reward model is score_lengths.
    """
    if not len(scores):
        raise ValueError("no pairs to score: give one or more")
    difference = scores[:, 0] - scores[:, 1]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def score_pairs(
    settings: PreferenceSettings, folder: Path, pairs: Sequence[PreferenceExample], engine: EngineSettings
) -> np.ndarray:
    """[n, 2] scores of chosen and rejected by the model in `folder`: a base or merged model, no adapter.

    dpo: mean log-probability of the completion's tokens (a sum would prefer short ones; the implicit reward
    β·(log π − log π_ref) is 0 for all before training). reward: the head's logit.
    """
    fitted = fit_pairs(pairs, settings.max_tokens)
    score = score_completions if settings.kind == "dpo" else score_rewards
    return score(folder, fitted, engine)


def score_lengths(pairs: Sequence[PreferenceExample]) -> np.ndarray:
    """[n, 2] numbers of tokens: the rule that the longer completion is better."""
    return np.array([[len(pair.chosen), len(pair.rejected)] for pair in pairs], dtype=np.float64).reshape(-1, 2)


def score_rewards(folder: Path, pairs: Sequence[PreferenceExample], settings: EngineSettings) -> np.ndarray:
    """[n, 2] rewards by the engine."""
    engine = make_engine(folder, settings)
    texts = [[*pair.prompt, *completion] for pair in pairs for completion in (pair.chosen, pair.rejected)]
    try:
        return np.array(engine.logits(texts), dtype=np.float64).reshape(-1, 2)
    finally:
        engine.close()


def score_completions(folder: Path, pairs: Sequence[PreferenceExample], settings: EngineSettings) -> np.ndarray:
    """[n, 2] mean log-probabilities of the completions' tokens; raises ValueError where they are not finite."""
    import torch
    from transformers import AutoModelForCausalLM

    settings = resolve_dtype(settings)
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, settings.dtype),
        local_files_only=True,
    )
    model = keep_caps(model).to("cuda" if torch.cuda.is_available() else "cpu").eval()
    pack_where_possible(model, settings.dtype)
    unpack_beyond_window(model, max((pair.longest for pair in pairs), default=0))
    scores = np.empty((len(pairs), 2))
    waiting = list(range(len(pairs)))
    while waiting:
        lengths = [len(pairs[i]) - len(pairs[i].prompt) for i in waiting]
        count = max(1, within_budget(lengths, settings.tokens))
        with torch.inference_mode():
            sums = sum_logprobs(model, [pairs[i] for i in waiting[:count]])
        scores[waiting[:count]] = sums.double().cpu().numpy()
        waiting = waiting[count:]
    if not np.isfinite(scores).all():
        raise ValueError(f"model {folder} gave non-finite log-probabilities: try engine.dtype=float32")
    return scores / np.maximum(score_lengths(pairs), 1)


def sum_logprobs(model: Any, pairs: Sequence[PreferenceExample]) -> torch.Tensor:
    """[n, 2] log-probabilities of whole completions after their prompts, computed once where the model packs rows."""
    import torch

    packed = pack([(pair.prompt, [pair.chosen, pair.rejected]) for pair in pairs])
    keep: list[int] = []  # the token before each token of a completion
    first = 0
    for pair in pairs:
        first += len(pair.prompt)
        last = first - 1  # of the prompt
        for completion in (pair.chosen, pair.rejected):
            keep += [last, *range(first, first + len(completion) - 1)]
            first += len(completion)
    completions = [completion for pair in pairs for completion in (pair.chosen, pair.rejected)]
    logits = compute_logits(model, packed, keep)
    targets = torch.tensor([token for completion in completions for token in completion], device=logits.device)
    logprobs = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return torch.stack([part.sum() for part in logprobs.split(list(map(len, completions)))]).reshape(-1, 2)
