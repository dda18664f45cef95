"""The time budget: a chunk that would end late is not begun, and what is left out is counted."""

import math
from collections import Counter
from collections.abc import Callable, Iterable

import pytest

from kaggle_llm.inference.budget import Budget, describe_cuts


class Clock:
    """Stands still until told to go on."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def work(self, budget: Budget, chunks: Iterable[str], seconds: Callable[[str], float]) -> list[str]:
        """What the budget lets through, each chunk taking its seconds."""
        done = []
        for chunk in budget.take(chunks):
            self.now += seconds(chunk)
            done.append(chunk)
        return done


def one_second_a_row(chunk: str) -> float:
    return float(len(chunk))


def test_without_a_limit_everything_is_taken() -> None:
    clock = Clock()
    budget = Budget(clock=clock)
    assert clock.work(budget, ["aaa", "b", "", "cc"], lambda chunk: 1e6) == ["aaa", "b", "", "cc"]
    assert budget.cuts.total() == 0 and budget.left() == math.inf


def test_the_time_left_runs_from_the_making_of_the_budget_less_the_reserve() -> None:
    clock = Clock()
    budget = Budget(10.0, 3.0, clock)
    assert budget.left() == 7.0
    clock.now += 9.0
    assert budget.left() == -2.0


@pytest.mark.parametrize(
    ("limit", "reserve", "taken"),
    [(6.0, 0.0, 3), (5.9, 0.0, 2), (6.0, 0.1, 2), (6.5, 0.5, 3), (100.0, 0.0, 4)],
)
def test_the_chunk_that_would_end_late_is_not_begun_and_its_rows_are_counted(
    limit: float, reserve: float, taken: int
) -> None:
    clock, chunks = Clock(), ["aa", "bb", "cc", "dd"]
    budget = Budget(limit, reserve, clock)
    assert clock.work(budget, chunks, one_second_a_row) == chunks[:taken]
    assert budget.cuts.total() == sum(map(len, chunks[taken:]))
    assert budget.left() >= 0


@pytest.mark.parametrize(("limit", "taken"), [(20.0, 4), (19.9, 3), (18.0, 3), (17.9, 2), (12.0, 2), (11.9, 1)])
def test_the_slowest_pace_behind_the_first_chunk_decides_not_the_last_or_the_mean(limit: float, taken: int) -> None:
    """The first one, 4 s a row, waits for the model to be loaded: its pace counts until there is a second one."""
    seconds = {"aa": 8.0, "b": 2.0, "cccc": 4.0, "ddd": 0.0}  # ends at 8, 10, 14; ddd is thought to need 3 rows · 2 s
    clock, chunks = Clock(), list(seconds)
    budget = Budget(limit, 0.0, clock)
    assert clock.work(budget, chunks, seconds.__getitem__) == chunks[:taken]
    assert budget.cuts == Counter({"prediction": sum(map(len, chunks[taken:]))})


def test_cuts_are_counted_by_name_and_said() -> None:
    clock = Clock()
    budget = Budget(2.0, 0.0, clock)
    assert describe_cuts(budget.cuts) == ""
    list(budget.take(["aa"], "first"))
    clock.now += 5.0
    list(budget.take(["aa", "b"], "second order"))
    list(budget.take(["cc"], "member 2 of 2"))
    assert describe_cuts(budget.cuts) == "cut by the time limit: second order of 3 rows, member 2 of 2 of 2 rows"


def test_a_fork_has_the_same_end_and_its_own_cuts() -> None:
    clock = Clock()
    budget = Budget(10.0, 3.0, clock)
    clock.now += 2.0
    fork = budget.fork()
    assert fork.left() == budget.left() == 5.0
    clock.now += 6.0
    assert list(fork.take(["aa"])) == [] and list(budget.fork().take(["a"])) == []
    assert fork.cuts.total() == 2 and budget.cuts.total() == 0


def test_a_chunk_is_judged_by_its_own_number_of_rows() -> None:
    clock = Clock()
    budget = Budget(5.0, 0.0, clock)
    assert clock.work(budget, ["aa", "bb", "c"], one_second_a_row) == ["aa", "bb", "c"]
    assert budget.cuts.total() == 0


def test_after_the_first_cut_nothing_more_is_taken_even_if_it_would_fit() -> None:
    clock = Clock()
    budget = Budget(5.0, 0.0, clock)
    assert clock.work(budget, ["aa", "bbbb", "c"], one_second_a_row) == ["aa"]
    assert budget.cuts.total() == 5


def test_the_first_chunk_is_taken_whatever_it_costs_unless_time_is_already_overdrawn() -> None:
    for late, taken in ((0.0, ["a" * 50]), (9.999, ["a" * 50]), (10.0, ["a" * 50]), (10.001, [])):
        clock = Clock()
        budget = Budget(12.0, 2.0, clock)
        clock.now += late
        assert clock.work(budget, ["a" * 50, "bb"], one_second_a_row) == taken
        assert budget.cuts.total() == 52 - sum(map(len, taken))


def test_a_reserve_larger_than_the_limit_takes_nothing() -> None:
    clock = Clock()
    budget = Budget(1.0, 2.0, clock)
    assert clock.work(budget, ["a", "b"], one_second_a_row) == []
    assert budget.cuts.total() == 2


def test_time_spent_between_chunks_counts_against_the_limit_but_not_as_pace() -> None:
    clock = Clock()

    def slow_source() -> Iterable[str]:
        for chunk in ("a", "b", "c"):
            clock.now += 4.0
            yield chunk

    budget = Budget(12.5, 0.0, clock)  # a ends at 5, b at 10; c is read at 14, past the end
    assert clock.work(budget, slow_source(), one_second_a_row) == ["a", "b"]
    assert budget.cuts.total() == 1


def test_cut_rows_add_up_over_several_calls_and_each_call_learns_its_pace_anew() -> None:
    clock = Clock()
    budget = Budget(5.0, 0.0, clock)
    assert clock.work(budget, ["aa", "bbbb"], one_second_a_row) == ["aa"]
    assert clock.work(budget, ["cc", "dd"], lambda chunk: 0.5) == ["cc", "dd"]
    assert budget.cuts.total() == 4
    clock.now += 10.0
    assert clock.work(budget, ["ee"], one_second_a_row) == []
    assert budget.cuts.total() == 6


@pytest.mark.parametrize(("limit", "taken"), [(20.0, ["aa"]), (19.9, [])])
def test_a_second_model_is_begun_only_where_the_first_chunk_of_the_first_one_would_fit(
    limit: float, taken: list[str]
) -> None:
    clock = Clock()
    budget = Budget(limit, 0.0, clock)
    seconds = {"aa": 9.0, "bb": 1.0, "cc": 1.0}
    assert clock.work(budget, ["aa", "bb", "cc"], seconds.__getitem__) == ["aa", "bb", "cc"]
    assert clock.work(budget.fork(), ["aa"], seconds.__getitem__) == taken


def test_no_time_and_less_than_a_second_are_times() -> None:
    assert Budget(0.0, 0.0, lambda: 7.0).left() == 0 and Budget(0.5, 0.25, lambda: 7.0).left() == 0.25


@pytest.mark.parametrize(("limit", "reserve"), [(-1.0, 0.0), (10.0, -0.1), (-math.inf, 0.0)])
def test_negative_seconds_are_refused(limit: float, reserve: float) -> None:
    with pytest.raises(ValueError, match="both must be 0 or more"):
        Budget(limit, reserve)


def test_a_limit_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="limit = nan"):
        Budget(float("nan"))
