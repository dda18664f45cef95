"""Calibration: is a label with probability 70 % right in 70 % of the cases? Leaves reliability.json and .png."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.base import records
from kaggle_llm.competition.rankings import with_shares

if TYPE_CHECKING:
    import polars as pl

BINS = 10


@dataclass(frozen=True)
class Bin:
    """The labels whose predicted probability lies in one tenth of 0 … 1."""

    said: float
    """Mean predicted probability."""
    true: float
    """Share of them that is right; votes count by their share."""
    labels: int
    """Number of labels."""


@dataclass(frozen=True)
class Reliability:
    bins: tuple[Bin, ...]
    error: float
    """Expected calibration error: Σ labels/all · |predicted − true|."""


def measure_reliability(ranking: pl.DataFrame, truth: pl.DataFrame) -> Reliability:
    """Reliability over all labels of all rows. ranking: normalised log-probabilities; truth: `shares` or right items.

    Source: Naeini, Cooper, Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015; over
    all labels as in Nixon et al., Measuring Calibration in Deep Learning, 2019.
    """
    import numpy as np

    shares = {row: dict(zip(*own, strict=True)) for row, *own in with_shares(truth).iter_rows()}
    rows = ranking.select("id", "items", "scores").iter_rows()
    pairs = [(score, shares[row].get(item, 0.0)) for row, *own in rows for item, score in zip(*own, strict=True)]
    predicted, true = np.exp([score for score, _ in pairs]), np.array([share for _, share in pairs])
    number = np.minimum((predicted * BINS).astype(int), BINS - 1)
    masks = [number == n for n in range(BINS) if (number == n).any()]
    bins = tuple(Bin(float(predicted[mask].mean()), float(true[mask].mean()), int(mask.sum())) for mask in masks)
    return Reliability(bins, sum(bin.labels * abs(bin.said - bin.true) for bin in bins) / len(pairs))


def write_reliability(rankings: Mapping[str, pl.DataFrame], truth: pl.DataFrame, folder: Path, run: str) -> None:
    """Measure, write and draw the reliability. rankings: name → RANKING of normalised log-probabilities."""
    measured = {name: measure_reliability(ranking, truth) for name, ranking in rankings.items()}
    records.write_json(folder / "reliability.json", {name: asdict(result) for name, result in measured.items()})
    draw_reliability(measured, folder / "reliability.png")
    for name, result in measured.items():
        print(f"{run}: expected calibration error {result.error:.3f} {name}", flush=True)


def draw_reliability(measured: Mapping[str, Reliability], path: Path) -> None:
    """Predicted probability against the share that is right; a dot's area is its number of labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="calibrated")
    for name, result in measured.items():
        predicted, true = [bin.said for bin in result.bins], [bin.true for bin in result.bins]
        (line,) = axes.plot(predicted, true, label=f"{name}, error {result.error:.3f}")
        most = max(bin.labels for bin in result.bins)
        sizes = [4 + 200 * bin.labels / most for bin in result.bins]
        axes.scatter(predicted, true, sizes, color=line.get_color(), alpha=0.5)
    axes.set(xlabel="predicted probability", ylabel="share that is right", xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.grid(color="0.9")
    axes.legend(loc="upper left")
    records.write_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
