"""Attention on a T4: the kernel that is asked for."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations import sdpa_attention

from kaggle_llm.engines import attention
from kaggle_llm.engines.segments import Segment


@pytest.fixture(autouse=True)
def unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is overridden here is put back."""
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", sdpa_attention.use_gqa_in_sdpa)


def attend(monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, dict[str, Any]]:
    """transformers' attention of 4 heads in 2 groups without a mask, and how it called torch's."""
    asked: dict[str, Any] = {}
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(query: Any, key: Any, value: Any, **how: Any) -> Any:
        asked.update(how, groups=key.shape[1])
        return real(query, key, value, **how)

    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 6, 8, generator=generator) for heads in (4, 2, 2))
    module = SimpleNamespace(num_key_value_groups=2, is_causal=True)
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
        found, _ = sdpa_attention.sdpa_attention_forward(module, query, key, value, None)  # type: ignore[arg-type]
    return found, asked


@pytest.mark.parametrize(("card", "by_hand"), [((7, 5), True), ((8, 0), False), (None, False)])
def test_on_a_t4_alone_groups_are_repeated_before_torch_sees_them(
    card: tuple[int, int] | None, by_hand: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, asked = attend(monkeypatch)
    assert asked["groups"] == 2 and asked["enable_gqa"], "what transformers does by itself"
    monkeypatch.setattr(attention, "capability", lambda: card)
    attention.avoid_slow_kernel()
    found, asked = attend(monkeypatch)
    assert (asked["groups"] == 4 and not asked.get("enable_gqa")) == by_hand
    torch.testing.assert_close(found, before)


def test_packed_rows_give_each_head_its_groups_keys_without_asking_for_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.Size] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def spy(query: Any, key: Any, value: Any, **how: Any) -> Any:
        assert "enable_gqa" not in how
        asked.append(key.shape)
        return real(query, key, value, **how)

    generator = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, 6, 8, generator=generator) for heads in (4, 2, 2))
    repeated = [part.repeat_interleave(2, dim=1) for part in (key, value)]
    expected = real(query, *repeated, is_causal=True).transpose(1, 2)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    segments = [Segment(0, 2), Segment(2, 6, ((0, 2),))]  # one sequence, in two pieces
    found, _ = attention.attend_within_segments(torch.nn.Linear(1, 1), query, key, value, None, segments=segments)
    torch.testing.assert_close(found, expected)
    assert asked == [(2, 2, 2, 8), (2, 2, 6, 8)]
