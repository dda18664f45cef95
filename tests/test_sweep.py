"""A sweep: names, the grid, what is reused, what is reported, what stops it."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import forks
import pytest
from workspace import TIMEOUT, Workspace, copy_workspace, read_answers

from kaggle_llm.base.arguments import parse_arguments
from kaggle_llm.base.config import ConfigError
from kaggle_llm.experiment.sweep import (
    Point,
    compare_with_best,
    name_point,
    parse_grid,
    print_sweep,
    read_run_error,
    sort_points,
    split_values,
    sweep,
)

INTERPRETER = sys.executable  # a process of its own, for signals
EXPERIMENT = "exp001_retrieve"
# k must not be more than depth, 100: that point fails, and it is the first one.
WORDS = ("retrieval.k=200,1,25", "retrieval.smoothing=10", "folds.rows=12")
RUNS = {k: f"{EXPERIMENT}--retrieval.k_{k}-smoke" for k in ("200", "1", "25")}


def point(run: str, cv: float | None, greater: bool = True) -> Point:
    metrics = {"metric": "m", "cv": cv, "interval": [cv - 0.1, cv + 0.1], "before": None} if cv is not None else {}
    return Point(
        run, {"a": run}, {**metrics, "greater_is_better": greater} if metrics else {}, 1.0, "" if metrics else "x"
    )


@pytest.fixture(scope="module")
def workspace(bare: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """Of its own: a sweep leaves many runs."""
    return copy_workspace(bare, tmp_path_factory.mktemp("sweep"))


def call_sweep(words: tuple[str, ...], python: str = "") -> list[str]:
    """A process of its own, which a signal reaches; python: what starts its runs."""
    code = (
        f"import sys; sys.executable = {python or forks.python()!r}; "
        "from kaggle_llm.base.errors import report_errors; report_errors(False); "
        "from kaggle_llm.experiment.sweep import print_sweep, sweep; "
        f"points = sweep({EXPERIMENT!r}, {words!r}, True); print_sweep(points); "
        "sys.exit(any(point.error for point in points))"
    )
    return [INTERPRETER, "-c", code]


@pytest.fixture(scope="module")
def first(workspace: Workspace) -> subprocess.CompletedProcess[str]:
    return workspace.call(*call_sweep(WORDS))


def table_rows(said: str) -> list[str]:
    """The run of each row of the table, which comes last."""
    return re.findall(rf"^ +({EXPERIMENT}--\S+)", said, re.M)


def test_a_grid_is_all_combinations_in_the_order_given() -> None:
    grid = parse_grid(["lora.r=16", "lora.alpha=2,4", "seed=0,1", "folds.validate=[0,1]", "run=wide"])
    assert grid.fixed == ["lora.r=16", "folds.validate=[0,1]"] and grid.name == "wide" and not grid.smoke
    pairs = [("2", "0"), ("2", "1"), ("4", "0"), ("4", "1")]
    assert grid.points == [{"lora.alpha": alpha, "seed": seed} for alpha, seed in pairs]
    assert parse_grid(["seed=0,1", "--smoke"]).smoke and parse_grid(["seed=0,1"], smoke=True).smoke


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("2,4,8", ["2", "4", "8"]),
        ("[0,1]", ["[0,1]"]),
        ("[0,1],[2],null", ["[0,1]", "[2]", "null"]),
        ("{a: 1, b: [2,3]},{}", ["{a: 1, b: [2,3]}", "{}"]),
        ("'a,b',\"c,'d\"", ["'a,b'", '"c,\'d"']),
        ("'it''s, so',b", ["'it''s, so'", "b"]),
        ("[' Yes', \" No, never\"],x", ["[' Yes', \" No, never\"]", "x"]),
        ("don't,can't", ["don't", "can't"]),
        ("'[',']'", ["'['", "']'"]),
        ("1, 2", ["1", "2"]),
        ("", [""]),
    ],
)
def test_commas_inside_brackets_and_quotes_do_not_split(text: str, values: list[str]) -> None:
    assert split_values(text) == values


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing is varied"),
        (["lora.r=16"], "nothing is varied"),
        (["lora.r=2,2"], "given twice"),
        (["lora.r=2,"], "an empty value"),
        (["lora.r=2,4", "lora.r=8"], "lora.r is given twice"),
        (["lora.r=[2,4"], "not closed"),
        (["lora.r='2,4"], "not closed"),
        (["lora r=2,4"], "'lora r' is no key"),
        (["lora.r", "seed=1,2"], "lora.r: arguments are key=value"),
        (["--fast", "seed=1,2"], "--fast: arguments are key=value"),
        (["run=a,b", "seed=1,2"], "run = 'a,b'"),
    ],
)
def test_words_that_are_no_grid_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        parse_grid(words)


def test_a_run_of_an_experiment_is_no_experiment() -> None:
    with pytest.raises(ValueError, match="sweep its experiment exp001_retrieve"):
        sweep(f"{EXPERIMENT}--a", ["seed=1,2"], True)


def test_names_say_what_is_varied() -> None:
    assert name_point({"lora.alpha": "2", "lora.r": "16"}) == "lora.alpha_2-lora.r_16"
    assert name_point({"training.learning_rate": "1.5e-4"}, "wide") == "wide-training.learning_rate_1.5e-4"
    assert name_point({"lora.targets": "all-linear"}).startswith("lora.targets_all.linear.")


def test_names_are_legal_and_distinct_for_distinct_points() -> None:
    letters = ["", "a", "1", "-", "_", ".", ",", " ", "'", "e-1", "smoke", "[", "/", "ü", "A"]
    values = ["".join(parts) for parts in itertools.product(letters, repeat=3)]
    values = [*dict.fromkeys(values), "x" * 200 + "1", "x" * 200 + "2", "1-b_2"]
    points = [{"a": value} for value in values]
    points += [{"a": value, "b": "2"} for value in values] + [{"a_a": value} for value in values]
    names = [name_point(one) for one in points]
    assert len(set(names)) == len(points) > 6000
    assert all(parse_arguments([f"run={name}"]).run == name and len(name) < 120 for name in names)


def test_the_best_comes_first_in_the_direction_of_the_metric_and_failures_last() -> None:
    points = [point("failed", None), point("low", 0.1), point("high", 0.3), point("middle", 0.2)]
    assert [one.run for one in sort_points(points)] == ["high", "middle", "low", "failed"]
    points = [point("low", 0.1, False), point("failed", None, False), point("high", 0.3, False)]
    assert [one.run for one in sort_points(points)] == ["low", "high", "failed"]


def test_a_sweep_in_which_all_failed_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    points = [point("one", None), point("two", None)]
    assert compare_with_best(points) == points
    print_sweep(points)
    said = capsys.readouterr().out
    assert "2 runs by no CV, 2 failed" in said and "one failed: x\ntwo failed: x\n" in said


def test_an_error_is_found_among_what_a_run_says() -> None:
    config = ["warning", "error: 2 problem(s)", "", "- a: unknown key", "- b (ConfigError; --debug shows where)"]
    assert read_run_error(config, 1) == "2 problem(s) - a: unknown key - b (ConfigError; --debug shows where)"
    assert read_run_error(["", "50%"], -9) == "exit code -9: 50%"
    assert read_run_error([], 3) == "exit code 3: it printed nothing"


def test_a_point_that_fails_is_reported_and_the_others_are_made(
    first: subprocess.CompletedProcess[str], workspace: Workspace
) -> None:
    assert first.returncode == 1
    assert "k = 200, depth = 100" in first.stderr, "what a run says is shown"
    assert f"{RUNS['200']} failed: config.yaml: 1 problem(s) - retrieval: k = 200, depth = 100" in first.stdout
    cv = {k: json.loads((workspace.output / RUNS[k] / "metrics.json").read_text())["cv"] for k in ("1", "25")}
    assert cv["25"] > cv["1"], "what one place holds, and more"
    assert table_rows(first.stdout) == [RUNS["25"], RUNS["1"], RUNS["200"]]
    assert "3 runs by map@25, 1 failed" in first.stdout and f"{cv['25']:.4f}" in first.stdout
    config = (workspace.output / RUNS["1"] / "config.yaml").read_text()
    assert "k: 1\n" in config and "smoothing: 10.0" in config


def test_the_difference_to_the_best_is_that_of_compare(
    first: subprocess.CompletedProcess[str], workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kaggle_llm.experiment.comparison import compare_runs

    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(workspace.root))
    whole = compare_runs(RUNS["1"], RUNS["25"])[0]
    assert whole.difference < 0
    assert f"{whole.difference:+.4f} [{whole.low:+.4f}, {whole.high:+.4f}]" in re.sub(r"\s+", " ", first.stdout)


def test_the_same_sweep_again_with_one_more_point_asks_nothing_and_gives_the_same(
    first: subprocess.CompletedProcess[str], workspace: Workspace
) -> None:
    files = [workspace.output / RUNS[k] / name for k in ("1", "25") for name in ("metrics.json", "oof.parquet")]
    before, answers = [file.read_bytes() for file in files], read_answers(workspace)
    again = workspace.call(*call_sweep((f"{WORDS[0]},4", *WORDS[1:])))
    assert answers and read_answers(workspace) == answers
    assert [file.read_bytes() for file in files] == before
    rows = table_rows(again.stdout)
    assert f"{EXPERIMENT}--retrieval.k_4-smoke" in rows, "a point that differs behind the model shares its answers"
    assert [row for row in rows if "k_4" not in row] == table_rows(first.stdout)


def test_a_key_that_the_config_does_not_know_stops_the_sweep_at_the_first_run(workspace: Workspace) -> None:
    done = workspace.call(*call_sweep(("retrieval.smothing=1,2,3",)))
    assert done.returncode == 1 and "did you mean 'smoothing'?" in done.stderr and "Traceback" not in done.stderr
    assert "every run would fail like this" in done.stderr
    assert "[1/3]" in done.stdout and "[2/3]" not in done.stdout


@pytest.mark.usefixtures("fast_python")
def test_folds_without_common_rows_are_not_compared(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(workspace.root))
    points = sweep(EXPERIMENT, ["folds.validate=[0],[1]", "run=folds"], True)
    assert [one.error for one in points] == ["", ""] and points[1].difference is None
    assert all(re.match(rf"{EXPERIMENT}--folds-folds\.validate_[01]\.\w{{8}}-smoke$", one.run) for one in points)


ENDLESS = """
import os, runpy, sys, time
from kaggle_llm.retrieval.retriever import Retriever
def search(*_):
    print("predicting", flush=True)
    time.sleep(600)
Retriever.search = search
sys.argv = sys.argv[1:]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def write_endless(folder: Path) -> str:
    """A python in which no prediction comes to its end."""
    (folder / "endless.py").write_text(ENDLESS)
    script = folder / "endless-python"
    script.write_text(f'#!/bin/sh\nexec "{forks.python()}" "{folder / "endless.py"}" "$@"\n')
    script.chmod(0o755)
    return str(script)


def interrupt(workspace: Workspace, words: tuple[str, ...], send: Callable[[int, int], None]) -> str:
    """What a sweep says that is sent SIGINT while its first run predicts; no process of it is left."""
    log = workspace.root / "interrupted.txt"
    environment = {**os.environ, "KAGGLE_LLM_ROOT": str(workspace.root)}
    with log.open("w") as out:
        process = subprocess.Popen(
            call_sweep(words, write_endless(workspace.root)),
            cwd=workspace.root,
            env=environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    deadline = time.monotonic() + TIMEOUT
    while "predicting" not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    send(process.pid, signal.SIGINT)
    assert process.wait(60) != 0
    while is_group(process.pid):  # one that has just ended may still be there
        assert time.monotonic() < deadline, "a process of the sweep is left"
        time.sleep(0.05)
    return log.read_text()


def is_group(number: int) -> bool:
    try:
        os.killpg(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_ctrl_c_stops_the_sweep_and_the_same_command_goes_on(
    first: subprocess.CompletedProcess[str], workspace: Workspace
) -> None:
    words = ("retrieval.k=2,25", *WORDS[1:])  # the second point is complete
    said = interrupt(workspace, words, os.killpg)  # as a terminal does
    assert "interrupted: the same command goes on" in said and "Traceback" not in said and "[2/2]" not in said
    stopped, answers = workspace.output / f"{EXPERIMENT}--retrieval.k_2-smoke", read_answers(workspace)
    assert not (stopped / "record.json").exists()
    again = workspace.call(*call_sweep(words))
    assert again.returncode == 0 and (stopped / "record.json").is_file()
    assert read_answers(workspace) == answers, "what was known before is not asked again"


def test_a_signal_to_the_sweep_alone_ends_its_run_too(workspace: Workspace) -> None:
    said = interrupt(workspace, ("retrieval.k=3,4",), os.kill)
    assert "Traceback" not in said and "[2/2]" not in said
