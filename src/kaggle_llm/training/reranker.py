"""Fine-tuning a causal LM with LoRA to say Yes for the right candidate of a group, by transformers' Trainer.

The loss is cross-entropy over the group: softmax of the candidates' log-odds (first label minus second), so the
vocabulary's normaliser cancels out. Leaves adapter_config.json, adapter_model.safetensors and log.jsonl.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm import paths
from kaggle_llm.prompts import Prompt, TokenGroup
from kaggle_llm.training.packing import Pack, pack, within_budget

if TYPE_CHECKING:
    import torch


@dataclass
class LoraSettings:
    r: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str = "all-linear"

    def __post_init__(self) -> None:
        if self.r < 1 or self.alpha < 1:
            raise ValueError(f"r = {self.r}, alpha = {self.alpha}: both must be 1 or more")


@dataclass
class TrainingSettings:
    group_size: int = 8
    """Candidates of a row: the right one and hard negatives."""
    tokens: int = 20_000
    """Tokens that are trained on in all, shared ones counted once a group."""
    learning_rate: float = 2e-4
    warmup: float = 0.1
    """Share of the steps in which the learning rate rises; then it falls linearly to 0."""
    groups_per_step: int = 8
    """Global batch: groups whose gradients make one step."""
    groups_per_pack: int = 1
    """Groups that are computed as one sequence; more use a GPU better and take more memory."""

    def __post_init__(self) -> None:
        if self.group_size < 2:
            raise ValueError(f"group_size = {self.group_size}: a group has a right candidate and a wrong one at least")
        if min(self.groups_per_step, self.groups_per_pack, self.tokens) < 1:
            raise ValueError("groups_per_step, groups_per_pack and tokens must be 1 or more")
        if self.groups_per_step % self.groups_per_pack:
            raise ValueError(
                f"groups_per_step = {self.groups_per_step} is no multiple of groups_per_pack = {self.groups_per_pack}"
            )


def train_reranker(
    base: Path,
    groups: Sequence[TokenGroup],
    labels: Sequence[Prompt],
    lora: LoraSettings,
    training: TrainingSettings,
    seed: int,
    folder: Path,
) -> None:
    """One epoch over the first groups within `training.tokens`; the adapter is saved into `folder`.

    labels: token ids of the label for the right candidate and of the one for the others, one token each.
    Raises ValueError where no group fits into the budget, and where the loss is not finite.
    """
    kept = within_budget(groups, training.tokens)
    if not kept:
        raise ValueError(f"training.tokens = {training.tokens}: not even the first of {len(groups)} groups fits")
    size = training.groups_per_pack
    packs = [pack(kept[start : start + size]) for start in range(0, len(kept), size)]
    tokens = sum(len(group) for group in kept)
    print(f"training on {len(kept)} groups, {tokens} tokens", flush=True)
    model = _attach_lora(base, lora, seed)
    trainer = _make_trainer(model, packs, labels, training, seed, folder)
    trainer.train()
    _write_log(trainer.state.log_history, folder / "log.jsonl")
    model.peft_config["default"].base_model_name_or_path = paths.relative(base)  # no path of this machine travels
    model.save_pretrained(folder)


def group_loss(model: Any, batch: Pack, labels: Sequence[Prompt]) -> torch.Tensor:
    """Mean over the pack's groups of −log softmax(log-odds)[right]; a scalar tensor."""
    import torch

    device, dtype = model.device, model.dtype
    hidden = torch.where(torch.from_numpy(batch.visible).to(device), 0.0, torch.finfo(dtype).min).to(dtype)
    logits = model(
        input_ids=torch.from_numpy(batch.ids)[None].to(device),
        position_ids=torch.from_numpy(batch.positions)[None].to(device),
        attention_mask=hidden[None, None],
        logits_to_keep=torch.from_numpy(batch.last).to(device),
        use_cache=False,
    ).logits[0]
    (yes,), (no,) = labels[0], labels[1]
    log_odds = (logits[:, yes] - logits[:, no]).float()
    group, right = (torch.from_numpy(array).to(device) for array in (batch.group, batch.right))
    losses = [-log_odds[group == number].log_softmax(0)[right[group == number]] for number in group.unique()]
    return torch.cat(losses).mean()


def _attach_lora(base: Path, lora: LoraSettings, seed: int) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, set_seed

    set_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
    )
    return get_peft_model(
        model,
        LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets,
            task_type="CAUSAL_LM",
        ),
    )


def _make_trainer(
    model: Any,
    packs: list[Pack],
    labels: Sequence[Prompt],
    training: TrainingSettings,
    seed: int,
    folder: Path,
) -> Any:
    from transformers import Trainer, TrainingArguments

    class GroupTrainer(Trainer):
        def compute_loss(self, model: Any, inputs: dict[str, Pack], **_: Any) -> torch.Tensor:
            pack = inputs["pack"]
            # Every group counts alike, also those of a last pack that is not full.
            loss = group_loss(model, pack, labels) * len(set(pack.group.tolist())) / training.groups_per_pack
            if not loss.isfinite():
                raise ValueError(f"loss = {loss.item()} at step {self.state.global_step}: lower training.learning_rate")
            return loss

    accumulation = min(training.groups_per_step // training.groups_per_pack, len(packs))
    steps = math.ceil(len(packs) / accumulation)
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,
        learning_rate=training.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(training.warmup * steps),
        weight_decay=0.0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        seed=seed,
    )
    # Two visible GPUs in one process would make the Trainer replicate the model: that is what torchrun is for.
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return GroupTrainer(model=model, args=arguments, train_dataset=packs, data_collator=_only)


def _only(batch: list[Pack]) -> dict[str, Pack]:
    """A pack is a batch already."""
    (found,) = batch
    return {"pack": found}


def _write_log(history: list[dict[str, Any]], path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")
