"""The forms of attention within segments: equal on any tree, with and without a cache, and few launches on a GPU."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
from pico import llama_config, train_bpe
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from kaggle_llm.engines import attention, attention_forms
from kaggle_llm.engines.attention_forms import (
    attend_by_lengths,
    attend_masked,
    attend_segment_by_segment,
    make_lengths,
    make_mask,
)
from kaggle_llm.engines.packing import Pack, compute_logits
from kaggle_llm.engines.segments import Layout, Segment

SIZE = 8  # of a head


def grow_row(seed: int, levels: int, trees: int = 4) -> Pack:
    """A packed row of random trees, each with children of up to `levels` levels below its root."""
    rng, row = random.Random(seed), Pack()

    def grow(above: Segment | None, position: int, left: int) -> None:
        length = rng.randint(1, 6)
        segment = row.add(tuple(rng.choices(range(10, 500), k=length)), position, above)
        assert segment
        for _ in range(rng.randint(1, 3) if left else 0):
            grow(segment, position + length, left - 1)
        row.ends.append(segment.end - 1)

    for _ in range(trees):
        grow(None, 0, levels)
    return row


def reference_varlen(
    query: Any, key: Any, value: Any, cu_q: Any, cu_k: Any, max_q: int, max_k: int, *, window_size: Any, **options: Any
) -> torch.Tensor:
    """What torch.nn.attention.varlen documents, written out: a softmax for each sequence, causal from its end."""
    assert window_size == (-1, 0) and options["enable_gqa"]
    key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], dim=1) for part in (key, value))
    scale = options["scale"] or query.shape[-1] ** -0.5
    outputs = []
    for begin, end, first, last in zip(cu_q, cu_q[1:], cu_k, cu_k[1:], strict=False):
        scores = torch.einsum("qhd,khd->hqk", query[begin:end], key[first:last]) * scale
        assert scores.shape[1] <= max_q and scores.shape[2] <= max_k
        hidden = torch.ones(scores.shape[1:], dtype=torch.bool).triu(scores.shape[2] - scores.shape[1] + 1)
        outputs.append(
            torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), value[first:last])
        )
    return torch.cat(outputs)


def attend(form: Any, layout: Layout, past: int) -> list[torch.Tensor]:
    """Output, and the gradients of query, key and value for a random loss."""
    generator = torch.Generator().manual_seed(0)
    tokens = layout.segments[-1].end
    inputs = [
        torch.randn(1, heads, more + tokens, SIZE, generator=generator, requires_grad=True)
        for heads, more in ((4, 0), (2, past), (2, past))
    ]
    output = form(*inputs, layout, 0.3, 0.0)
    assert output.shape == (1, tokens, 4, SIZE)
    (output * torch.randn(output.shape, generator=generator)).sum().backward()
    return [output.detach(), *(part.grad for part in inputs if part.grad is not None)]


@pytest.mark.parametrize("block", [8, 4096])
@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("levels", [0, 1, 2, 3])
@pytest.mark.parametrize("form", [attend_masked, attend_by_lengths])
def test_every_form_gives_what_a_call_for_each_segment_gives(
    form: Any, levels: int, past: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", reference_varlen)
    monkeypatch.setattr(attention_forms, "BLOCK", block)
    layout = Layout(grow_row(levels, levels).segments)
    expected = attend(attend_segment_by_segment, layout, past)
    for made, right in zip(attend(form, layout, past), expected, strict=True):
        torch.testing.assert_close(made, right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("past", [0, 3])
def test_one_sequence_alone_is_plain_causal_attention(past: int) -> None:
    layout = Layout([Segment(0, 9)])
    expected = attend(attend_segment_by_segment, layout, past)
    for made, right in zip(attend(attend_masked, layout, past), expected, strict=True):
        torch.testing.assert_close(made, right, atol=1e-5, rtol=1e-5)


def test_the_mask_by_hand_and_its_rows_are_aligned() -> None:
    """A root of two tokens, its child of two, another root of one; a cache of one token."""
    block = [Segment(0, 2), Segment(2, 4, ((0, 2),)), Segment(4, 5)]
    mask = make_mask(block, 1, torch.float32, torch.device("cpu"))
    shown = ["".join("x" if value == 0 else "." for value in row) for row in mask]
    assert shown == ["xx....", "xxx...", "xxxx..", "xxxxx.", "x....x"]
    assert mask.stride() == (8, 1)


def test_keys_are_gathered_only_where_a_segment_sees_others() -> None:
    plain = make_lengths([Segment(0, 2), Segment(2, 5)], 0, torch.device("cpu"))
    assert plain["index"] is None and plain["keys"].tolist() == [0, 2, 5]
    tree = make_lengths([Segment(0, 2), Segment(2, 3, ((0, 2),)), Segment(3, 5, ((0, 2),))], 0, torch.device("cpu"))
    assert tree["index"].tolist() == [0, 1, 0, 1, 2, 0, 1, 3, 4] and tree["queries"].tolist() == [0, 2, 3, 5]
    assert (tree["longest_query"], tree["longest_key"]) == (2, 4)


# launches ---------------------------------------------------------------------------------------------------

# They only say anew where a tensor lies, or ask something of it.
FREE = (
    "view _unsafe_view transpose t expand unsqueeze squeeze slice select split split_with_sizes detach alias permute "
    "as_strided unbind empty empty_like"
)


class Launches(TorchDispatchMode):
    """Counts operations of torch that start at least one kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in FREE.split():
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def count_launches(model: Any, row: Pack) -> Launches:
    with attention.packed(model), Launches() as launches:
        compute_logits(model, row, row.ends).sum().backward()
    return launches


def test_a_pack_starts_at_most_15_percent_more_kernels_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """28 layers, forward and backward: trees in one row against prompts of one length without padding or mask."""
    monkeypatch.setattr(attention, "choose_form", lambda *_: attend_masked)
    torch.manual_seed(0)
    config = llama_config(train_bpe(), num_hidden_layers=28, hidden_size=16, intermediate_size=16)
    model = AutoModelForCausalLM.from_config(config)
    row = grow_row(0, 2)
    packed = count_launches(model, row)
    ids = torch.zeros((4, len(row.ids) // 4), dtype=torch.long)
    with Launches() as plain:
        model(input_ids=ids, logits_to_keep=1, use_cache=False).logits.float().sum().backward()
    assert len(row.segments) > 20
    assert packed.total <= 1.15 * plain.total, packed.counts - plain.counts
    assert packed.counts["_scaled_dot_product_flash_attention_for_cpu"] == 28


def test_on_a_cpu_each_segment_is_a_call(pico_llm: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(pico_llm)
    row = grow_row(0, 2)
    calls = count_launches(model, row).counts["_scaled_dot_product_flash_attention_for_cpu"]
    assert calls == 2 * len(row.segments), "in two layers"
