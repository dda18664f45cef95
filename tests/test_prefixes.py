"""kaggle_llm.inference.prefixes: which neighbours compute a prefix together, and how long it is."""

import random

import pytest

from kaggle_llm.inference.prefixes import WORTH, common_prefix, group_by_prefix
from kaggle_llm.prompts import Prompt

ROW_A, ROW_B = list(range(100, 140)), list(range(200, 240))


def random_prompts(seed: int) -> list[Prompt]:
    """Few token values, some rows with candidates, some prompts alone, empty ones and repetitions among them."""
    rng = random.Random(seed)
    prompts: list[Prompt] = []
    for _ in range(rng.randint(0, 12)):
        shared = [rng.randint(0, 1) for _ in range(rng.randint(0, 60))]
        for _ in range(rng.randint(1, 4)):
            prompts.append([*shared, *(rng.randint(0, 1) for _ in range(rng.randint(0, 30)))])
    return prompts


@pytest.mark.parametrize("seed", range(50))
def test_every_index_stands_once_in_the_order_given(seed: int) -> None:
    prompts = random_prompts(seed)
    assert [i for _, members in group_by_prefix(prompts) for i in members] == list(range(len(prompts)))


@pytest.mark.parametrize("seed", range(50))
def test_a_prefix_is_common_to_its_group_and_leaves_a_token_of_every_prompt(seed: int) -> None:
    prompts = random_prompts(seed)
    for length, members in group_by_prefix(prompts):
        first = prompts[members[0]]
        assert all(prompts[i][:length] == first[:length] for i in members)
        if length:
            assert length >= WORTH
            assert 2 * length >= len(first)
            assert all(len(prompts[i]) > length for i in members)
        else:
            assert len(members) == 1


def test_random_prompts_hold_the_cases_that_the_properties_are_about() -> None:
    found = [group for seed in range(50) for group in group_by_prefix(random_prompts(seed))]
    assert any(length and len(members) > 2 for length, members in found)
    assert any(not length for length, _ in found)


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 3], 2), ([], [1], 0), ([2, 1], [1, 2], 0), ([1, 5, 3], [1, 6, 3], 1)],
)
def test_common_prefix_ends_at_the_first_difference(first: list[int], second: list[int], shared: int) -> None:
    assert common_prefix(first, second) == common_prefix(second, first) == shared


def test_candidates_of_two_rows_make_two_groups_with_the_row_as_prefix() -> None:
    prompts = [[*ROW_A, 1, 2], [*ROW_A, 3], [*ROW_B, 1, 2], [*ROW_B, 3], [*ROW_B, 4, 5, 6]]
    assert group_by_prefix(prompts) == [(40, [0, 1]), (40, [2, 3, 4])]


def test_identical_prompts_share_all_but_the_last_token() -> None:
    assert group_by_prefix([ROW_A, ROW_A, ROW_A]) == [(39, [0, 1, 2])]


@pytest.mark.parametrize("order", [(ROW_A[:30], ROW_A), (ROW_A, ROW_A[:30])])
def test_a_prompt_that_begins_another_keeps_its_last_token(order: tuple[Prompt, Prompt]) -> None:
    assert group_by_prefix(order) == [(29, [0, 1])]


def test_the_prefix_shrinks_to_what_a_later_member_shares() -> None:
    prompts = [[*ROW_A, 1, 1], [*ROW_A, 1, 2], [*ROW_A[:35], 9]]
    assert group_by_prefix(prompts) == [(35, [0, 1, 2])]


def test_unrelated_neighbours_stay_alone() -> None:
    assert group_by_prefix([ROW_A, ROW_B, ROW_A]) == [(0, [0]), (0, [1]), (0, [2])]


def test_a_row_is_not_joined_across_another_one() -> None:
    prompts = [[*ROW_A, 1], [*ROW_A, 2], ROW_B, [*ROW_A, 3]]
    assert group_by_prefix(prompts) == [(40, [0, 1]), (0, [2]), (0, [3])]


def test_rows_that_share_only_an_instruction_are_not_joined() -> None:
    instruction = list(range(30))
    prompts = [
        [*instruction, *ROW_A, 1],
        [*instruction, *ROW_A, 2],
        [*instruction, *ROW_B, 1],
        [*instruction, *ROW_B, 2],
    ]
    assert group_by_prefix(prompts) == [(70, [0, 1]), (70, [2, 3])]


@pytest.mark.parametrize(("shared", "joined"), [(WORTH - 1, False), (WORTH, True)])
def test_a_prefix_below_its_worth_is_not_shared(shared: int, joined: bool) -> None:
    prompts = [[*ROW_A[:shared], 1], [*ROW_A[:shared], 2]]
    assert group_by_prefix(prompts) == ([(shared, [0, 1])] if joined else [(0, [0]), (0, [1])])


@pytest.mark.parametrize(("rest", "joined"), [(20, True), (21, False)])
def test_neighbours_need_half_of_the_first_prompt(rest: int, joined: bool) -> None:
    prompts = [[*ROW_A[:20], *range(rest)], [*ROW_A[:20], 7, 8]]
    assert group_by_prefix(prompts) == ([(20, [0, 1])] if joined else [(0, [0]), (0, [1])])


def test_no_prompts_make_no_groups_and_empty_ones_stay_alone() -> None:
    assert group_by_prefix([]) == []
    assert group_by_prefix([[], [], [5]]) == [(0, [0]), (0, [1]), (0, [2])]
