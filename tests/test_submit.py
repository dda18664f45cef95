"""A submission: every gate shuts, the limit is kept, and one is made once whatever Kaggle answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kaggle_forks import Forks
from kaggle_server import Fault, Kaggle, environment, serve

from kaggle_llm.base import paths, records
from kaggle_llm.kaggle import client
from kaggle_llm.kaggle.bundle import identify_bundle, list_file_entries
from kaggle_llm.kaggle.hashes import Hashes
from kaggle_llm.kaggle.submit import check_limit, find_shut_gates, send_submission, wait_for_score

TAG = "[exp001 v3 0123abcd]"
PUSHED = {"kernel": "alice/demo-notebook", "version": 3}


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    forks = Forks(tmp_path_factory.mktemp("home"))
    yield forks
    forks.close()


@pytest.fixture
def talk(forks: Forks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """talk(proxy): the CLI in forks speaks to that server, and nobody waits."""
    monkeypatch.setattr(client, "start_program", forks.start_program)
    monkeypatch.setattr(time, "sleep", lambda _: None)

    def point(proxy: str) -> None:
        for name, value in environment(tmp_path, proxy).items():
            monkeypatch.setenv(name, value)

    return point


def test_without_a_submission_left_nothing_is_sent(talk: Any, capsys: pytest.CaptureFixture[str]) -> None:
    kaggle = Kaggle(allowed=0)
    with serve(kaggle) as proxy:
        talk(proxy)
        with pytest.raises(ValueError, match="no submission to demo is left today"):
            check_limit("demo")
    assert "0 submissions today, 0 left" in capsys.readouterr().out and kaggle.calls["CreateCodeSubmission"] == 0


def test_beyond_the_limit_kaggles_own_words_are_said(talk: Any) -> None:
    """Somebody of the team took the last one meanwhile."""
    kaggle = Kaggle(allowed=0)
    with serve(kaggle) as proxy:
        talk(proxy)
        with pytest.raises(OSError, match="kaggle competitions submit"):
            send_submission("demo", PUSHED, f"why {TAG}", TAG)
    assert kaggle.submissions == []


@pytest.mark.parametrize("kind", ["", "lost", "drop", "500", "429", "401"])
def test_a_submission_is_made_once_or_not_at_all(talk: Any, kind: str) -> None:
    faults = (Fault("CreateCodeSubmission", 1, kind),) if kind else ()
    kaggle = Kaggle(faults=faults, score="0.7")
    with serve(kaggle) as proxy:
        talk(proxy)
        if kind in ("", "lost"):
            found = send_submission("demo", PUSHED, f"why {TAG}", TAG)
            assert found["description"] == f"why {TAG}" and len(kaggle.submissions) == 1
            scored = wait_for_score("demo", TAG)
            assert float(scored["publicScore"]) == 0.7
        else:
            with pytest.raises(OSError, match="kaggle competitions submit"):
                send_submission("demo", PUSHED, f"why {TAG}", TAG)
            assert kaggle.submissions == []


RUN = "exp001_retrieve--gates"


def make_gates(root: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest of a bundle that is rehearsed and pushed, and what was pushed."""
    folder = paths.bundle_folder(RUN)
    records.write_text(folder / "a.txt", "x")
    manifest = {"run": RUN, "competition": "demo", "files": list_file_entries(folder, Hashes())}
    records.write_json(folder / "MANIFEST.json", manifest)
    records.write_json(paths.run_folder(RUN) / "metrics.json", {"smoke": False})
    report = {"bundle": identify_bundle(manifest), "ok": True, "checks": [{"name": "time", "ok": False}]}
    records.write_json(paths.rehearsals_folder(RUN) / "latest" / "report.json", report)
    return manifest, {"bundle": identify_bundle(manifest), "output": {"ok": True, "problems": ["bad ids"]}}


def test_every_gate_shuts_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    manifest, pushed = make_gates(tmp_path)
    folder, report = paths.bundle_folder(RUN), paths.rehearsals_folder(RUN) / "latest" / "report.json"

    def shut(pushed: dict[str, Any] | None = pushed) -> list[str]:
        return list(find_shut_gates(RUN, folder, manifest, pushed))

    assert shut() == []
    (one,) = shut(None)
    assert "was not pushed" in one
    (one,) = shut({**pushed, "bundle": "another"})
    assert "was not pushed" in one
    (one,) = shut({**pushed, "output": {**pushed["output"], "ok": False}})
    assert "output on Kaggle is not right (bad ids)" in one
    good = records.read_json(report)
    for change, message in (({"ok": False}, "rehearsal failed (time)"), ({"bundle": "another"}, "was not rehearsed")):
        records.write_json(report, {**good, **change})
        (one,) = shut()
        assert message in one
    report.unlink()
    (one,) = shut()
    assert "was not rehearsed" in one
    records.write_json(report, good)
    records.write_json(paths.run_folder(RUN) / "metrics.json", {"smoke": True})
    (one,) = shut()
    assert "smoke run" in one
    records.write_json(paths.run_folder(RUN) / "metrics.json", {"smoke": False})
    records.write_text(folder / "a.txt", "y")
    (one,) = shut()
    assert "a.txt of the bundle changed" in one
