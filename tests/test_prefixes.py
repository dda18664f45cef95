"""kaggle_llm.engines.prefixes: what prompts share, as a tree of tokens."""

import random
from collections.abc import Sequence

import pytest

from kaggle_llm.engines.prefixes import MAX_LEVELS, MIN_TOKENS_SAVED, PrefixNode, common_prefix, group_nodes, grow_tree
from kaggle_llm.engines.prompts import Prompt

ROW_A, ROW_B = list(range(100, 140)), list(range(200, 240))


def random_prompts(seed: int) -> list[Prompt]:
    """Few token values, some rows with candidates, some prompts alone, beginnings of others and repetitions."""
    rng = random.Random(seed)
    prompts: list[Prompt] = []
    for _ in range(rng.randint(0, 12)):
        shared = [rng.randint(0, 1) for _ in range(rng.randint(1, 60))]
        for _ in range(rng.randint(1, 4)):
            prompts.append([*shared, *(rng.randint(0, 1) for _ in range(rng.randint(0, 30)))])
    return prompts


def read_paths(
    nodes: Sequence[PrefixNode], prompts: Sequence[Prompt], before: tuple[int, ...] = ()
) -> dict[int, list[int]]:
    """Prompt → the tokens on the way to the node where it ends."""
    found: dict[int, list[int]] = {}
    for node in nodes:
        assert node.begin == len(before)
        path = (*before, *prompts[node.prompt][node.begin : node.end])
        for prompt in node.ends:
            assert prompt not in found
            found[prompt] = list(path)
        below = read_paths(node.children, prompts, path)
        assert not found.keys() & below.keys()
        found |= below
    return found


def list_nodes(nodes: Sequence[PrefixNode]) -> list[PrefixNode]:
    return [found for node in nodes for found in (node, *list_nodes(node.children))]


def shape(nodes: Sequence[PrefixNode]) -> list[tuple[int, int, list[int], list]]:
    return [(node.begin, node.end, node.ends, shape(node.children)) for node in nodes]


def test_the_way_to_a_prompts_only_node_is_the_prompt() -> None:
    for seed in range(50):
        prompts = random_prompts(seed)
        assert read_paths(grow_tree(prompts), prompts) == dict(enumerate(prompts))


def test_a_node_with_children_saves_what_it_is_worth_and_none_is_empty() -> None:
    for seed in range(50):
        prompts = random_prompts(seed)
        trees = grow_tree(prompts)
        for node in list_nodes(trees):
            below = sum(len(descendant.ends) for descendant in list_nodes([node]))
            assert node.end > node.begin
            assert node.ends or node.children
            assert not node.children or (node.end - node.begin) * (below - 1) >= MIN_TOKENS_SAVED
        assert sum(map(len, trees)) <= sum(len(prompt) for prompt in {tuple(prompt) for prompt in prompts})


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [([1, 2, 3], [1, 2, 4], 2), ([1, 2], [1, 2, 3], 2), ([], [1], 0), ([2, 1], [1, 2], 0), ([1, 5, 3], [1, 6, 3], 1)],
)
def test_common_prefix_ends_at_the_first_difference(first: list[int], second: list[int], shared: int) -> None:
    assert common_prefix(first, second) == common_prefix(second, first) == shared


def test_common_prefix_is_counted_as_a_loop_does() -> None:
    for seed in range(50):
        rng = random.Random(seed)
        first, second = (rng.choices(range(3), k=rng.randint(0, 8)) for _ in range(2))
        shared = 0
        while shared < min(len(first), len(second)) and first[shared] == second[shared]:
            shared += 1
        assert common_prefix(first, second) == shared


def test_instructions_questions_and_candidates_are_three_levels_in_any_order() -> None:
    instruction = list(range(20))
    prompts = [[*instruction, *row, end, 7] for end in (1, 2) for row in (ROW_A, ROW_B)]
    rows = [(20, 60, [], [(60, 62, [0], []), (60, 62, [2], [])]), (20, 60, [], [(60, 62, [1], []), (60, 62, [3], [])])]
    assert shape(grow_tree(prompts)) == [(0, 20, [], rows)]


def test_equal_prompts_are_computed_once() -> None:
    assert shape(grow_tree([ROW_A, ROW_B, ROW_A])) == [(0, 40, [0, 2], []), (0, 40, [1], [])]


def test_a_prompt_that_begins_another_ends_at_a_node_above_it() -> None:
    assert shape(grow_tree([ROW_A, ROW_A[:30]])) == [(0, 30, [1], [(30, 40, [0], [])])]


@pytest.mark.parametrize(("shared", "joined"), [(MIN_TOKENS_SAVED // 2 - 1, False), (MIN_TOKENS_SAVED // 2, True)])
def test_what_three_prompts_share_is_saved_twice(shared: int, joined: bool) -> None:
    prompts = [[*ROW_A[:shared], end] for end in range(3)]
    assert len(grow_tree(prompts)) == (1 if joined else 3)


def test_a_beginning_that_is_not_worth_it_does_not_hide_one_below_it_that_is() -> None:
    prompts = [[5, *ROW_A, 1], [5, *ROW_A, 2], [5, 9]]
    rows = (0, 41, [], [(41, 42, [0], []), (41, 42, [1], [])])
    assert shape(grow_tree(prompts)) == [(0, 2, [2], []), rows]


def test_a_long_chain_of_beginnings_ends_at_the_deepest_level() -> None:
    prompts = [[1] * (20 * n) for n in range(1, 60)]
    trees = grow_tree(prompts)
    assert read_paths(trees, prompts) == dict(enumerate(prompts))
    (top,) = trees
    levels, node = 0, top
    while node.children:
        levels, node = levels + 1, node.children[0]
    assert levels == MAX_LEVELS


def test_no_prompts_have_no_tree() -> None:
    assert grow_tree([]) == []


def test_neighbours_go_together_as_far_as_they_fit() -> None:
    nodes = grow_tree([[n] * size for n, size in enumerate([5, 3, 9, 1, 1, 1])])
    assert [[len(node) for node in group] for group in group_nodes(nodes, 8)] == [[5, 3], [9], [1, 1, 1]]
    assert list(group_nodes([], 8)) == []
