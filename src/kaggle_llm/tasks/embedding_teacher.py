"""A reranker teaches a bi-encoder: the cosines of a query with documents are trained towards the reranker's scores.

The scores are a run's out-of-fold ones (distillation.py). Those of the documents in a training batch are used: the
right ones of its queries, and hard negatives.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kaggle_llm.tasks.distillation import DistillationSettings, load_teacher

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Taught:
    """The scores of a reranker; without any there is no teacher."""

    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Query → document → log-probability up to a constant."""
    settings: DistillationSettings = field(default_factory=DistillationSettings)

    def __post_init__(self) -> None:
        if self.scores and self.settings.cosine:
            raise ValueError(f"distillation.cosine = {self.settings.cosine}: an embedder has the soft loss only, set 0")


NO_TEACHER = Taught()


def read_taught(settings: DistillationSettings, queries: Sequence[str]) -> Taught:
    """The teacher's scores of these rows, {} without a teacher; prints how many rows it did not score.

    Raises ValueError where it scored none: its scores belong to other rows.
    """
    if not settings.teacher:
        return Taught(settings=settings)
    known = load_teacher(settings).scores
    scores = {query: known[query] for query in queries if query in known}
    if not scores:
        raise ValueError(f"teacher {settings.teacher}: has no scores of {len(queries)} rows, first {queries[:3]}")
    print(f"{settings.teacher} teaches {len(scores)} of {len(queries)} rows", flush=True)
    return Taught(scores, settings)


def label_batch(
    queries: Sequence[str], texts: Sequence[str], documents: Mapping[str, str], taught: Taught
) -> torch.Tensor:
    """[queries, texts] scores of the teacher; −inf for a text that it did not score for the query.

    queries: ids; texts: of the batch's documents; documents: texts by id.
    """
    import torch

    rows = []
    for query in queries:
        scores = {documents[item]: score for item, score in taught.scores.get(query, {}).items() if item in documents}
        rows.append([scores.get(text, -math.inf) for text in texts])
    return torch.tensor(rows)


def soft_loss(similarities: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² · Σ KL(softmax(t/T) ‖ softmax(s/T)) / queries, over the documents that the teacher scored for a query.

    similarities: [queries, documents]; teacher: the same, −inf where it has no score. A query with fewer than two adds
    nothing. Source: Izacard, Grave, Distilling Knowledge from Reader to Retriever for Question Answering, ICLR 2021,
    section 3.2; T² as Hinton et al., 2015.
    """
    import torch

    known = teacher.isfinite()
    known &= known.sum(1, keepdim=True) > 1
    lowest = torch.finfo(similarities.dtype).min
    aim = (teacher / temperature).masked_fill(~known, lowest).log_softmax(1)
    said = (similarities / temperature).masked_fill(~known, lowest).log_softmax(1)
    gaps = aim.exp() * (aim - said)
    return temperature**2 * gaps.masked_fill(~known, 0.0).sum() / len(similarities)


def make_taught_loss(model: Any, scale: float, size: int, settings: DistillationSettings) -> Any:
    """(1 − w) · cached multiple negatives ranking + w · `soft_loss` of the labels that `label_batch` gives.

    scale: what cosines are multiplied by; size: texts that are computed at a time.
    """
    import torch
    from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

    class TaughtLoss(CachedMultipleNegativesRankingLoss):
        def calculate_loss(
            self, reps: list[list[torch.Tensor]], labels: torch.Tensor, *, with_backward: bool = False
        ) -> torch.Tensor:
            hard = super().calculate_loss(reps)
            documents = torch.cat([part for column in reps[1:] for part in column])
            similarities = self.similarity_fct(torch.cat(reps[0]), documents) * self.scale
            soft = soft_loss(similarities, labels.to(similarities), settings.temperature)
            loss: torch.Tensor = (1 - settings.weight) * hard + settings.weight * soft
            if with_backward:
                loss.backward()
            return loss

    return TaughtLoss(model, scale=scale, mini_batch_size=size)
