"""Votes counted by hand; samples drawn until they are clear, against all samples at once."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from kaggle_llm.competition.metrics import normalise_answer
from kaggle_llm.competition.rankings import check_ranking, make_ranking
from kaggle_llm.engines.engine import Completion, EngineSettings, Sampling
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.transformers_engine import TransformersEngine
from kaggle_llm.inference.budget import Budget
from kaggle_llm.tasks.vote import PROMPTS_A_CHUNK, Vote, extract_answer, majority_vote, sample_until_decided


def test_the_answer_of_most_samples_comes_first_with_its_share() -> None:
    assert majority_vote(["7", "12", " 12", "", "12\n", "7", "9", "  "]) == [("12", 0.5), ("7", 2 / 6), ("9", 1 / 6)]


def test_equal_shares_keep_the_order_first_seen() -> None:
    assert [answer for answer, _ in majority_vote(["c", "a", "b", "a", "b", "c", "d"])] == ["c", "a", "b", "d"]


def test_without_an_answer_there_is_no_vote() -> None:
    assert majority_vote([]) == majority_vote(["", " \n"]) == []


def test_what_normalises_alike_is_one_answer_spelled_as_first_seen() -> None:
    answers = [" The Cat.", "dog", "cat", "the"]
    assert majority_vote(answers, normalise_answer) == [("The Cat.", 2 / 3), ("dog", 1 / 3)]


def test_a_vote_is_a_row_of_a_ranking_and_agrees_with_a_counter() -> None:
    answers = Random(0).choices("abcde", k=100)
    vote = majority_vote(answers)
    assert dict(vote) == {answer: count / 100 for answer, count in Counter(answers).items()}
    row = make_ranking(["r"], [[answer for answer, _ in vote]], [[share for _, share in vote]])
    assert check_ranking(row, ["r"])["items"][0].to_list() == [answer for answer, _ in vote]


@pytest.mark.parametrize(
    ("text", "pattern", "expected"),
    [
        ("First 3, then 14.", r"\d+", "14"),
        (r"So \boxed{3} or rather \boxed{x+1}.", r"\\boxed\{(.*?)\}", "x+1"),
        (r"the answer is 4", r"\\boxed\{(.*?)\}|answer is (\d+)", "4"),
        (r"answer is 4, \boxed{5}", r"\\boxed\{(.*?)\}|answer is (\d+)", "5"),
        ("nothing", r"\d+", ""),
        ("", r"\d*", ""),
    ],
)
def test_the_last_match_is_the_answer(text: str, pattern: str, expected: str) -> None:
    assert extract_answer(text, pattern) == expected


# samples until the vote is decided --------------------------------------------------------------------------


class Scripted:
    """An engine whose sample of seed s is the s-th letter of the prompt's script; the clock runs while it writes."""

    def __init__(self, scripts: Sequence[str], seconds: float = 0.0) -> None:
        self.scripts, self.seconds, self.now = scripts, seconds, 0.0
        self.calls: list[tuple[list[int], int, int]] = []

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        self.calls.append(([prompt[0] for prompt in prompts], sampling.seed, sampling.n))
        self.now += self.seconds * len(prompts)
        seeds = range(sampling.seed, sampling.seed + sampling.n)
        return [[Completion(self.scripts[prompt[0]][seed]) for seed in seeds] for prompt in prompts]


def draw(engine: Any, n: int, size: int, **more: Any) -> list[Vote]:
    prompts = [[index] for index in range(len(engine.scripts))]
    return sample_until_decided(engine, prompts, Sampling(1, 1.0, n=n), str.strip, size=size, **more)


def test_a_prompt_leaves_when_its_first_answer_cannot_be_caught_up() -> None:
    """Of 8, 2 at a time: 4 may still be met by 4 more, 5 not; after six, 4 to 2 may be met, 5 to 1 not."""
    votes = draw(Scripted(["aaaaaaaa", "abababab", "        ", "aaabbaba", "b  bbbaa"]), 8, 2)
    assert [vote.drawn for vote in votes] == [6, 8, 8, 8, 6]
    assert [vote.ranking[:1] for vote in votes] == [[("a", 1.0)], [("a", 0.5)], [], [("a", 5 / 8)], [("b", 1.0)]]


def test_only_open_prompts_are_drawn_for_with_the_next_seeds() -> None:
    engine = Scripted(["aaaaa", "ababa"])
    draw(engine, 5, 3)
    assert engine.calls == [([0, 1], 0, 3), ([1], 3, 2)]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 16, 100])
def test_stopping_early_changes_no_winner_and_no_sample(size: int) -> None:
    random = Random(size)
    scripts = [
        "".join(random.choices("ab c", [random.random() for _ in "ab c"], k=16)) for _ in range(3 * PROMPTS_A_CHUNK)
    ]
    for script, vote in zip(scripts, draw(Scripted(scripts), 16, size), strict=True):
        whole = majority_vote(list(script))
        assert vote.answers == [letter.strip() for letter in script[: vote.drawn]]
        assert [answer for answer, _ in vote.ranking[:1]] == [answer for answer, _ in whole[:1]]
        assert vote.drawn == 16 or vote.drawn % size == 0


def test_a_vote_is_decided_only_by_a_lead_of_more_than_is_left() -> None:
    """Every way to go on is tried."""
    from itertools import product

    for answers in product("ab", repeat=4):
        for left in range(4):
            ends = {majority_vote([*answers, *rest])[0][0] for rest in product("abc", repeat=left)}
            decided = Vote(list(answers)).is_decided(left)
            assert not decided or ends == {Vote(list(answers)).ranking[0][0]}
            assert decided or len(ends) > 1 or abs(Counter(answers)["a"] - Counter(answers)["b"]) == left


def test_greedy_texts_are_drawn_once() -> None:
    engine = Scripted(["abc"])
    (vote,) = sample_until_decided(engine, [[0]], Sampling(1, 0.0, n=3), str.strip)
    assert engine.calls == [([0], 0, 1)] and vote.ranking == [("a", 1.0)] and vote.drawn == 1


def test_where_the_time_ends_votes_have_fewer_samples_and_are_counted_once() -> None:
    """One second a prompt: three chunks of the first round and one of the second fit into the time."""
    engine = Scripted(["abababab"] * (3 * PROMPTS_A_CHUNK), seconds=1.0)
    budget = Budget(4 * PROMPTS_A_CHUNK + 1, clock=lambda: engine.now)
    votes = draw(engine, 8, 2, budget=budget)
    assert [vote.drawn for vote in votes] == [4] * PROMPTS_A_CHUNK + [2] * (2 * PROMPTS_A_CHUNK)
    assert engine.now <= 4 * PROMPTS_A_CHUNK + 1 and budget.cuts == {"voting": 3 * PROMPTS_A_CHUNK}


def test_without_any_time_there_are_no_votes() -> None:
    engine = Scripted(["aa"], seconds=1.0)
    budget = Budget(0, clock=lambda: engine.now + 1)
    engine.now = 5
    (vote,) = draw(engine, 2, 1, budget=budget)
    assert vote.drawn == 0 and vote.ranking == [] and engine.calls == []


def test_no_prompts_and_no_size_are_told_apart() -> None:
    assert draw(Scripted([]), 4, 2) == []
    with pytest.raises(ValueError, match="size = 0"):
        draw(Scripted(["a"]), 4, 0)


def test_samples_of_a_model_are_those_drawn_at_once(pico_llm: Path) -> None:
    engine = TransformersEngine(pico_llm, EngineSettings())
    prompts = [[7, 8, 9], [300], list(range(20, 60))]
    sampling = Sampling(max_tokens=6, temperature=1.0, n=7, seed=11, options=("1", "2", "3"))
    at_once = [[one.text for one in found] for found in engine.generate(prompts, sampling)]
    for size in (1, 3):
        votes = sample_until_decided(engine, prompts, sampling, str.strip, size=size)
        assert all(vote.answers == texts[: vote.drawn] for vote, texts in zip(votes, at_once, strict=True))
        assert [v.ranking[0][0] for v in votes] == [majority_vote(texts)[0][0] for texts in at_once]
    assert len({text for texts in at_once for text in texts}) > 1
