"""Trains a cross-encoder, which scores a query together with a document, with sentence-transformers' trainer.

Leaves a whole model folder with a sequence head of one label (an adapter is merged in fp32), whose scores are
Engine.logits() of prompts.encode_pairs; and log.jsonl. Token types are 0 for both texts, in training as in
prediction: the engine passes token ids only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kaggle_llm.base import processes
from kaggle_llm.base.fingerprint import hash_code
from kaggle_llm.engines.prompts import Group, encode_pairs
from kaggle_llm.tasks.cross_encoder import CrossEncoderSettings
from kaggle_llm.tasks.embedding import finish_loading, make_planned_trainer, save_whole
from kaggle_llm.training.base_model import make_loading_options
from kaggle_llm.training.checkpoints import Checkpoints
from kaggle_llm.training.padding import pad_for_head
from kaggle_llm.training.plan import Share, keep_within, plan_training
from kaggle_llm.training.trainer import Job, add_gradients, describe_job, make_arguments, on_device, run_trainer

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LabelledPair:
    """A query, a document, and how right the document is: 0 to 1."""

    query: str
    document: str
    label: float


PairList = Sequence[LabelledPair]  # a unit of the loss: one pair, or all pairs of a query


def label_pairs(
    groups: Iterable[Group], queries: Mapping[str, str], documents: Mapping[str, str]
) -> list[LabelledPair]:
    """The texts of every candidate of every group, with its query's; groups: of retrieval.negatives.draw_groups."""
    return [
        LabelledPair(queries[group.id], documents[item], label)
        for group in groups
        for item, label in zip(group.items, group.target, strict=True)
    ]


@on_device
def train_cross_encoder(
    settings: CrossEncoderSettings, pairs: Sequence[LabelledPair], job: Job, folder: Path | None = None
) -> None:
    """Train on the first pairs (listwise: queries) within `training.tokens`.

    The whole model is saved into `folder`, or job.folder. Listwise, the pairs of one query text make one list. A head
    that the base lacks is initialised with the seed. Raises ValueError for labels outside 0 to 1, lists without a right
    document, and where nothing fits into the budget.
    """
    job, lists = replace(job, folder=folder or job.folder), group_pairs(pairs, settings)

    def load(job: Job, device: str | None = None) -> Any:
        return load_cross_encoder(settings, job, device)

    model = load(job)
    lengths = [measure_list(pair_list, model.tokenizer, settings.max_tokens) for pair_list in lists]
    kept = keep_within(lists, lengths, job.training.tokens, "lists")
    if processes.is_first():
        print(
            f"training on {sum(map(len, kept))} of {len(pairs)} pairs, {sum(lengths[: len(kept)])} tokens", flush=True
        )
    about = {
        "code": hash_code(__name__),
        "cross_encoder": asdict(settings),
        "lists": [[asdict(pair) for pair in pair_list] for pair_list in kept],
    }
    checkpoints = Checkpoints(job.folder, describe_job(job, about))
    weights = [1.0] * len(kept)
    shares = plan_training(lengths[: len(kept)], weights, True, job.training, job.seed, processes.world())
    arguments = make_arguments(job, checkpoints, len(shares) // processes.world())
    trainer = make_cross_encoder_trainer(model, arguments, settings, kept, shares)
    run_trainer(trainer, job, checkpoints, lambda trained, *_: save_whole(trained, load, job))


def group_pairs(pairs: Sequence[LabelledPair], settings: CrossEncoderSettings) -> list[PairList]:
    """Lists of one pair each, or (listwise) of all pairs of a query, in the order of their first."""
    bad = [pair.label for pair in pairs if not 0 <= pair.label <= 1]
    if bad:
        raise ValueError(f"{len(bad)} labels are not between 0 and 1, first {bad[:3]}")
    if settings.loss == "pointwise":
        return [[pair] for pair in pairs]
    by_query: dict[str, list[LabelledPair]] = {}
    for pair in pairs:
        by_query.setdefault(pair.query, []).append(pair)
    empty = [query for query, pair_list in by_query.items() if not any(pair.label for pair in pair_list)]
    if empty:
        raise ValueError(f"listwise: {len(empty)} queries without a right document, first {empty[0]!r}")
    return list(by_query.values())


def measure_list(pairs: PairList, tokenizer: Any, max_tokens: int) -> int:
    """Tokens of a list, its pairs padded to the longest."""
    prompts = encode_pairs(tokenizer, [pair.query for pair in pairs], [pair.document for pair in pairs], max_tokens)
    return len(pairs) * max(len(prompt) for prompt in prompts)


def load_cross_encoder(settings: CrossEncoderSettings, job: Job, device: str | None = None) -> Any:
    """A CrossEncoder of job.base with one label, trainable as job.lora says; a head is trained whole."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.sentence_transformer.modules import Transformer

    options, task = make_loading_options(job.lora, job.training, job.seed), "sequence-classification"
    transformer = Transformer(
        str(job.base), transformer_task=task, model_kwargs=options, config_kwargs={"num_labels": 1}
    )
    model = CrossEncoder(modules=[transformer], device=device)
    finish_loading(model, "sequence", settings.max_tokens, job)

    def preprocess(pairs: Sequence[tuple[str, str]], **_: Any) -> dict[str, torch.Tensor]:
        """The engine's prompts; the library's own would have token types."""
        queries, documents = zip(*pairs, strict=True)
        return pad_for_head(model, encode_pairs(model.tokenizer, queries, documents, settings.max_tokens))

    model.preprocess = preprocess
    return model


def make_cross_encoder_trainer(
    model: Any,
    values: dict[str, Any],
    settings: CrossEncoderSettings,
    lists: Sequence[PairList],
    shares: Sequence[Share],
) -> Any:
    """A trainer that goes through the planned shares, and computes the parts of a share one after the other."""
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss, ListNetLoss

    listwise = settings.loss == "listwise"
    loss = ListNetLoss(model, mini_batch_size=-1) if listwise else BinaryCrossEntropyLoss(model)
    collect = collect_lists if listwise else collect_pairs

    def step(trainer: Any, model: Any, share: Share) -> torch.Tensor:
        model.train()
        return add_gradients(
            trainer, model, share, lists, lambda model, part: trainer.compute_loss(model, {"batch": part}) * len(part)
        )

    return make_planned_trainer(model, values, loss, shares, lambda model, chosen: collect(chosen, model.device), step)


def collect_pairs(lists: Sequence[PairList], device: torch.device) -> tuple[list[Any], torch.Tensor]:
    """Queries and documents, and their labels, as BinaryCrossEntropyLoss takes them."""
    import torch

    pairs = [pair for pair_list in lists for pair in pair_list]
    labels = torch.tensor([pair.label for pair in pairs], device=device)
    return [[pair.query for pair in pairs], [pair.document for pair in pairs]], labels


def collect_lists(lists: Sequence[PairList], device: torch.device) -> tuple[list[Any], list[torch.Tensor]]:
    """Queries and lists of documents, as ListNetLoss takes them.

    Its target is the softmax of the labels: given their logarithms, that is the labels scaled to sum to 1.
    """
    import torch

    logs = [[math.log(pair.label) if pair.label else -math.inf for pair in pairs] for pairs in lists]
    documents = [[pair.document for pair in pairs] for pairs in lists]
    return [[pairs[0].query for pairs in lists], documents], [torch.tensor(row, device=device) for row in logs]
