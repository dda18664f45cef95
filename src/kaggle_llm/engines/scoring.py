"""Exact choice scoring: log-probabilities of labels after prompts; shared prefixes are computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from kaggle_llm.engines.attention import packed
from kaggle_llm.engines.packing import Pack, compute_logits
from kaggle_llm.engines.prefixes import PrefixNode, group_nodes, grow_tree
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.segments import Segment

if TYPE_CHECKING:
    import torch


def score_labels(
    prompts: Sequence[Prompt],
    labels: Sequence[Prompt],
    score_tokens: Callable[[Sequence[Prompt], Sequence[int]], np.ndarray],
) -> np.ndarray:
    """[n, k] log-probabilities of whole labels: Σⱼ log p(tokenⱼ | prompt, tokens before j).

    score_tokens: prompts, token ids → [n, ids] log-probabilities of each as the next token. Raises ValueError for a
    label without tokens.
    """
    if not all(len(label) for label in labels):
        raise ValueError(f"labels {[list(label) for label in labels]}: one has no token")
    starts = list_starts(labels)
    ids = sorted({token for label in labels for token in label})
    extended = [[*prompt, *start] for prompt in prompts for start in starts]
    scores = score_tokens(extended, ids).reshape(len(prompts), len(starts), len(ids))
    start_index, column = ({key: i for i, key in enumerate(keys)} for keys in (starts, ids))
    sums = [
        sum(scores[:, start_index[tuple(label[:j])], column[token]] for j, token in enumerate(label))
        for label in labels
    ]
    return np.array(sums, dtype=np.float64).reshape(len(labels), len(prompts)).T


def list_starts(labels: Sequence[Prompt]) -> list[tuple[int, ...]]:
    """The beginnings of labels after which a further token is scored; for one-token labels only ()."""
    return sorted({tuple(label[:j]) for label in labels for j in range(len(label))})


def score_shared(model: Any, prompts: Sequence[Prompt], ids: Sequence[int], batch_tokens: int) -> np.ndarray:
    """[n, ids] log-probabilities of the next token, over the full vocabulary.

    batch_tokens: tokens of a forward pass, shared ones counted once; memory use is proportional to it.
    """
    import torch

    scores = np.full((len(prompts), len(ids)), np.nan)
    with torch.inference_mode(), packed(model):
        _score_trees(model, grow_tree(prompts), prompts, list(ids), batch_tokens, scores)
    return scores


def _score_trees(
    model: Any,
    trees: Sequence[PrefixNode],
    prompts: Sequence[Prompt],
    ids: list[int],
    batch_tokens: int,
    scores: np.ndarray,
    cache: Any = None,
) -> None:
    """Fill in `scores` for all prompts of the trees; the cache holds the tokens before them.

    As many trees as fit go into one batch. A larger tree's root goes first; its children see it through the cache.
    """
    for group in group_nodes(trees, batch_tokens):
        (root, *_) = group
        if len(root) > batch_tokens and root.children:
            with_root = copy_cache(cache)
            _score_row(model, [replace(root, children=[])], prompts, ids, scores, with_root)
            _score_trees(model, root.children, prompts, ids, batch_tokens, scores, with_root)
        else:
            _score_row(model, group, prompts, ids, scores, None if cache is None else copy_cache(cache))


def _score_row(
    model: Any, trees: Sequence[PrefixNode], prompts: Sequence[Prompt], ids: list[int], scores: np.ndarray, cache: Any
) -> None:
    """One forward pass; a root where no prompt ends only fills the cache."""
    row, ends = lay_out(trees, prompts)
    keep = sorted(set(ends.values())) or [0]
    line = {end: i for i, end in enumerate(keep)}
    logprobs = read_tokens(compute_logits(model, row, keep, cache), ids)
    scores[list(ends)] = logprobs[[line[end] for end in ends.values()]]


def lay_out(trees: Sequence[PrefixNode], prompts: Sequence[Prompt]) -> tuple[Pack, dict[int, int]]:
    """The trees as one row, and prompt → index of its last token in the row."""
    row, ends = Pack(), {}

    def add_node(node: PrefixNode, above: Segment | None) -> None:
        segment = row.add(prompts[node.prompt][node.begin : node.end], node.begin, above)
        assert segment is not None, "a node has a token"
        ends.update(dict.fromkeys(node.ends, segment.end - 1))
        for child in node.children:
            add_node(child, segment)

    for tree in trees:
        add_node(tree, None)
    return row, ends


def read_tokens(logits: torch.Tensor, ids: list[int]) -> np.ndarray:
    """[n, ids] log-probabilities of some tokens out of [n, vocabulary] logits."""
    wanted = logits[:, ids] - logits.logsumexp(-1, keepdim=True)
    logprobs: np.ndarray = wanted.double().cpu().numpy()
    return logprobs


def copy_cache(cache: Any) -> Any:
    """A cache with the content of `cache` (None: empty) that grows independently of it."""
    from transformers import DynamicCache

    return DynamicCache([(layer.keys, layer.values) for layer in cache.layers] if cache else None)
