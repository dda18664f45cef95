"""A grid of settings as named runs, each the experiment's own train.py in a process of its own.

Leaves output/<experiment>--<key>_<value>-…/ for every point of the grid, as train.py does. The same sweep again goes
through the same runs, and train.py reuses what is complete in them.
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

PATIENCE = 5.0  # seconds that an interrupted run gets to end by itself
KEPT_LINES = 50  # of what a run says on stderr: its error is among the last
UNKNOWN_KEY = ": unknown key"  # as config.py reports it


@dataclass(frozen=True)
class Grid:
    fixed: list[str]
    """key=value words that all points share."""
    varied: dict[str, list[str]]
    """The values of each varied key, as text."""
    name: str
    """What the names of the runs begin with (run=name); "" for nothing."""
    smoke: bool

    @property
    def points(self) -> list[dict[str, str]]:
        return [dict(zip(self.varied, values, strict=True)) for values in itertools.product(*self.varied.values())]


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    run: str
    values: dict[str, str]
    """Of the varied keys."""
    metrics: dict[str, Any]
    """Its metrics.json; {} where it failed."""
    seconds: float
    """That its process took in this sweep."""
    error: str = ""
    """What a failed run said last."""
    difference: tuple[float, float, float] | None = None
    """Its CV minus the best one's on the same rows, with the paired 95 % interval; None where there is none."""


def sweep(experiment: str, words: Sequence[str], smoke: bool) -> list[Point]:
    """Train every point of the grid, one after the other; the best CV first, what failed last.

    words: key=v1,v2,… is varied, key=value is the same for all, run=name is what the names of the runs begin with.
    Raises ConfigError for words that are no grid, and where the first run says that the config has no such key.
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
            raise ConfigError(f"{point.error}; every run would say so, {run} was the only one that was started")
        points.append(point)
    return compare_with_best(sort_points(points))


def parse_grid(words: Sequence[str], smoke: bool = False) -> Grid:
    """Raises ConfigError for what train.py would refuse, a key or value given twice, and where nothing is varied."""
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
    varied = {key: found for key, found in values.items() if len(found) > 1}
    if not varied:
        raise ConfigError(f"{' '.join(words) or 'no settings'}: nothing is varied; give key=v1,v2, without spaces")
    fixed = [word for word in arguments.overrides if word.partition("=")[0] not in varied]
    return Grid(fixed, varied, arguments.run, smoke or arguments.smoke)


def split_values(text: str) -> list[str]:
    """`text` at its commas, but for those inside quotes, [] and {}. Raises ConfigError where one is not closed."""
    values, depth, quote, before = [""], 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"" and before in ("", *",[{:'\""):  # elsewhere it is an apostrophe, as in YAML
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
    """What stands behind run=: `lora.alpha_2-lora.r_16`, behind `name` where there is one."""
    return "-".join([*([name] if name else []), *(f"{key}_{_name_value(value)}" for key, value in values.items())])


def _name_value(value: str) -> str:
    """Short numbers and words as they are; of the rest the letters and digits, made distinct by a hash.

    No value has an underscore and no other hyphen than 1e-4's, so that a name can be read in one way only.
    """
    if re.fullmatch(r"[A-Za-z0-9.]{1,40}|[0-9.]{1,20}e-[0-9]{1,3}", value) and not value.endswith("smoke"):
        return value
    plain = re.sub(r"[^A-Za-z0-9]+", ".", value).strip(".")[:40]
    return f"{plain}.{hashlib.sha256(value.encode()).hexdigest()[:8]}"


def sort_points(points: Iterable[Point]) -> list[Point]:
    """The best CV first, in the metric's direction; what failed last."""

    def place(point: Point) -> tuple[bool, float]:
        cv = point.metrics.get("cv", 0.0)
        return bool(point.error), -cv if point.metrics.get("greater_is_better") else cv

    return sorted(points, key=place)


def compare_with_best(points: Sequence[Point]) -> list[Point]:
    """The points, sorted before, with their difference to the first."""
    if not points or points[0].error:
        return list(points)
    others = [point if point.error else replace(point, difference=_compare(point, points[0])) for point in points[1:]]
    return [points[0], *others]


def _compare(point: Point, best: Point) -> tuple[float, float, float] | None:
    from kaggle_llm.experiment.comparison import compare_runs

    try:
        whole = compare_runs(point.run, best.run)[0]
    except ValueError:  # folds or data are what is varied: no rows in common
        return None
    return whole.difference, whole.low, whole.high


def print_sweep(points: Sequence[Point]) -> None:
    """points: sorted. The errors of failed runs stand below the table, where a long line does not squeeze it."""
    failed = [point for point in points if point.error]
    title = f"{len(points)} runs by {points[0].metrics.get('metric', 'no CV')}, {len(failed)} failed"
    columns = ["run", *points[0].values, "CV", "95 %", "before", "− best, paired 95 %", "seconds"]
    print_table(title, columns, [_describe(point) for point in points])
    for point in failed:
        print(f"{point.run} failed: {point.error}")


def _describe(point: Point) -> list[str]:
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
    error = _call(train, words)
    metrics = {} if error else records.read_json(paths.run_folder(run) / "metrics.json")
    return Point(run, values, metrics, time.monotonic() - start, error)


def _call(train: Path, words: Sequence[str]) -> str:
    """Run train.py, its output shown; "" after success, else its error."""
    command = [sys.executable, str(train), *words]
    with subprocess.Popen(command, cwd=paths.root(), stderr=subprocess.PIPE) as process:
        try:
            said = _show(process)
            code = process.wait()
        except BaseException:
            _stop(process)
            raise
    return find_error(said, code) if code else ""


def _show(process: subprocess.Popen[bytes]) -> list[str]:
    """What a process says on stderr, shown as it comes, progress bars too; its last lines."""
    assert process.stderr
    last: deque[str] = deque(maxlen=KEPT_LINES)
    for line in TextIOWrapper(process.stderr, encoding="utf-8", errors="replace", newline=""):
        sys.stderr.write(line)
        sys.stderr.flush()
        last.append(line.strip())
    return list(last)


def find_error(lines: Sequence[str], code: int) -> str:
    """From the last line that begins with `error: ` on, as errors.py writes it; else exit code and last line."""
    said = [line for line in lines if line]
    starts = [number for number, line in enumerate(said) if line.startswith("error: ")]
    if starts:
        return " ".join(said[starts[-1] :]).removeprefix("error: ")[:300]
    return f"exit code {code}: {said[-1] if said else 'it said nothing'}"[:300]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """A terminal's Ctrl-C reaches the run too; where only this process was told, it is ended from here."""
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.terminate()
