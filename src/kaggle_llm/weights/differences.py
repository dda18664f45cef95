"""How far the answers of two stages of a model lie apart. Pure functions on what `recorder` noted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kaggle_llm.weights.recorder import Call

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Differences:
    """Of one stage's answers to the same prompts from another's; None where the kind of answer has no such figure."""

    prompts: int
    other_prompts: int
    """Prompts that differ: another tokenizer, chat template or candidate."""
    largest: float | None
    """|Δ log-probability| over all labels (choices), |Δ| of logits or of vectors."""
    mean: float | None
    kl: float | None
    """Mean KL(before ‖ after) over the labels and "anything else", in nats."""
    spearman: float | None
    """Rank correlation, over all prompts, of the first label's log-odds against the others."""
    other_texts: int
    """Generated texts that differ."""


def find_differences(before: Sequence[Call], after: Sequence[Call]) -> Differences:
    """Raises ValueError where the two made other calls: another predict.py or other settings."""
    import numpy as np

    kinds = [[call.kind for call in calls] for calls in (before, after)]
    asked = [[prompt for call in calls for prompt in call.prompts] for calls in (before, after)]
    if kinds[0] != kinds[1] or len(asked[0]) != len(asked[1]):
        raise ValueError(f"{len(asked[0])} and {len(asked[1])} prompts in {len(kinds[0])} and {len(kinds[1])} calls")
    other = sum(first != second for first, second in zip(*asked, strict=True))
    pairs = list(zip(before, after, strict=True))
    texts = sum(a != b for first, second in pairs for a, b in zip(first.texts, second.texts, strict=True))
    values = [(stack(first), stack(second)) for first, second in pairs if len(first.answers)]
    if any(a.shape != b.shape for a, b in values):
        raise ValueError("the two stages answered in other shapes: other labels or another head")
    gaps = np.concatenate([np.abs(a - b).ravel() for a, b in values]) if values else np.empty(0)
    choices = [pair for pair, (first, _) in zip(values, pairs, strict=False) if first.kind == "choices"]
    both = [np.concatenate(side) for side in zip(*choices, strict=True)] if choices else []
    return Differences(
        prompts=len(asked[0]),
        other_prompts=other,
        largest=float(gaps.max()) if gaps.size else None,
        mean=float(gaps.mean()) if gaps.size else None,
        kl=float(divergence(*both).mean()) if both else None,
        spearman=rank_correlation(*(log_odds(side) for side in both)) if both else None,
        other_texts=texts,
    )


def stack(call: Call) -> np.ndarray:
    """A call's answers as one array in fp64; logits of tokens one below the other."""
    import numpy as np

    rows = [np.atleast_2d(np.asarray(row, dtype=np.float64)) for row in call.answers]
    return np.concatenate(rows)


def divergence(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """[n] KL(p ‖ q) = Σ p·(log p − log q) of log-probabilities [n, k] over k labels and all that is none of them."""
    import numpy as np

    def with_rest(logs: np.ndarray) -> np.ndarray:
        rest = np.clip(1 - np.exp(logs).sum(axis=1), 1e-12, None)
        return np.concatenate([logs, np.log(rest)[:, None]], axis=1)

    p, q = with_rest(before), with_rest(after)
    return (np.exp(p) * (p - q)).sum(axis=1)


def log_odds(logs: np.ndarray) -> np.ndarray:
    """[n] log p(first label) − log Σ p(other labels)."""
    import numpy as np

    return logs[:, 0] - np.logaddexp.reduce(logs[:, 1:], axis=1)


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Spearman's, equal values sharing the mean rank; None where one of them is constant."""
    from scipy.stats import spearmanr

    if first.size < 2 or not first.std() or not second.std():
        return None
    return float(spearmanr(first, second).statistic)
