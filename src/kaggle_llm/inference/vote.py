"""The answer that several samples of a generation agree on."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence


def majority_vote(answers: Sequence[str], normalise: Callable[[str], str] = str.strip) -> list[tuple[str, float]]:
    """(answer, share of the votes) descending, equal shares in the order first seen; [] without a vote.

    Answers that normalise to the same text are one, spelled as first seen, without white space around it. One that
    normalises to "" is no vote.
    """
    spelling: dict[str, str] = {}
    votes: dict[str, int] = {}
    for answer in answers:
        key = normalise(answer)
        if key:
            spelling.setdefault(key, answer.strip())
            votes[key] = votes.get(key, 0) + 1
    total = sum(votes.values())
    return [(spelling[key], votes[key] / total) for key in sorted(votes, key=lambda key: -votes[key])]


def extract_answer(text: str, pattern: str) -> str:
    """The last match of a regular expression, or "": what its group caught (the last one that did), else all of it."""
    found = ""
    for match in re.finditer(pattern, text):
        found = match.group(match.lastindex or 0)
    return found
