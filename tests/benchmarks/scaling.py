"""Time and memory against rows: python tests/benchmarks/scaling.py --json PATH [--rows 100 300 1000 3000 10000]

What ships, on pico models, so that all that is not the model shows: a repository of its own with the demo competition,
`train.py --smoke` of exp002_rerank, `kaggle-llm bundle`, and for each size `kaggle-llm rehearse --rows`. Seconds are
those of the prediction's own process (prediction.json: from its start to the submission; imports and the notebook are
outside), memory is the peak of the rehearsal's processes (report.json). Start-up is the seconds of a prediction
of one row. A rehearsal that is not ok is an error.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from machine import describe_machine

from kaggle_llm.base import records
from kaggle_llm.base.tables import print_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from pico import save_encoder, save_llama
from workspace import Workspace, make_workspace, succeed

ROWS = (100, 300, 1000, 3000, 10_000)
EXPERIMENT = "exp002_rerank"
RUN = f"{EXPERIMENT}--smoke"
TIMEOUT = 3600  # seconds of one rehearsal
Sizes = list[dict[str, Any]]


def prepare_bundle(folder: Path) -> Workspace:
    """A repository in `folder` in which the smoke run of exp002_rerank is bundled."""
    (folder / "models").mkdir()
    llm, encoder = save_llama(folder / "models" / "pico-llm"), save_encoder(folder / "models" / "pico-encoder")
    made = make_workspace(folder / "repository", llm, encoder, hidden_rows=60)
    workspace = Workspace(made.root, TIMEOUT)
    succeed(workspace.train(EXPERIMENT, "--smoke"))
    succeed(workspace.cli("bundle", RUN))
    return workspace


def measure(workspace: Workspace, rows: int) -> dict[str, Any]:
    """Seconds and peak memory of one rehearsal of so many rows."""
    load = os.getloadavg()[0]
    succeed(workspace.cli("rehearse", RUN, "--rows", str(rows)))
    latest = workspace.output / "rehearsals" / RUN / "latest"
    report, done = (records.read_json(latest / name) for name in ("report.json", "prediction.json"))
    if done["rows"] != rows:
        raise ValueError(f"{rows} rows were asked for, {done['rows']} were predicted")
    return {
        "rows": rows,
        "seconds": done["seconds"],
        "notebook_seconds": report["seconds"],
        "peak_rss_mb": report["peak_rss_mb"],
        "load_before": load,
    }


def summarise(start: float, sizes: Sizes) -> dict[str, Any]:
    """Figures of sizes in ascending order; start: seconds of start-up, which the exponent leaves out.

    A step is what 1000 further rows take between two neighbouring sizes. The exponent is the slope of log(seconds −
    start) over log(rows) by least squares, over sizes that take longer than the start: 1 is linear.
    """
    import numpy as np

    steps = [
        {
            "from": one["rows"],
            "to": other["rows"],
            "seconds_per_1000_rows": 1000 * (other["seconds"] - one["seconds"]) / (other["rows"] - one["rows"]),
            "mb_per_1000_rows": 1000 * (other["peak_rss_mb"] - one["peak_rss_mb"]) / (other["rows"] - one["rows"]),
        }
        for one, other in pairwise(sizes)
    ]
    grown = [(one["rows"], one["seconds"] - start) for one in sizes if one["seconds"] > start]
    slope = np.polyfit(*np.log(np.array(grown)).T, 1)[0] if len(grown) > 1 else None
    first, last = sizes[0], sizes[-1]
    return {
        "start_seconds": start,
        "exponent": None if slope is None else float(slope),
        "seconds_per_1000_rows": 1000 * (last["seconds"] - first["seconds"]) / (last["rows"] - first["rows"]),
        "peak_rss_mb": last["peak_rss_mb"],
        "peak_rss_mb_smallest": first["peak_rss_mb"],
        "mb_per_1000_rows": 1000 * (last["peak_rss_mb"] - first["peak_rss_mb"]) / (last["rows"] - first["rows"]),
        "steps": steps,
    }


def run_benchmark(rows: Sequence[int]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        workspace = prepare_bundle(Path(folder))
        start = measure(workspace, 1)["seconds"]
        sizes = []
        for number in rows:
            print(f"{number} rows … (load average {os.getloadavg()[0]:.1f})", flush=True)
            sizes.append(measure(workspace, number))
    return {
        "benchmark": "scaling",
        "machine": describe_machine(),
        "versions": records.package_versions(),
        "contenders": [{"name": "kaggle_llm", "figures": summarise(start, sizes), "sizes": sizes}],
    }


def print_benchmark(report: Mapping[str, Any]) -> None:
    (contender,) = report["contenders"]
    figures = contender["figures"]
    steps: list[Mapping[str, Any]] = [{}, *figures["steps"]]
    rows = []
    for size, step in zip(contender["sizes"], steps, strict=True):
        more = [f"{step[key]:.1f}" if step else "" for key in ("seconds_per_1000_rows", "mb_per_1000_rows")]
        rows.append([str(size["rows"]), f"{size['seconds']:.1f}", more[0], str(size["peak_rss_mb"]), more[1]])
    exponent = "none" if figures["exponent"] is None else f"{figures['exponent']:.3f}"
    title = f"kaggle_llm: {figures['start_seconds']:.1f} s to start, then seconds ~ rows^{exponent}"
    print_table(title, ("rows", "seconds", "s / 1000 more", "peak MB", "MB / 1000 more"), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="PATH", required=True, help="where the figures go")
    parser.add_argument("--rows", type=int, nargs="+", default=list(ROWS), help="sizes of the test set, ascending")
    arguments = parser.parse_args()
    rows = arguments.rows
    if len(rows) < 2 or rows != sorted(set(rows)) or rows[0] < 1:
        parser.error(f"--rows {rows}: two or more different numbers in ascending order are needed")
    report = run_benchmark(rows)
    records.write_json(arguments.json, report)
    print_benchmark(report)


if __name__ == "__main__":
    main()
