"""`make test-gpu`: what is missing is said, a failed check does not hide the next, and on a CPU it runs to its end."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from workspace import ROOT

SCRIPT = ROOT / "tests" / "gpu" / "run.py"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [*sys.path])
    for folder in (SCRIPT.parents[1], SCRIPT.parent):
        monkeypatch.syspath_prepend(folder)
    import run

    return run


def test_a_check_is_ok_fails_or_is_skipped_with_the_reason(checks: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(folder: Path) -> dict[str, float]:
        assert folder.is_dir()
        raise ValueError("0.3 is too much")

    listed = [
        checks.Check("fine", lambda folder: {"figure": 1.5}, ()),
        checks.Check("bad", fail, ()),
        checks.Check("lacks a package", fail, ("no_such_package",)),
        checks.Check("lacks a card", fail, (), card=True),
    ]
    outcomes = [checks.run_check(check, has_card=False) for check in listed]
    assert [outcome.status for outcome in outcomes] == ["ok", "failed", "skipped", "skipped"]
    assert [outcome.why for outcome in outcomes[1:]] == [
        "ValueError: 0.3 is too much",
        "no_such_package is not installed",
        "there is no GPU",
    ]
    checks.print_outcomes(outcomes)
    assert "figure 1.5" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a card's shapes take minutes: make test-gpu")
def test_the_throughput_checks_run_on_a_tiny_shape(checks: Any, tmp_path: Path) -> None:
    import speed

    scored, trained = speed.scoring(tmp_path / "scoring"), speed.training(tmp_path / "training")
    assert set(scored) == {
        "matrix_tflops",
        "0.5B prompts_per_second",
        "0.5B times padded batches",
        "0.5B share of the matrix rate",
    }
    assert {"0.5B tokens_per_second", "0.5B checkpointing share of the matrix rate"} <= set(trained)
    assert all(float(figure) > 0 for figure in (*scored.values(), *trained.values()))


def test_missed_aims_are_named_on_a_card(checks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import speed

    figures = {"7B share of the matrix rate": 0.4, "0.5B share of the matrix rate": 0.3, "7B times padded batches": 3.5}
    assert speed.judge(figures) == {}
    monkeypatch.setattr(speed, "has_gpu", lambda: True)
    assert speed.judge(figures) == {"aims": "7B share of the matrix rate 0.40 < 0.5"}
    assert speed.judge({"7B share of the matrix rate": 0.6}) == {"aims": "met"}


@pytest.mark.release
@pytest.mark.timeout(900)
def test_without_a_card_it_runs_to_its_end(tmp_path: Path) -> None:
    """With one too: then all of it runs on the card."""
    report = tmp_path / "results.json"
    done = subprocess.run([sys.executable, SCRIPT, "--json", report], capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    read = json.loads(report.read_text())
    assert {check["status"] for check in read["checks"]} <= {"ok", "skipped"} and len(read["checks"]) == 20
    assert all(check["why"] for check in read["checks"] if check["status"] == "skipped")
