"""A grid of settings, each point trained as a named run by the experiment's train.py in its own process.

Leaves output/<experiment>--<key>_<value>-…/ for every point of the grid, as train.py does. The same sweep again has the
same runs, and train.py reuses their complete steps.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import TextIOWrapper
from pathlib import Path
from typing import Any

from kaggle_llm.base import paths, records
from kaggle_llm.base.arguments import Arguments, parse_arguments, run_name
from kaggle_llm.base.config import ConfigError
from kaggle_llm.base.tables import print_table

INTERRUPT_GRACE_SECONDS = 5.0  # until an interrupted run is terminated
KEPT_LINES = 50  # last lines of a run's stderr, which hold its error
UNKNOWN_KEY = ": unknown key"  # in the message of config.py


@dataclass(frozen=True)
class Grid:
    fixed: list[str]
    """The key=value overrides that all points share."""
    varied: dict[str, list[str]]
    """The values of each varied key, as text."""
    name: str
    """The beginning of the runs' names (run=name); "" without one."""
    smoke: bool

    @property
    def points(self) -> list[dict[str, str]]:
        return [dict(zip(self.varied, values, strict=True)) for values in itertools.product(*self.varied.values())]


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    run: str
    values: dict[str, str]
    """Varied key → value."""
    metrics: dict[str, Any]
    """Its metrics.json; {} where it failed."""
    seconds: float
    """Duration of its process in this sweep."""
    error: str = ""
    """The error of a failed run."""
    difference: tuple[float, float, float] | None = None
    """CV minus the best run's on the same rows, and its paired 95 % interval; None for the best run and failed ones."""


def sweep(experiment: str, words: Sequence[str], smoke: bool) -> list[Point]:
    """Train every point of the grid, one after the other; the best CV first, what failed last.

    words: key=v1,v2,… is varied, key=value is the same for all, run=name begins the runs' names.
    Raises ConfigError for words that are no grid, and where a run reports an unknown config key.
    """
    train = _find_train(experiment)
    grid = parse_grid(words, smoke)
    points = []
    for number, values in enumerate(grid.points, start=1):
        name = name_point(values, grid.name)
        overrides = [*grid.fixed, *(f"{key}={value}" for key, value in values.items())]
        run = run_name(experiment, Arguments(overrides, name, grid.smoke))
        print(f"[{number}/{len(grid.points)}] {run}", flush=True)
        point = _train_point(train, [*overrides, f"run={name}", *(["--smoke"] if grid.smoke else [])], run, values)
        if UNKNOWN_KEY in point.error:
            raise ConfigError(f"{point.error} (every run would fail like this: only {run} was started)")
        points.append(point)
    return compare_with_best(sort_points(points))


def parse_grid(words: Sequence[str], smoke: bool = False) -> Grid:
    """Raises ConfigError for arguments that train.py refuses, a repeated key or value, and where nothing is varied."""
    arguments = parse_arguments(words)
    values: dict[str, list[str]] = {}
    for word in arguments.overrides:
        key, _, text = word.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9_.]+", key):
            raise ConfigError(f"{word}: {key!r} is no key; section.key=v1,v2 varies one")
        if key in values:
            raise ConfigError(f"{word}: {key} is given twice; all its values stand in one word, {key}=v1,v2")
        values[key] = split_values(text)
        if len(values[key]) > 1 and ("" in values[key] or len(set(values[key])) < len(values[key])):
            raise ConfigError(f"{word}: an empty value, or one given twice; quote or bracket a value with commas")
    varied = {key: texts for key, texts in values.items() if len(texts) > 1}
    if not varied:
        raise ConfigError(f"{' '.join(words) or 'no settings'}: nothing is varied; give key=v1,v2, without spaces")
    fixed = [word for word in arguments.overrides if word.partition("=")[0] not in varied]
    return Grid(fixed, varied, arguments.run, smoke or arguments.smoke)


def split_values(text: str) -> list[str]:
    """Split `text` at its commas outside of quotes, [] and {}. Raises ConfigError where one is not closed."""
    values, depth, quote, before = [""], 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and before in ("", *",[{:'\""):  # elsewhere an apostrophe, as in YAML
            quote = letter
        else:
            depth += (letter in "[{") - (letter in "]}")
        if letter == "," and not depth and not quote:
            values.append("")
        else:
            values[-1] += letter
        before = letter if letter != " " else before
    if depth or quote:
        raise ConfigError(f"{text}: a quote or bracket is not closed, or closed without being opened")
    return [value.strip() for value in values]


def name_point(values: Mapping[str, str], name: str = "") -> str:
    """The value of run= for a point: `lora.alpha_2-lora.r_16`, with `name` in front where there is one."""
    return "-".join([*([name] if name else []), *(f"{key}_{_name_value(value)}" for key, value in values.items())])


def _name_value(value: str) -> str:
    """Short numbers and words as they are; of other values the letters and digits, and a hash.

    The result has no underscore and no hyphen but that of 1e-4, so that every name has one meaning.
    """
    if re.fullmatch(r"[A-Za-z0-9.]{1,40}|[0-9.]{1,20}e-[0-9]{1,3}", value) and not value.endswith("smoke"):
        return value
    plain = re.sub(r"[^A-Za-z0-9]+", ".", value).strip(".")[:40]
    return f"{plain}.{hashlib.sha256(value.encode()).hexdigest()[:8]}"


def sort_points(points: Iterable[Point]) -> list[Point]:
    """The best CV first, in the metric's direction; what failed last."""

    def order(point: Point) -> tuple[bool, float]:
        cv = point.metrics.get("cv", 0.0)
        return bool(point.error), -cv if point.metrics.get("greater_is_better") else cv

    return sorted(points, key=order)


def compare_with_best(points: Sequence[Point]) -> list[Point]:
    """The sorted points with their difference to the first one."""
    if not points or points[0].error:
        return list(points)
    best, *others = points
    return [best, *(p if p.error else replace(p, difference=_difference_to(best, p)) for p in others)]


def _difference_to(best: Point, point: Point) -> tuple[float, float, float] | None:
    from kaggle_llm.experiment.comparison import compare_runs

    try:
        on_all_rows = compare_runs(point.run, best.run)[0]
    except ValueError:  # no rows in common, where folds or data are varied
        return None
    return on_all_rows.difference, on_all_rows.low, on_all_rows.high


def print_sweep(points: Sequence[Point]) -> None:
    """Print the sorted points as a table, and below it the errors of failed runs."""
    failed = [point for point in points if point.error]
    title = f"{len(points)} runs by {points[0].metrics.get('metric', 'no CV')}, {len(failed)} failed"
    columns = ["run", *points[0].values, "CV", "95 %", "before", "− best, paired 95 %", "seconds"]
    print_table(title, columns, [_describe_point(point) for point in points])
    for point in failed:
        print(f"{point.run} failed: {point.error}")


def _describe_point(point: Point) -> list[str]:
    scores = ["failed", "", ""]
    if point.metrics:
        low, high = point.metrics["interval"]
        before = point.metrics["before"]
        scores = [f"{point.metrics['cv']:.4f}", f"{low:.4f}–{high:.4f}", "" if before is None else f"{before:.4f}"]
    difference = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*point.difference) if point.difference else ""
    return [point.run, *point.values.values(), *scores, difference, f"{point.seconds:.0f}"]


def _find_train(experiment: str) -> Path:
    if "--" in experiment:
        raise ValueError(f"{experiment} is a run: sweep its experiment {experiment.split('--')[0]}, with its settings")
    return paths.experiment_folder(experiment) / "train.py"


def _train_point(train: Path, words: Sequence[str], run: str, values: dict[str, str]) -> Point:
    start = time.monotonic()
    error = _run_train(train, words)
    metrics = {} if error else records.read_json(paths.run_folder(run) / "metrics.json")
    return Point(run, values, metrics, time.monotonic() - start, error)


def _run_train(train: Path, words: Sequence[str]) -> str:
    """Run train.py and show its output; returns its error, "" after success."""
    command = [sys.executable, str(train), *words]
    with subprocess.Popen(command, cwd=paths.root(), stderr=subprocess.PIPE) as process:
        try:
            lines = _show_stderr(process)
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
    return read_run_error(lines, code) if code else ""


def _show_stderr(process: subprocess.Popen[bytes]) -> list[str]:
    """Copy the process's stderr to ours as it comes, progress bars too; returns its last lines."""
    assert process.stderr
    last: deque[str] = deque(maxlen=KEPT_LINES)
    for line in TextIOWrapper(process.stderr, encoding="utf-8", errors="replace", newline=""):
        sys.stderr.write(line)
        sys.stderr.flush()
        last.append(line.strip())
    return list(last)


def read_run_error(lines: Sequence[str], code: int) -> str:
    """The lines from the last `error: ` on, as errors.py prints it; else exit code and last line."""
    filled = [line for line in lines if line]
    starts = [number for number, line in enumerate(filled) if line.startswith("error: ")]
    if starts:
        return " ".join(filled[starts[-1] :]).removeprefix("error: ")[:300]
    return f"exit code {code}: {filled[-1] if filled else 'it printed nothing'}"[:300]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Wait for a run to end after Ctrl-C, which a terminal sends to it too; then terminate it."""
    try:
        process.wait(INTERRUPT_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
