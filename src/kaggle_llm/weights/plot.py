"""Draws parity.png: what each stage changes, and how near activations come to float16's limit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kaggle_llm.base import records

COLOURS = {"passed": "#2a7f62", "undecided": "#c58b00", "failed": "#b3261e"}


def draw_parity(report: Mapping[str, Any], path: Path) -> None:
    """Left: |Δ| of every step; middle: the metric's loss with its interval; right: the largest activation by layer."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 4.5))
    figure.subplots_adjust(left=0.06, right=0.99, bottom=0.22, top=0.84, wspace=0.25)  # a layout that fits takes 1 s
    gaps, losses, layers = figure.subplots(1, 3)
    draw_gaps(gaps, report)
    draw_losses(losses, report)
    draw_layers(layers, report)
    for axes in (gaps, layers):
        axes.minorticks_off()
    figure.suptitle(f"{report['run']}: parity {report['status']}")
    records.write_file(path, lambda target: figure.savefig(target, format="png", dpi=100))


def name_step(step: Mapping[str, Any]) -> str:
    return f"{step['model']}\n{step['before']} →\n{step['after']}"


def draw_gaps(axes: Any, report: Mapping[str, Any]) -> None:
    steps = [step for step in report["steps"] if step["differences"] and step["differences"]["largest"] is not None]
    names = [name_step(step) for step in steps]
    for key, mark in (("largest", "o"), ("mean", "_")):
        values = [max(step["differences"][key], 1e-9) for step in steps]
        axes.scatter(names, values, marker=mark, s=80, c=[COLOURS[step["status"]] for step in steps], label=key)
    axes.axhline(report["settings"]["largest"], color="grey", linestyle=":", label="limit of a merge in float32")
    axes.set(yscale="log", title="difference of log-probabilities", ylabel="|Δ|, nats")
    axes.margins(x=0.4)
    axes.legend(fontsize=8)


def draw_losses(axes: Any, report: Mapping[str, Any]) -> None:
    steps = [step for step in report["steps"] if step["loss"]]
    for position, step in enumerate(steps):
        value, low, high = step["loss"]
        colour = COLOURS[step["status"]]
        axes.errorbar(position, value, [[value - low], [high - value]], fmt="o", capsize=6, color=colour)
    axes.axhline(report["settings"]["loss"], color="grey", linestyle=":", label="limit of the interval's upper end")
    axes.axhline(0, color="black", linewidth=0.5)
    axes.set_xticks(range(len(steps)), [f"{name_step(step)}\n{step['rows']} rows" for step in steps])
    axes.set(title="what the metric loses, paired 95 % interval", ylabel="loss")
    axes.margins(x=0.4)
    axes.legend(fontsize=8)


def draw_layers(axes: Any, report: Mapping[str, Any]) -> None:
    for name, headroom in report["headroom"].items():
        values = [max(value, 1e-3) for value in headroom["layers"].values()]
        axes.plot(values, marker=".", label=name)
        for position, (layer, value) in enumerate(headroom["layers"].items()):
            if layer in headroom["over"]:
                axes.annotate(layer, (position, max(value, 1e-3)), rotation=60, fontsize=7)
        axes.axhline(headroom["limit"], color=COLOURS["failed"], linestyle=":")
    axes.set(yscale="log", title="largest activation by layer; dotted: float16's limit", xlabel="layer in order")
    axes.legend(fontsize=8)
