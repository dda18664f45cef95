"""The arithmetic of the benchmarks' rounds, on a case by hand, and a warm-up that shares nothing with what is timed."""

from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(HERE)
    import rounds

    return rounds


@pytest.fixture
def choice_scoring(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(HERE)
    import choice_scoring

    return choice_scoring


SPEEDS = {"theirs": [10.0, 20.0, 40.0], "kaggle_llm": [40.0, 30.0, 100.0]}


def test_every_contender_runs_once_a_round_in_turn(rounds: Any) -> None:
    asked: list[tuple[str, int]] = []

    def call(name: str, number: int) -> dict[str, float]:
        asked.append((name, number))
        return {"speed": SPEEDS[name][number]}

    runs = rounds.run_rounds(list(SPEEDS), 3, call)
    assert asked == [(name, number) for number in range(3) for name in SPEEDS]
    assert {name: [run["speed"] for run in own] for name, own in runs.items()} == SPEEDS
    assert all(run["load_before"] >= 0 for own in runs.values() for run in own)


def test_figures_are_medians_with_their_spread_and_ratios_are_taken_round_by_round(rounds: Any) -> None:
    """Ratios are 4, 1.5 and 2.5: their median is 2.5, while the medians' own ratio is 40 / 20."""
    runs = {name: [{"speed": speed, "memory": 8.0} for speed in speeds] for name, speeds in SPEEDS.items()}
    theirs, ours = rounds.summarise_rounds(runs, ["speed"])
    assert (theirs["name"], theirs["figures"]) == ("theirs", {"speed": 20.0, "memory": 8.0})
    assert theirs["spread"] == {"speed": [10.0, 40.0], "memory": [8.0, 8.0]}
    assert theirs["ratios"] == {"speed": {"median": 2.5, "spread": [1.5, 4.0]}} and theirs["runs"] == runs["theirs"]
    assert ours["ratios"] == {"speed": {"median": 1.0, "spread": [1.0, 1.0]}}
    assert rounds.show_figure(theirs, "speed") == "20.0 (10.0–40.0)"
    assert rounds.show_ratio(theirs, "speed") == "2.50 (1.50–4.00)"


def test_one_round_has_no_spread_to_show_and_without_ours_there_are_no_ratios(rounds: Any) -> None:
    (alone,) = rounds.summarise_rounds({"theirs": [{"speed": 3.0}]}, ["speed"])
    assert (rounds.show_figure(alone, "speed", 2), rounds.show_ratio(alone, "speed")) == ("3.00", "")


def test_the_warm_up_shares_no_beginning_with_what_is_timed(choice_scoring: Any) -> None:
    """But the same lengths, and the same sharing within itself."""
    prompts = [[1, 5, 9], [1, 5, 7, 8], [3, 2]]
    warm = choice_scoring.make_warm_up(prompts)
    assert list(map(len, warm)) == list(map(len, prompts))
    assert not {prompt[0] for prompt in prompts} & {prompt[0] for prompt in warm}
    assert warm[0][:2] == warm[1][:2] and warm[0][2] != warm[1][2]
    assert {token for prompt in warm for token in prompt} <= set(range(10))
