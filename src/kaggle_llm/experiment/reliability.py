"""Does what is said with 70 % come true in 70 % of the cases? Leaves reliability.json and reliability.png."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kaggle_llm.base import records

if TYPE_CHECKING:
    import polars as pl

BINS = 10


@dataclass(frozen=True)
class Bin:
    """Labels whose probability lies in one tenth."""

    said: float
    """Mean probability."""
    true: float
    """Share of them that was right; votes count by their share."""
    labels: int


@dataclass(frozen=True)
class Reliability:
    bins: tuple[Bin, ...]
    error: float
    """Expected calibration error: Σ labels/all · |said − true|."""


def measure_reliability(ranking: pl.DataFrame, truth: pl.DataFrame) -> Reliability:
    """Of every label of every row. ranking: log-probabilities, normalised; truth: with shares, or one right item a row.

    Source: Naeini, Cooper, Hauskrecht, Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI 2015; over
    all labels as in Nixon et al., Measuring Calibration in Deep Learning, 2019.
    """
    import numpy as np

    known = {i: dict(zip(*own, strict=True)) for i, *own in with_shares(truth).iter_rows()}
    rows = ranking.select("id", "items", "scores").iter_rows()
    pairs = [(score, known[i].get(item, 0.0)) for i, *own in rows for item, score in zip(*own, strict=True)]
    said, true = np.exp([score for score, _ in pairs]), np.array([share for _, share in pairs])
    place = np.minimum((said * BINS).astype(int), BINS - 1)
    chosen = [place == n for n in range(BINS) if (place == n).any()]
    bins = tuple(Bin(float(said[one].mean()), float(true[one].mean()), int(one.sum())) for one in chosen)
    return Reliability(bins, sum(one.labels * abs(one.said - one.true) for one in bins) / len(pairs))


def with_shares(truth: pl.DataFrame) -> pl.DataFrame:
    """id, items, shares."""
    import polars as pl

    if "shares" in truth.columns:
        return truth.select("id", "items", "shares")
    return truth.select("id", "items", shares=pl.col("items").list.eval(1.0 / pl.element().len()))


def write_reliability(found: Mapping[str, pl.DataFrame], truth: pl.DataFrame, folder: Path, title: str) -> None:
    """Measure, write and draw RANKINGs of log-probabilities, normalised, by their names."""
    measured = {name: measure_reliability(ranking, truth) for name, ranking in found.items()}
    records.write_json(folder / "reliability.json", {name: asdict(one) for name, one in measured.items()})
    draw_reliability(measured, folder / "reliability.png")
    for name, one in measured.items():
        print(f"{title}: expected calibration error {one.error:.3f} {name}", flush=True)


def draw_reliability(measured: Mapping[str, Reliability], path: Path) -> None:
    """What was said against what came true; a dot's area is its number of labels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="honest")
    for name, one in measured.items():
        said, true = [each.said for each in one.bins], [each.true for each in one.bins]
        (line,) = axes.plot(said, true, label=f"{name}, error {one.error:.3f}")
        most = max(each.labels for each in one.bins)
        sizes = [4 + 200 * each.labels / most for each in one.bins]
        axes.scatter(said, true, sizes, color=line.get_color(), alpha=0.5)
    axes.set(
        xlabel="probability that was said", ylabel="share that was right", xlim=(0, 1), ylim=(0, 1), aspect="equal"
    )
    axes.grid(color="0.9")
    axes.legend(loc="upper left")
    records.write_file(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))
