"""Steps made by tokens: every example once an epoch, parts within the budget, processes in step and alike in length."""

import random

import pytest

from kaggle_llm.training.plan import Share, measure, plan_training, split_step, within_budget
from kaggle_llm.training.settings import TrainingSettings


def settings(**changes: int) -> TrainingSettings:
    return TrainingSettings(**({"batch": 8, "batch_tokens": 1000} | changes))


def random_lengths(count: int, seed: int = 0, longest: int = 400) -> list[int]:
    rng = random.Random(seed)
    return [rng.randint(1, longest) for _ in range(count)]


def examples_of(shares: list[Share]) -> list[int]:
    return [i for share in shares for part in share.parts for i in part]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("padded", [False, True])
def test_every_example_is_trained_on_once_an_epoch(padded: bool, world: int) -> None:
    lengths = random_lengths(37)
    shares = plan_training(lengths, [1.0] * 37, padded, settings(epochs=3), 0, world)
    assert sorted(examples_of(shares)) == sorted([*range(37)] * 3)
    per_epoch = -(-37 // 8) * world
    assert len(shares) == 3 * per_epoch
    first, second = (examples_of(shares[n * per_epoch : (n + 1) * per_epoch]) for n in (0, 1))
    assert sorted(first) == sorted(second) and first != second, "each epoch has an order of its own"


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_step_holds_the_same_examples_on_any_number_of_processes(world: int) -> None:
    lengths = random_lengths(32)
    one = plan_training(lengths, [1.0] * 32, False, settings(), 7)
    many = plan_training(lengths, [1.0] * 32, False, settings(), 7, world)
    steps = [many[n : n + world] for n in range(0, len(many), world)]
    assert [sorted(examples_of(step)) for step in steps] == [sorted(examples_of([share])) for share in one]


@pytest.mark.parametrize("padded", [False, True])
def test_parts_keep_to_the_budget_and_processes_have_as_many(padded: bool) -> None:
    for seed in range(20):
        lengths, world = random_lengths(24, seed), 1 + seed % 3
        parts = split_step(range(24), lengths, padded, 700, world)
        assert all(measure(part, lengths, padded) <= 700 for part in parts)
        assert len(parts) % world == 0
        assert len(parts) <= 24, "never more parts than examples in a step that holds enough of them"


def test_an_example_over_the_budget_stands_alone() -> None:
    assert split_step([0, 1, 2], [900, 10, 10], False, 100, 1) == [[0], [1, 2]]


def test_processes_wait_little_for_each_other() -> None:
    """LPT's bound: the longest part is at most 4/3 of the best possible, which is at least the mean."""
    for seed in range(20):
        lengths = random_lengths(40, seed)
        parts = split_step(range(40), lengths, False, 10**9, 2)
        tokens = [measure(part, lengths, False) for part in parts]
        assert len(parts) == 2 and max(tokens) <= 4 / 3 * sum(lengths) / 2


def test_padded_parts_hold_examples_of_like_length() -> None:
    lengths = [10, 500, 12, 480, 11, 510]
    parts = split_step(range(6), lengths, True, 1600, 1)
    assert sorted(sorted(part) for part in parts) == [[0, 2, 4], [1, 3, 5]]


def test_fewer_examples_than_processes_leave_empty_parts() -> None:
    shares = plan_training([5, 6], [1.0, 2.0], False, settings(), 0, 4)
    assert [len(share.parts) for share in shares] == [1, 1, 1, 1]
    assert sorted(len(share.parts[0]) for share in shares) == [0, 0, 1, 1]
    assert {share.weight for share in shares} == {3.0}, "the weight is that of the whole step"


def test_examples_are_kept_up_to_the_first_that_breaks_the_budget() -> None:
    assert within_budget([5, 4, 5], 14) == 3
    assert within_budget([5, 4, 5], 13) == 2
    assert within_budget([4, 5, 4], 8) == 1
    assert within_budget([5, 4], 4) == 0
    assert within_budget([5, 4], None) == 2
