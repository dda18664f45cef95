"""Packed examples give what each prompt alone gives: positions, who sees whom, logits, gradients."""

import random
from pathlib import Path

import numpy as np
import pytest

from kaggle_llm.engines.attention import attend_within_segments, register_segments
from kaggle_llm.engines.packing import compute_logits, pack
from kaggle_llm.engines.segments import Segment

BY_HAND = [([11, 12], [[21, 22], [31]]), ([13], [[41], [42, 43]]), ([14, 15], [[]])]


def random_prompts(seed: int, count: int) -> list[tuple[list[int], list[list[int]]]]:
    rng = random.Random(seed)

    def tokens(longest: int) -> list[int]:
        return rng.choices(range(6, 560), k=rng.randint(1, longest))

    return [(tokens(30), [tokens(9) for _ in range(rng.randint(1, 4))]) for _ in range(count)]


def test_a_pack_is_as_made_by_hand() -> None:
    made = pack(BY_HAND)
    assert made.ids == [11, 12, 21, 22, 31, 13, 41, 42, 43, 14, 15]
    assert made.positions == [0, 1, 2, 3, 2, 0, 1, 1, 2, 0, 1]
    assert made.ends == [3, 4, 6, 8, 10]
    first, second = ((0, 2),), ((5, 6),)
    expected = [(0, 2), (2, 4, first), (4, 5, first), (5, 6), (6, 7, second), (7, 9, second), (9, 11)]
    assert made.segments == [Segment(*each) for each in expected]


@pytest.mark.parametrize("count", [1, 2, 7])
def test_logits_behind_every_prompt_are_those_of_the_prompt_alone(pico_llm: Path, count: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    prompts = random_prompts(count, count)
    packed = pack(prompts)
    plain = AutoModelForCausalLM.from_pretrained(pico_llm, dtype=torch.float32)
    segmented = AutoModelForCausalLM.from_pretrained(
        pico_llm, dtype=torch.float32, attn_implementation=register_segments()
    )
    with torch.no_grad():
        found = compute_logits(segmented, packed, packed.ends)
        alone = [plain(torch.tensor([[*shared, *own]])).logits[0, -1] for shared, all_ in prompts for own in all_]
    torch.testing.assert_close(found, torch.stack(alone), atol=1e-4, rtol=0)


def test_logits_at_every_kept_place_of_a_sequence(pico_llm: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    sequences = [shared for shared, _ in random_prompts(3, 4)]
    packed = pack([(sequence, [()]) for sequence in sequences])
    plain = AutoModelForCausalLM.from_pretrained(pico_llm, dtype=torch.float32)
    segmented = AutoModelForCausalLM.from_pretrained(
        pico_llm, dtype=torch.float32, attn_implementation=register_segments()
    )
    with torch.no_grad():
        found = compute_logits(segmented, packed, np.arange(len(packed.ids)))
        alone = torch.cat([plain(torch.tensor([sequence])).logits[0] for sequence in sequences])
    torch.testing.assert_close(found, alone, atol=1e-4, rtol=0)


def test_what_a_fused_kernel_cannot_do_is_refused() -> None:
    import torch

    query, segments = torch.zeros(1, 2, 6, 4), [Segment(0, 2), Segment(2, 6, ((0, 2),))]
    with pytest.raises(ValueError, match=r"caps its attention scores at 50.0"):
        attend_within_segments(torch.nn.Linear(1, 1), query, query, query, None, segments=segments, softcap=50.0)
    with pytest.raises(ValueError, match="6 tokens exceeds the model's attention window of 4"):
        attend_within_segments(torch.nn.Linear(1, 1), query, query, query, None, segments=segments, sliding_window=4)
