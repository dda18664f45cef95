"""Exact choice scoring: log-probabilities of labels behind prompts, what prompts share computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kaggle_llm.engines.attention import Segment, packed
from kaggle_llm.engines.packing import Pack, compute_logits
from kaggle_llm.engines.prefixes import Node, gather, grow_tree
from kaggle_llm.engines.prompts import Prompt

if TYPE_CHECKING:
    import torch

PROBE = 24, 40, 32  # tokens: shared, of the first prompt, of the second
PROBE_TOLERANCE = {"float32": 1e-3, "float16": 0.2, "bfloat16": 0.5}  # mean |Δ log p|: what the dtype alone may do


def score_labels(
    prompts: Sequence[Prompt],
    labels: Sequence[Prompt],
    score_tokens: Callable[[Sequence[Prompt], Sequence[int]], np.ndarray],
) -> np.ndarray:
    """[n, k] log-probabilities of whole labels: Σⱼ log p(tokenⱼ | prompt, tokens before j).

    score_tokens: prompts and token ids → [n, ids] log-probabilities of each as the next token.
    Raises ValueError for a label without a token.
    """
    if not all(len(label) for label in labels):
        raise ValueError(f"labels {[list(label) for label in labels]}: one has no token")
    starts = list_starts(labels)
    ids = sorted({token for label in labels for token in label})
    asked = [[*prompt, *start] for prompt in prompts for start in starts]
    found = score_tokens(asked, ids).reshape(len(prompts), len(starts), len(ids))
    place, column = ({key: at for at, key in enumerate(keys)} for keys in (starts, ids))
    sums = [
        sum(found[:, place[tuple(label[:at])], column[token]] for at, token in enumerate(label)) for label in labels
    ]
    return np.array(sums, dtype=np.float64).reshape(len(labels), len(prompts)).T


def list_starts(labels: Sequence[Prompt]) -> list[tuple[int, ...]]:
    """What has to stand behind a prompt where a token of a label is asked for; of one-token labels only ()."""
    return sorted({tuple(label[:at]) for label in labels for at in range(len(label))})


def score_shared(model: Any, prompts: Sequence[Prompt], ids: Sequence[int], batch_tokens: int) -> np.ndarray:
    """[n, ids] log-probabilities of the next token, over the full vocabulary.

    batch_tokens: of one forward pass, shared ones counted once; its memory is proportional to it.
    """
    import torch

    scores = np.full((len(prompts), len(ids)), np.nan)
    with torch.inference_mode(), packed(model):
        _score_trees(model, grow_tree(prompts), prompts, list(ids), batch_tokens, scores)
    return scores


def _score_trees(
    model: Any,
    trees: Sequence[Node],
    prompts: Sequence[Prompt],
    ids: list[int],
    batch_tokens: int,
    scores: np.ndarray,
    cache: Any = None,
) -> None:
    """Fill `scores` for all prompts of trees whose tokens before are in the cache.

    Trees go together as far as they fit. Of a larger one the root goes first, and its keys and values are kept for
    what is below it.
    """
    for group in gather(trees, batch_tokens):
        (root, *_) = group
        if len(root) > batch_tokens and root.children:
            below = copy_cache(cache)
            _score_row(model, [replace(root, children=[])], prompts, ids, scores, below)
            _score_trees(model, root.children, prompts, ids, batch_tokens, scores, below)
        else:
            _score_row(model, group, prompts, ids, scores, None if cache is None else copy_cache(cache))


def _score_row(
    model: Any, trees: Sequence[Node], prompts: Sequence[Prompt], ids: list[int], scores: np.ndarray, cache: Any
) -> None:
    """One forward pass; a node at which no prompt ends only adds to the cache."""
    row, ends = lay_out(trees, prompts)
    keep = sorted(set(ends.values())) or [0]
    at = {end: line for line, end in enumerate(keep)}
    found = read_tokens(compute_logits(model, row, keep, cache), ids)
    scores[list(ends)] = found[[at[end] for end in ends.values()]]


def lay_out(trees: Sequence[Node], prompts: Sequence[Prompt]) -> tuple[Pack, dict[int, int]]:
    """The trees as one row, and prompt → index of its last token there."""
    row, ends = Pack(), {}

    def place(node: Node, above: Segment | None) -> None:
        segment = row.add(prompts[node.prompt][node.begin : node.end], node.begin, above)
        assert segment is not None, "a node has a token"
        ends.update(dict.fromkeys(node.ends, segment.end - 1))
        for child in node.children:
            place(child, segment)

    for tree in trees:
        place(tree, None)
    return row, ends


def read_tokens(logits: torch.Tensor, ids: list[int]) -> np.ndarray:
    """[n, ids] log-probabilities out of [n, vocabulary] logits: the tokens' own and the normaliser, nothing else."""
    wanted = logits[:, ids] - logits.logsumexp(-1, keepdim=True)
    found: np.ndarray = wanted.double().cpu().numpy()
    return found


def copy_cache(cache: Any) -> Any:
    """A cache that begins as `cache` does (None: empty) and grows apart from it."""
    from transformers import DynamicCache

    return DynamicCache([(layer.keys, layer.values) for layer in cache.layers] if cache else None)


def can_share(model: Any, dtype: str) -> bool:
    """Whether this architecture computes in packed rows what it computes for prompts alone: asked of the model itself.

    Soft-capped scores, states that run through the sequence and positions that it makes itself are reasons why not.
    """
    import torch

    shared, first, second = PROBE
    size = model.config.get_text_config().vocab_size
    tokens = np.random.default_rng(0).integers(size // 2, size=(2, max(first, second)))
    tokens[1, :shared] = tokens[0, :shared]
    prompts = [tokens[0, :first].tolist(), tokens[1, :second].tolist()]
    device = next(model.parameters()).device
    every = list(range(size))
    try:
        found = score_shared(model, prompts, every, batch_tokens=first + second)
    except (ValueError, TypeError):  # what attention.py refuses; a model that takes no `segments`
        return False
    with torch.inference_mode():
        alone = [model(torch.tensor([prompt], device=device)).logits[:, -1].float() for prompt in prompts]
    expected = np.concatenate([read_tokens(logits, every) for logits in alone])
    return bool(np.abs(found - expected).mean() <= PROBE_TOLERANCE[dtype])
