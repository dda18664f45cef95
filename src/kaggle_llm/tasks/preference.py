"""Which of two answers people prefer: a policy tuned by DPO, or a reward model, by TRL's trainers.

Leaves what trainer.run_trainer leaves: an adapter or a whole model, and log.jsonl; a reward model is a sequence head
with one label, whose reward is Engine.logits(). PPO and GRPO are out: they generate while they train.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kaggle_llm.base import processes
from kaggle_llm.base.fingerprint import hash_code
from kaggle_llm.engines.attention import register_segments
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.packing import compute_logits, pack
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.training.base_model import load_trainable, trainable_parameters
from kaggle_llm.training.checkpoints import Checkpoints
from kaggle_llm.training.plan import within_budget
from kaggle_llm.training.settings import TrainingSettings
from kaggle_llm.training.trainer import Job, describe_job, make_arguments, run_trainer

if TYPE_CHECKING:
    import torch


@dataclass
class PreferenceSettings:
    kind: Literal["dpo", "reward"]
    """dpo: the policy itself learns (Rafailov et al., 2023). reward: a head gives every answer a number."""
    beta: float = 0.1
    """dpo: how dearly a step away from the base model is paid for."""
    max_tokens: int = 1024
    """Of a prompt with one of its completions; longer completions lose their ends."""

    def __post_init__(self) -> None:
        if not 0 < self.beta < math.inf:
            raise ValueError(f"beta = {self.beta}: must be more than 0")
        if self.max_tokens < 2:
            raise ValueError(f"max_tokens = {self.max_tokens}: a prompt and a completion take 2 at least")


@dataclass(frozen=True)
class PreferenceExample:
    """Token ids; the completions end with the end of text. A tie has no chosen one: leave it out."""

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    def __len__(self) -> int:
        """Tokens that training computes: the prompt stands before both completions."""
        return 2 * len(self.prompt) + len(self.chosen) + len(self.rejected)


def train_preference(settings: PreferenceSettings, pairs: Sequence[PreferenceExample], job: Job) -> None:
    """Train on the first pairs within `training.tokens` and save into job.folder.

    With an adapter DPO's reference is the base without it; with method full it is a second, frozen copy of the base.
    Raises ValueError for pairs that say nothing (fit_pairs), those longer than the model's context, and steps that
    cannot be shared among the processes.
    """
    fitted = fit_pairs(pairs, settings.max_tokens)
    kept = fitted[: within_budget([len(pair) for pair in fitted], job.training.tokens)]
    if not kept:
        raise ValueError(f"training.tokens = {job.training.tokens}: not even the first of {len(pairs)} pairs fits")
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
    run_trainer(make_trainer(settings, kept, values, job), job, checkpoints)


def fit_pairs(pairs: Sequence[PreferenceExample], max_tokens: int) -> list[PreferenceExample]:
    """The pairs with completions cut where they are longer; how many is printed.

    Raises ValueError with their places for pairs with an empty part, with a prompt that leaves no room, and with two
    completions that are the same, as they are or as they are cut.
    """
    _refuse(pairs, lambda pair: not (pair.prompt and pair.chosen and pair.rejected), "has an empty part: leave it out")
    room = f"has a prompt of preference.max_tokens = {max_tokens} or more: raise it, or lower prompt.budgets"
    _refuse(pairs, lambda pair: len(pair.prompt) >= max_tokens, room)
    same = "has two completions that are the same: leave it out"
    _refuse(pairs, lambda pair: pair.chosen == pair.rejected, same)
    fitted = []
    for pair in pairs:
        left = max_tokens - len(pair.prompt)
        fitted.append(replace(pair, chosen=pair.chosen[:left], rejected=pair.rejected[:left]))
    cut = sum(len(after) < len(before) for after, before in zip(fitted, pairs, strict=True))
    if cut and processes.is_first():
        print(f"{cut} of {len(pairs)} pairs are longer than preference.max_tokens = {max_tokens}: cut", flush=True)
    alike = f"differs only behind preference.max_tokens = {max_tokens}: raise it, or leave it out"
    _refuse(fitted, lambda pair: pair.chosen == pair.rejected, alike)
    return fitted


def _refuse(pairs: Sequence[PreferenceExample], is_bad: Any, why: str) -> None:
    places = [place for place, pair in enumerate(pairs) if is_bad(pair)]
    if places:
        more = ", …" if len(places) > 10 else ""
        shown = ", ".join(str(place) for place in places[:10])
        raise ValueError(f"{len(places)} of {len(pairs)} pairs, the first is 0: {shown}{more}: each {why}")


def split_batch(pairs: Sequence[PreferenceExample], training: TrainingSettings, world: int) -> tuple[int, int]:
    """Pairs that a process computes at a time, and how many times make its share of `training.batch`.

    As many as keep to `batch_tokens` with both completions of all padded to the longest; one alone may break it.
    """
    if training.batch % world:
        raise ValueError(f"training.batch = {training.batch} is no multiple of the {world} processes")
    share = training.batch // world
    longest = max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    fit = max(1, training.batch_tokens // (2 * longest))
    size = max(count for count in range(1, share + 1) if share % count == 0 and count <= fit)
    return size, share // size


def make_trainer(
    settings: PreferenceSettings, pairs: Sequence[PreferenceExample], values: dict[str, Any], job: Job
) -> Any:
    """TRL's DPOTrainer or RewardTrainer on token ids, which reports to nobody and writes no model card.

    values: TrainingArguments. Dropout is off, as TRL has it, unless lora.dropout asks for it.
    """
    import trl
    from datasets import Dataset

    dpo = settings.kind == "dpo"
    maker: Any = trl.DPOTrainer if dpo else trl.RewardTrainer

    class PairTrainer(maker):
        loss_is_scaled_for_ga = True

        def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
            """Token ids already."""
            return dataset

        def _get_num_items_in_batch(self, batch_samples: list[dict[str, Any]], device: Any) -> int:
            return sum(len(batch["input_ids"]) // 2 for batch in batch_samples)

        def compute_loss(
            self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> torch.Tensor:
            """This part of the mean over the step's pairs: TRL would let those of a short last part count more."""
            count = len(inputs["input_ids"]) // 2
            return super().compute_loss(model, inputs) * (count / num_items_in_batch)

        def create_model_card(self, *_: Any, **__: Any) -> None:
            pass

        def _send_telemetry(self) -> None:
            pass

    values = values | {"max_length": None, "disable_dropout": not job.lora.dropout}
    arguments = trl.DPOConfig(**values, beta=settings.beta) if dpo else trl.RewardConfig(**values)
    if arguments.n_gpu > 1:  # two visible GPUs in one process: that is what torchrun is for
        arguments._n_gpu = 1
    model = load_preference(settings, pairs, job)
    rows = Dataset.from_list([make_row(settings, pair) for pair in pairs])
    trainer = PairTrainer(model=model, args=arguments, train_dataset=rows, processing_class=padding_tokenizer(job.base))
    if "ref" in getattr(model, "peft_config", {}):
        model.delete_adapter("ref")  # TRL's copy of the new adapter; without it the reference is the bare base
    for _, weight in trainable_parameters(model):
        weight.data = weight.data.float()  # TRL makes QLoRA's bfloat16
    return trainer


def make_row(settings: PreferenceSettings, pair: PreferenceExample) -> dict[str, list[int]]:
    """A pair as TRL's collators take it: the reward model reads prompt and completion as one text."""
    if settings.kind == "dpo":
        return {"prompt_ids": [*pair.prompt], "chosen_ids": [*pair.chosen], "rejected_ids": [*pair.rejected]}
    return {"chosen_ids": [*pair.prompt, *pair.chosen], "rejected_ids": [*pair.prompt, *pair.rejected]}


def load_preference(settings: PreferenceSettings, pairs: Sequence[PreferenceExample], job: Job) -> Any:
    """The trainable model; raises ValueError where a pair is longer than its context."""
    if settings.kind == "dpo":
        model = load_trainable(job.base, "causal", job.lora, job.training, job.seed)
    else:
        model = load_trainable(job.base, "sequence", job.lora, job.training, job.seed, num_labels=1)
    longest = max(len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) for pair in pairs)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", math.inf)
    if longest > context:
        raise ValueError(f"a pair of {longest} tokens, {job.base.name} takes {context}: lower preference.max_tokens")
    return model


def padding_tokenizer(base: Path) -> Any:
    """With the padding that engines use: a head pools before it, so training must take the same."""
    tokenizer = load_tokenizer(base)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)
    return tokenizer


# before and after training --------------------------------------------------------------------------------


def prefer(scores: np.ndarray) -> float:
    """Share of the pairs whose chosen completion scores higher; a draw counts half. scores: [n, 2] chosen, rejected.

    The simplest rule that a reward model has to beat is score_lengths.
    """
    if not len(scores):
        raise ValueError("no pairs to prefer one of")
    difference = scores[:, 0] - scores[:, 1]
    return float(np.mean((difference > 0) + 0.5 * (difference == 0)))


def score_pairs(
    settings: PreferenceSettings, folder: Path, pairs: Sequence[PreferenceExample], engine: EngineSettings
) -> np.ndarray:
    """[n, 2] scores of chosen and rejected by the model in `folder`: the base or the merged one, never an adapter.

    dpo: mean log-probability of the completion's tokens. The implicit reward β·(log π − log π_ref) would be 0 for all
    before training, and a sum would prefer what is short. reward: the head's number.
    """
    fitted = fit_pairs(pairs, settings.max_tokens)
    score = score_completions if settings.kind == "dpo" else score_rewards
    return score(folder, fitted, engine)


def score_lengths(pairs: Sequence[PreferenceExample]) -> np.ndarray:
    """[n, 2] tokens: the rule that the longer completion is the better one."""
    return np.array([[len(pair.chosen), len(pair.rejected)] for pair in pairs], dtype=np.float64).reshape(-1, 2)


def score_rewards(folder: Path, pairs: Sequence[PreferenceExample], settings: EngineSettings) -> np.ndarray:
    """[n, 2] rewards, by the engine."""
    engine = make_engine(folder, settings)
    texts = [[*pair.prompt, *completion] for pair in pairs for completion in (pair.chosen, pair.rejected)]
    try:
        return np.array(engine.logits(texts), dtype=np.float64).reshape(-1, 2)
    finally:
        engine.close()


def score_completions(folder: Path, pairs: Sequence[PreferenceExample], settings: EngineSettings) -> np.ndarray:
    """[n, 2] mean log-probabilities of a completion's tokens; raises ValueError where they are not finite."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=getattr(torch, settings.dtype),
        attn_implementation=register_segments(),
        local_files_only=True,
    )
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    scores = np.empty((len(pairs), 2))
    waiting = list(range(len(pairs)))
    while waiting:
        lengths = [len(pairs[i]) - len(pairs[i].prompt) for i in waiting]
        count = max(1, within_budget(lengths, settings.batch_tokens))
        with torch.inference_mode():
            sums = sum_logprobs(model, [pairs[i] for i in waiting[:count]])
        scores[waiting[:count]] = sums.double().cpu().numpy()
        waiting = waiting[count:]
    if not np.isfinite(scores).all():
        raise ValueError(f"model {folder} gave non-finite log-probabilities: try engine.dtype=float32")
    return scores / np.maximum(score_lengths(pairs), 1)


def sum_logprobs(model: Any, pairs: Sequence[PreferenceExample]) -> torch.Tensor:
    """[n, 2] log-probabilities of whole completions after their prompts, which are computed once.

    The model was loaded with attention.register_segments().
    """
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
    found = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    return torch.stack([part.sum() for part in found.split([len(each) for each in completions])]).reshape(-1, 2)
