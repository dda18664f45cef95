"""What comes back of a training on Kaggle replaces output/<run>/ only where it is whole and of this training."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from kaggle_llm.base import records
from kaggle_llm.kaggle import kernels
from kaggle_llm.kaggle.remote import ABOUT, ARCHIVE, take_over

RUN, CONTENT = "exp002_rerank--there", "c0ffee"


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the kernel left, in a repository in which the run has a parent."""
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    records.write_json(tmp_path / "output" / RUN / "parent.json", {"parent": "exp002_rerank"})
    folder, made = tmp_path / "pushed", tmp_path / "made" / RUN
    records.write_json(made / "fold0" / "record.json", {"kind": "fold0"})
    folder.mkdir()
    with tarfile.open(folder / ARCHIVE, "w") as archive:
        archive.add(made, RUN)
    sha256 = records.hash_file(folder / ARCHIVE)
    records.write_json(folder / ABOUT, {"run": RUN, "content": CONTENT, "sha256": sha256})
    return folder


def test_a_whole_run_takes_its_place_and_keeps_its_parent(output: Path) -> None:
    run = take_over(RUN, output, CONTENT)
    assert records.read_json(run / "fold0" / "record.json") == {"kind": "fold0"}
    assert records.read_json(run / "parent.json") == {"parent": "exp002_rerank"}
    assert [path.name for path in run.parent.iterdir()] == [RUN]


@pytest.mark.parametrize(
    ("lost", "content", "said"),
    [
        (ABOUT, CONTENT, "has no run.json and run.tar"),
        (ARCHIVE, CONTENT, "has no run.json and run.tar"),
        ("", "another", "is of another training"),
        ("a byte", CONTENT, "did not arrive whole"),
    ],
)
def test_what_is_not_whole_or_of_another_training_leaves_the_run_as_it_was(
    output: Path, lost: str, content: str, said: str
) -> None:
    if lost == "a byte":
        (output / ARCHIVE).write_bytes((output / ARCHIVE).read_bytes()[:-1])
    elif lost:
        (output / lost).unlink()
    with pytest.raises(OSError, match=said):
        take_over(RUN, output, content)
    assert [path.name for path in (output.parent / "output" / RUN).iterdir()] == ["parent.json"]


def test_each_state_of_a_kernel_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    states = iter(["QUEUED", "RUNNING", "RUNNING", "COMPLETE"])
    monkeypatch.setattr(kernels, "read_status", lambda _: (next(states), ""))
    monkeypatch.setattr(kernels, "pause", lambda _: None)
    monkeypatch.setattr(kernels, "fetch_output", lambda ref, version: tmp_path / f"v{version}")
    assert kernels.follow_kernel("me/mine", 7) == tmp_path / "v7"
    said = capsys.readouterr().out.splitlines()
    assert said == ["me/mine version 7: queued for 0 min", "me/mine version 7: running for 0 min"]
