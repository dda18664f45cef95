"""Majority vote over several samples of a generation; sampling stops as soon as the winner is certain."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from kaggle_llm.engines.engine import Engine, Sampling
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.inference.budget import Budget

PROMPTS_A_CHUNK = 32  # the budget is checked between chunks

Normalise = Callable[[str], str]


@dataclass
class Vote:
    """The answers of one prompt's samples."""

    answers: list[str] = field(default_factory=list)
    """One for each sample, in the order of their seeds; "" is no vote."""
    normalise: Normalise = str.strip

    @property
    def drawn(self) -> int:
        """Number of samples drawn."""
        return len(self.answers)

    @property
    def ranking(self) -> list[tuple[str, float]]:
        """`majority_vote` of the answers."""
        return majority_vote(self.answers, self.normalise)

    def is_decided(self, left: int) -> bool:
        """Whether `left` more samples cannot change the winner."""
        first, second = [*count_votes(self.answers, self.normalise).values(), 0, 0][:2]
        return first > second + left


def sample_until_decided(
    engine: Engine,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    read: Callable[[str], str],
    budget: Budget | None = None,
    size: int = 4,
    normalise: Normalise = str.strip,
) -> list[Vote]:
    """One Vote for each prompt, of up to `sampling.n` samples, drawn `size` at a time until it is decided.

    read: a sample's text → its answer, "" where it has none. A sample has the same seed as if all were drawn at once,
    so `size` changes how many are drawn, not their texts. Where the budget runs out, votes have fewer samples or
    none, and their prompts are counted as cut. At temperature 0 one sample is drawn.
    """
    if size < 1:
        raise ValueError(f"size = {size}: draw one sample or more at a time")
    wanted = sampling.n if sampling.temperature > 0 else 1
    votes = [Vote(normalise=normalise) for _ in prompts]
    for chunk in (budget or Budget()).take(_open_chunks(votes, wanted, size), "voting"):
        drawn = votes[chunk[0]].drawn
        part = replace(sampling, n=min(size, wanted - drawn), seed=sampling.seed + drawn)
        for index, completions in zip(chunk, engine.generate([prompts[i] for i in chunk], part), strict=True):
            votes[index].answers += [read(completion.text) for completion in completions]
    return votes


def _open_chunks(votes: Sequence[Vote], wanted: int, size: int) -> Iterator[list[int]]:
    """Chunks of indices of undecided votes, round by round; those that the budget cuts are not repeated."""
    for drawn in range(0, wanted, size):
        undecided = [i for i, vote in enumerate(votes) if vote.drawn == drawn and not vote.is_decided(wanted - drawn)]
        for start in range(0, len(undecided), PROMPTS_A_CHUNK):
            yield undecided[start : start + PROMPTS_A_CHUNK]


def majority_vote(answers: Sequence[str], normalise: Normalise = str.strip) -> list[tuple[str, float]]:
    """(answer, share of the votes), highest share first, ties in the order first seen; [] without votes.

    Answers that normalise to the same text are one, spelled as first seen and stripped; "" is no vote.
    """
    votes = count_votes(answers, normalise)
    spelling: dict[str, str] = {}
    for answer in answers:
        spelling.setdefault(normalise(answer), answer.strip())
    total = sum(votes.values())
    return [(spelling[key], count / total) for key, count in votes.items()]


def count_votes(answers: Sequence[str], normalise: Normalise) -> dict[str, int]:
    """Normalised answer → its votes, most votes first, ties in the order first seen."""
    votes: dict[str, int] = {}
    for answer in answers:
        key = normalise(answer)
        if key:
            votes[key] = votes.get(key, 0) + 1
    return dict(sorted(votes.items(), key=lambda item: -item[1]))


def extract_answer(text: str, pattern: str) -> str:
    """The last match of a regular expression: its last group that matched, or all of it; "" without a match."""
    answer = ""
    for match in re.finditer(pattern, text):
        answer = match.group(match.lastindex or 0)
    return answer
