"""`make test-gpu`: what is missing is said, a failed check does not hide the next, and on a CPU it runs to its end."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from workspace import ROOT

SCRIPT = ROOT / "tests" / "gpu" / "run.py"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.syspath_prepend(SCRIPT.parent)
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
