"""All runs, a table for each competition: CV and interval, before, LB, parent, date, idea. Reads JSON only."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from itertools import groupby
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.base.folders import read_idea
from kaggle_llm.base.tables import print_table
from kaggle_llm.weights.ship import describe_cv


def read_board() -> list[dict[str, Any]]:
    """One entry for each run with a metrics.json, by competition and metric, the best CV first."""
    entries = [read_entry(path.parent) for path in (paths.root() / "output").glob("*/metrics.json")]
    sign = {True: -1, False: 1}
    return sorted(
        entries, key=lambda run: (run["competition"], run["metric"], sign[run["greater_is_better"]] * run["cv"])
    )


def read_entry(folder: Path) -> dict[str, Any]:
    metrics, config = records.read_json(folder / "metrics.json"), read_config(folder)
    scores = records.read_optional(folder / "submissions.json", [])
    experiment = folder.name.split("--")[0]
    variant_of = experiment if experiment != folder.name else ""
    return {
        **metrics,
        "competition": config.get("competition", {}).get("name", ""),
        "complete": bool(config),
        "lb": scores[-1].get("public_score") if scores else None,
        "parent": records.read_optional(folder / "parent.json", {}).get("parent", variant_of),
        "date": date.fromtimestamp((folder / "metrics.json").stat().st_mtime).isoformat(),
        "ships": describe_shipped(config),
        "idea": read_idea(paths.root() / "exp" / experiment),
    }


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a complete run; {} of another."""
    record = folder / "record.json"
    return records.read_json(record)["settings"]["config"] if record.is_file() else {}


def describe_shipped(config: Mapping[str, Any]) -> str:
    """What a complete run ships ("" for fold0), with a note where CV is not the score of exactly that."""
    ship, note = config.get("ship", "fold0"), describe_cv(config)
    return f"{ship} ({note})" if note else "" if ship == "fold0" else ship


def print_board(entries: list[dict[str, Any]]) -> None:
    columns = ("run", "metric", "CV", "95 %", "before", "LB", "parent", "ships", "date", "idea")
    for competition, runs in groupby(entries, key=lambda entry: entry["competition"]):
        rows = [_describe_run(entry) for entry in runs]
        print_table(f"runs of {competition}" if competition else "runs that are not complete", columns, rows)


def _describe_run(entry: Mapping[str, Any]) -> list[str]:
    low, high = entry["interval"]
    return [
        entry["run"] if entry["complete"] else f"{entry['run']} (being made again)",
        entry["metric"],
        f"{entry['cv']:.4f}",
        f"{low:.4f}–{high:.4f}",
        "" if entry["before"] is None else f"{entry['before']:.4f}",
        "" if entry["lb"] is None else str(entry["lb"]),
        entry["parent"],
        entry["ships"],
        entry["date"],
        entry["idea"],
    ]
