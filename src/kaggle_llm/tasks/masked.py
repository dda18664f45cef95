"""Masked language modelling: an encoder reads on in the competition's texts before it is trained for its task.

Masks are drawn where examples are made, `draws` times a chunk as BERT's own data were (10 times there), and not
anew in the loss: an example is then the same in whatever batch it comes, and a killed training goes on with the
same bits. So training.epochs repeats the masks; raise masked.draws for new ones.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.training.padding import pad_right, unwrap

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from kaggle_llm.training.base_model import Kind

EVALUATION_BATCH = 16


@dataclass
class MaskedSettings:
    probability: float = 0.15
    """Share of a chunk's tokens that are to be found again."""
    max_tokens: int = 256
    """Tokens of a chunk, special ones included."""
    draws: int = 1
    """How often a chunk is among the examples, each time with another mask."""

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise ValueError(f"probability = {self.probability}: is a share, between 0 and 1")
        if self.max_tokens < 3 or self.draws < 1:
            raise ValueError(f"max_tokens = {self.max_tokens}, draws = {self.draws}: must be 3 and 1 or more")


@dataclass(frozen=True)
class MaskedExample:
    ids: tuple[int, ...]
    """As the model sees them."""
    places: tuple[int, ...]
    """Of the tokens to be found again."""
    originals: tuple[int, ...]
    """What stood there."""


def make_chunks(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[Prompt]:
    """Texts cut into pieces of at most `max_tokens` tokens, special ones included; no piece holds two texts.

    Pieces without a word are left out, and counted. Raises ValueError where the model cannot read pieces so long.
    """
    if max_tokens > tokenizer.model_max_length:
        raise ValueError(f"max_tokens = {max_tokens}: the model reads {tokenizer.model_max_length} at most")
    if not texts:
        return []
    found = tokenizer(list(texts), truncation=True, max_length=max_tokens, return_overflowing_tokens=True)["input_ids"]
    special = set(tokenizer.all_special_ids)
    chunks = [chunk for chunk in found if not special.issuperset(chunk)]
    if len(chunks) < len(found):
        print(f"{len(found) - len(chunks)} of {len(found)} chunks hold no word and are left out", flush=True)
    return chunks


def mask_chunks(
    tokenizer: PreTrainedTokenizerBase, chunks: Sequence[Prompt], settings: MaskedSettings, seed: int
) -> list[MaskedExample]:
    """Every chunk `draws` times. A mask depends on the seed, the draw and the chunk's place alone.

    Raises ValueError for a tokenizer without a mask token.
    """
    if tokenizer.mask_token_id is None:
        raise ValueError(f"tokenizer {tokenizer.name_or_path} has no mask token: masked language models are encoders")
    return [
        mask_chunk(tokenizer, chunk, settings.probability, random.Random(f"{seed} {draw} {place}"))
        for draw in range(settings.draws)
        for place, chunk in enumerate(chunks)
    ]


def mask_chunk(
    tokenizer: PreTrainedTokenizerBase, chunk: Prompt, probability: float, rng: random.Random
) -> MaskedExample:
    """Of the tokens that are not special, that share (rounded, one at least) is chosen; of the chosen ones 80 % become
    the mask token, 10 % any token, 10 % stay. Source: Devlin et al., BERT, 2019, section 3.1 and appendix A.1.
    """
    ordinary = [place for place, token in enumerate(chunk) if token not in tokenizer.all_special_ids]
    places = sorted(rng.sample(ordinary, max(1, round(probability * len(ordinary)))))
    ids = list(chunk)
    for place in places:
        fate = rng.random()
        if fate < 0.8:
            ids[place] = tokenizer.mask_token_id
        elif fate < 0.9:
            ids[place] = rng.randrange(len(tokenizer))
    return MaskedExample(tuple(ids), tuple(places), tuple(chunk[place] for place in places))


class MaskedTask:
    """Cross-entropy of every chosen token over the vocabulary."""

    kind: Kind = "masked"
    padded = True

    def config(self) -> dict[str, Any]:
        return {}

    def length(self, example: MaskedExample) -> int:
        return len(example.ids)

    def weight(self, example: MaskedExample) -> float:
        return float(len(example.places))

    def loss(self, model: Any, examples: Sequence[MaskedExample]) -> torch.Tensor:
        """Sum over chosen tokens; no other position meets the vocabulary matrix."""
        import torch
        from torch.nn.functional import cross_entropy

        batch = pad_right(model, [example.ids for example in examples])
        rows = [row for row, example in enumerate(examples) for _ in example.places]
        places = [place for example in examples for place in example.places]
        with only_positions(unwrap(model).get_output_embeddings(), rows, places):
            logits = model(**batch).logits.float()
        originals = [token for example in examples for token in example.originals]
        loss: torch.Tensor = cross_entropy(logits, torch.tensor(originals, device=logits.device), reduction="sum")
        return loss


@contextmanager
def only_positions(vocabulary: Any, rows: Sequence[int], places: Sequence[int]) -> Iterator[None]:
    """Within, the module that makes logits of hidden states [batch, tokens, d] gets [places, d] only.

    A hook, because models give their MLM heads different names and only some take labels to be sparse by.
    """

    def choose(_: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        return (inputs[0][rows, places],)

    hook = vocabulary.register_forward_pre_hook(choose)
    try:
        yield
    finally:
        hook.remove()


def masked_log_loss(folder: Path, examples: Sequence[MaskedExample], seed: int = 0) -> float:
    """Mean loss (nats) of the chosen tokens under the model of a folder, in fp32: before and after training alike.

    An MLM head that the folder lacks is drawn with `seed`, as training would; transformers warns of it.
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


def unigram_log_loss(chunks: Sequence[Prompt], examples: Sequence[MaskedExample], vocabulary: int) -> float:
    """The same of a model that knows only how often each token stands in `chunks` (one added to every count)."""
    counts = Counter(token for chunk in chunks for token in chunk)
    total = sum(counts.values()) + vocabulary
    asked = [token for example in examples for token in example.originals]
    return -math.fsum(math.log((counts[token] + 1) / total) for token in asked) / len(asked)
