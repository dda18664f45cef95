"""Contenders in rounds: each runs once in every round, in turn, so that what else the machine does meets all alike.

A figure is the median over the rounds, with its spread beside it; a ratio to this project's contender is taken in each
round, between neighbours in time, and only then its median.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

OURS = "kaggle_llm"
ROUNDS = 3
Figures = dict[str, Any]


def run_rounds(names: Sequence[str], rounds: int, call: Callable[[str, int], Figures]) -> dict[str, list[Figures]]:
    """Contender → what call(contender, round) gave in each round, and the machine's load just before."""
    runs: dict[str, list[Figures]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            load = os.getloadavg()[0]
            print(f"{name}, round {number + 1} of {rounds} … (load average {load:.1f})", flush=True)
            runs[name].append({**call(name, number), "load_before": load})
    return runs


def summarise_rounds(runs: Mapping[str, Sequence[Mapping[str, float]]], compared: Sequence[str]) -> list[Figures]:
    """{"name", "figures", "spread", "ratios", "runs"} of each contender.

    figures: medians over the rounds; spread: [smallest, largest]. ratios: of the `compared` figures, ours over theirs,
    {"median", "spread"}; empty where this project's contender is not among them.
    """
    return [
        {
            "name": name,
            "figures": {key: statistics.median(run[key] for run in own) for key in own[0]},
            "spread": {key: find_spread([run[key] for run in own]) for key in own[0]},
            "ratios": {key: compare_rounds(runs[OURS], own, key) for key in compared} if OURS in runs else {},
            "runs": list(own),
        }
        for name, own in runs.items()
    ]


def compare_rounds(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]], key: str) -> Figures:
    ratios = [mine[key] / other[key] for mine, other in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(ratios), "spread": find_spread(ratios)}


def find_spread(values: Sequence[float]) -> list[float]:
    return [min(values), max(values)]


def show_figure(contender: Mapping[str, Any], key: str, digits: int = 1) -> str:
    """ "31.3 (30.9–31.6)": the median, and where there were more rounds than one the spread."""
    return _show(contender["figures"][key], contender["spread"][key], digits, len(contender["runs"]))


def show_ratio(contender: Mapping[str, Any], key: str) -> str:
    """As show_figure, of kaggle_llm over this contender; "" where it did not run."""
    ratio = contender["ratios"].get(key)
    return _show(ratio["median"], ratio["spread"], 2, len(contender["runs"])) if ratio else ""


def _show(median: float, spread: Sequence[float], digits: int, rounds: int) -> str:
    low, high = (f"{value:.{digits}f}" for value in spread)
    return f"{median:.{digits}f}" + (f" ({low}–{high})" if rounds > 1 else "")
