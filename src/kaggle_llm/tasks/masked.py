"""Masked language modelling: further pretraining of an encoder on the competition's texts.

Masks are drawn when examples are made, `draws` times a chunk (10 times in BERT's own data), not in the loss: an example
is then the same in any batch, and a killed training resumes with the same bits. So training.epochs repeats the masks;
raise masked.draws for new ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base.plain_text import text_tokenizer
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.training.padding import pad_right, unwrap

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from kaggle_llm.engines.model_kinds import ModelKind

EVALUATION_BATCH = 16


@dataclass
class MaskedSettings:
    probability: float = 0.15
    """Share of a chunk's tokens that the model has to predict."""
    max_tokens: int = 256
    """Tokens of a chunk, special tokens included."""
    draws: int = 1
    """Examples of each chunk, each with another mask."""

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise ValueError(f"probability = {self.probability}: is a share, between 0 and 1")
        if self.max_tokens < 3 or self.draws < 1:
            raise ValueError(f"max_tokens = {self.max_tokens}, draws = {self.draws}: must be 3 and 1 or more")


@dataclass(frozen=True)
class MaskedExample:
    ids: tuple[int, ...]
    """Token ids with masks in them."""
    positions: tuple[int, ...]
    """Positions of the tokens to predict."""
    originals: tuple[int, ...]
    """Token ids to predict there."""


def make_chunks(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[Prompt]:
    """Texts cut into chunks of at most `max_tokens` tokens, special ones included; no chunk holds two texts.

    Chunks of special tokens only are left out, and counted. Raises ValueError where the model's context is shorter.
    """
    if max_tokens > tokenizer.model_max_length:
        raise ValueError(f"max_tokens = {max_tokens}: the model reads at most {tokenizer.model_max_length}")
    if not texts:
        return []
    options = {"truncation": True, "max_length": max_tokens, "return_overflowing_tokens": True}
    chunks = text_tokenizer(tokenizer)(list(texts), split_special_tokens=True, **options)["input_ids"]
    special = set(tokenizer.all_special_ids)
    kept = [chunk for chunk in chunks if not special.issuperset(chunk)]
    if len(kept) < len(chunks):
        print(f"{len(chunks) - len(kept)} of {len(chunks)} chunks hold no word and are left out", flush=True)
    return kept


def mask_chunks(
    tokenizer: PreTrainedTokenizerBase, chunks: Sequence[Prompt], settings: MaskedSettings, seed: int
) -> list[MaskedExample]:
    """`draws` examples of every chunk. A mask depends only on the seed, the draw and the chunk's index.

    Raises ValueError for a tokenizer without a mask token.
    """
    if tokenizer.mask_token_id is None:
        raise ValueError(f"tokenizer {tokenizer.name_or_path} has no mask token: masked language models are encoders")
    return [
        mask_chunk(tokenizer, chunk, settings.probability, random.Random(f"{seed} {draw} {index}"))
        for draw in range(settings.draws)
        for index, chunk in enumerate(chunks)
    ]


def mask_chunk(
    tokenizer: PreTrainedTokenizerBase, chunk: Prompt, probability: float, rng: random.Random
) -> MaskedExample:
    """Choose that share of the tokens that are not special (rounded, at least one); 80 % of the chosen ones become the
    mask token, 10 % a random token, 10 % stay. Source: Devlin et al., BERT, 2019, section 3.1 and appendix A.1.
    """
    ordinary = [position for position, token in enumerate(chunk) if token not in tokenizer.all_special_ids]
    positions = sorted(rng.sample(ordinary, max(1, round(probability * len(ordinary)))))
    ids = list(chunk)
    for position in positions:
        draw = rng.random()
        if draw < 0.8:
            ids[position] = tokenizer.mask_token_id
        elif draw < 0.9:
            ids[position] = rng.randrange(len(tokenizer))
    return MaskedExample(tuple(ids), tuple(positions), tuple(chunk[position] for position in positions))


class MaskedTask:
    """Cross-entropy of every chosen token over the vocabulary."""

    kind: ModelKind = "masked"
    padded = True

    def config(self) -> dict[str, Any]:
        return {}

    def length(self, example: MaskedExample) -> int:
        return len(example.ids)

    def weight(self, example: MaskedExample) -> float:
        return float(len(example.positions))

    def loss(self, model: Any, examples: Sequence[MaskedExample]) -> torch.Tensor:
        """Sum over chosen tokens; logits are computed at their positions only."""
        import torch
        from torch.nn.functional import cross_entropy

        batch = pad_right(model, [example.ids for example in examples])
        rows = [row for row, example in enumerate(examples) for _ in example.positions]
        positions = [position for example in examples for position in example.positions]
        with only_positions(unwrap(model).get_output_embeddings(), rows, positions):
            logits = model(**batch).logits.float()
        originals = [token for example in examples for token in example.originals]
        loss: torch.Tensor = cross_entropy(logits, torch.tensor(originals, device=logits.device), reduction="sum")
        return loss


@contextmanager
def only_positions(vocabulary: Any, rows: Sequence[int], positions: Sequence[int]) -> Iterator[None]:
    """Inside, the module that turns hidden states [batch, tokens, d] into logits gets [positions, d] only.

    A hook, because MLM heads have different names and only some can skip positions by themselves.
    """

    def choose(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (inputs[0][rows, positions],)

    hook = vocabulary.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()


def masked_log_loss(folder: Path, examples: Sequence[MaskedExample], seed: int = 0) -> float:
    """Mean loss (nats) of the chosen tokens by the model of a folder in fp32, to compare before and after training.

    An MLM head that the folder lacks is initialised with `seed`, as in training; transformers warns of it.
    """
    import torch
    from transformers import AutoModelForMaskedLM, set_seed

    set_seed(seed)
    model = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    task, total = MaskedTask(), 0.0
    ordered = sorted(examples, key=task.length)
    with torch.inference_mode():
        for start in range(0, len(ordered), EVALUATION_BATCH):
            total += task.loss(model, ordered[start : start + EVALUATION_BATCH]).item()
    return total / sum(task.weight(example) for example in examples)
