"""The answer that several samples of a generation agree on, drawn no longer than until it is clear."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from kaggle_llm.engines.engine import Engine, Sampling
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.inference.budget import Budget

CHUNK = 32  # prompts between two looks at the clock

Normalise = Callable[[str], str]


@dataclass
class Vote:
    """What was read from the samples of one prompt."""

    answers: list[str] = field(default_factory=list)
    """Of every sample drawn, in the order of their seeds; "" is no vote."""
    normalise: Normalise = str.strip

    @property
    def drawn(self) -> int:
        """How many samples were drawn."""
        return len(self.answers)

    @property
    def ranking(self) -> list[tuple[str, float]]:
        """(answer, share of the votes), as `majority_vote` gives them."""
        return majority_vote(self.answers, self.normalise)

    def is_decided(self, left: int) -> bool:
        """Whether the first answer stays first whatever `left` more samples say."""
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

    read: a sample's text → its answer, "" where it has none. A sample has the seed that it would have if all were
    drawn at once, so `size` changes how many are drawn, and not what they say. Where the time of `budget` runs out,
    votes have fewer samples or none, and their prompts are counted as cut. Greedy texts are alike: one is drawn.
    """
    if size < 1:
        raise ValueError(f"size = {size}: draw one sample or more at a time")
    wanted = sampling.n if sampling.temperature > 0 else 1
    votes = [Vote(normalise=normalise) for _ in prompts]
    for chunk in (budget or Budget()).take(_open_chunks(votes, wanted, size), "voting"):
        drawn = votes[chunk[0]].drawn
        part = replace(sampling, n=min(size, wanted - drawn), seed=sampling.seed + drawn)
        for index, found in zip(chunk, engine.generate([prompts[i] for i in chunk], part), strict=True):
            votes[index].answers += [read(one.text) for one in found]
    return votes


def _open_chunks(votes: Sequence[Vote], wanted: int, size: int) -> Iterator[list[int]]:
    """Indices of undecided votes, all that have as many samples first; a chunk that is not drawn comes once."""
    for drawn in range(0, wanted, size):
        still = [i for i, vote in enumerate(votes) if vote.drawn == drawn and not vote.is_decided(wanted - drawn)]
        for start in range(0, len(still), CHUNK):
            yield still[start : start + CHUNK]


def majority_vote(answers: Sequence[str], normalise: Normalise = str.strip) -> list[tuple[str, float]]:
    """(answer, share of the votes) descending, equal shares in the order first seen; [] without a vote.

    Answers that normalise to the same text are one, spelled as first seen, without white space around it. One that
    normalises to "" is no vote.
    """
    votes = count_votes(answers, normalise)
    spelling: dict[str, str] = {}
    for answer in answers:
        spelling.setdefault(normalise(answer), answer.strip())
    total = sum(votes.values())
    return [(spelling[key], count / total) for key, count in votes.items()]


def count_votes(answers: Sequence[str], normalise: Normalise) -> dict[str, int]:
    """Normalised answer → its votes, descending, equal ones in the order first seen."""
    votes: dict[str, int] = {}
    for answer in answers:
        key = normalise(answer)
        if key:
            votes[key] = votes.get(key, 0) + 1
    return dict(sorted(votes.items(), key=lambda item: -item[1]))


def extract_answer(text: str, pattern: str) -> str:
    """The last match of a regular expression, or "": what its group caught (the last one that did), else all of it."""
    found = ""
    for match in re.finditer(pattern, text):
        found = match.group(match.lastindex or 0)
    return found
