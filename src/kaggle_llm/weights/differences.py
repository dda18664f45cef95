"""How far the answers of two stages of a model differ: pure functions on the calls that `recorder` recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kaggle_llm.weights.recorder import Call

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Differences:
    """Between two stages' answers to the same prompts; None where this kind of answer has no such figure."""

    prompts: int
    other_prompts: int
    """Prompts that differ: another tokenizer, chat template or candidate."""
    largest: float | None
    """Largest |Δ log-probability| over all labels (choices), or |Δ| of logits or vectors."""
    mean: float | None
    kl: float | None
    """Mean KL(before ‖ after) over the labels and "anything else", in nats."""
    spearman: float | None
    """Rank correlation, over all prompts, of the first label's log-odds against the others."""
    other_texts: int
    """Generated texts that differ."""


def find_differences(before: Sequence[Call], after: Sequence[Call], in_turns: bool = False) -> Differences:
    """Compare call by call; raises ValueError where the calls differ: another predict.py or other settings.

    in_turns: prompts depend on answers before them, so only those that both stages were asked are compared.
    """
    if in_turns:
        return find_common_differences(before, after)
    return compare_calls(before, after)


def find_common_differences(before: Sequence[Call], after: Sequence[Call]) -> Differences:
    """The differences of prompts that both stages were asked; the others count as `other_prompts`."""
    first, second = (split_calls(calls) for calls in (before, after))
    common = [key for key in first if key in second]
    differences = compare_calls([first[key] for key in common], [second[key] for key in common])
    return replace(differences, prompts=len(first), other_prompts=len(first) - len(common))


def split_calls(calls: Sequence[Call]) -> dict[tuple[str, tuple[int, ...]], Call]:
    """Method and prompt → a call of its own."""
    return {
        (call.method, prompt): Call(
            call.method, [prompt], call.answers[number : number + 1], call.texts[number : number + 1]
        )
        for call in calls
        for number, prompt in enumerate(call.prompts)
    }


def compare_calls(before: Sequence[Call], after: Sequence[Call]) -> Differences:
    """See `find_differences`."""
    import numpy as np

    methods = [[call.method for call in calls] for calls in (before, after)]
    prompts = [[prompt for call in calls for prompt in call.prompts] for calls in (before, after)]
    if methods[0] != methods[1] or len(prompts[0]) != len(prompts[1]):
        counts = f"{len(prompts[0])} and {len(prompts[1])} prompts in {len(methods[0])} and {len(methods[1])} calls"
        raise ValueError(f"the two stages got different prompts: {counts}")
    pairs = list(zip(before, after, strict=True))
    values = [(stack(first), stack(second)) for first, second in pairs if len(first.answers)]
    if any(a.shape != b.shape for a, b in values):
        raise ValueError("the answers of the two stages differ in shape: other labels or another head")
    gaps = np.concatenate([np.abs(a - b).ravel() for a, b in values]) if values else np.empty(0)
    choices = [pair for pair, (first, _) in zip(values, pairs, strict=False) if first.method == "choices"]
    odds = [np.concatenate([log_odds(logs) for logs in stage]) for stage in zip(*choices, strict=True)]
    return Differences(
        prompts=len(prompts[0]),
        other_prompts=sum(first != second for first, second in zip(*prompts, strict=True)),
        largest=float(gaps.max()) if gaps.size else None,
        mean=float(gaps.mean()) if gaps.size else None,
        kl=float(np.concatenate([divergence(*pair) for pair in choices]).mean()) if choices else None,
        spearman=rank_correlation(*odds) if odds else None,
        other_texts=sum(a != b for first, second in pairs for a, b in zip(first.texts, second.texts, strict=True)),
    )


def stack(call: Call) -> np.ndarray:
    """A call's answers as one fp64 array [rows, columns]; logits of tokens have a row a token."""
    import numpy as np

    rows = [np.atleast_2d(np.asarray(row, dtype=np.float64)) for row in call.answers]
    return np.concatenate(rows)


def divergence(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """[n] KL(p ‖ q) = Σ p·(log p − log q) of log-probabilities [n, k] over k labels and "anything else"."""
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
    """Spearman's, ties sharing their mean rank; None where one side is constant."""
    from scipy.stats import spearmanr

    if first.size < 2 or not first.std() or not second.std():
        return None
    return float(spearmanr(first, second).statistic)
