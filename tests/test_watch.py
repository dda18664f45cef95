"""Held-out loss while it trains: that of examples which were not trained on; it can keep a step, or stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_choice_training import POINTWISE, random_groups
from test_trainer import Killed, assert_same, kill, load_trained, loss_of, make_job, weights  # noqa: F401

from kaggle_llm.engines.prompts import TokenGroup
from kaggle_llm.tasks.choice_training import ChoiceTask
from kaggle_llm.training.settings import TrainingSettings, TrickSettings, WatchSettings
from kaggle_llm.training.trainer import describe_settings, fine_tune
from kaggle_llm.training.watch import HELD_OUT, count_since_best, list_losses

GROUPS = random_groups(3, 16)


def train(base: Path, folder: Path, groups: list[TokenGroup] = GROUPS, **changes: Any) -> dict[int, float]:
    """Train into `folder`; returns the held-out losses by step."""
    fine_tune(POINTWISE, groups, make_job(base, folder, **({"checkpoint_steps": 2} | changes)))
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return list_losses([json.loads(line) for line in lines])


def test_the_held_out_loss_is_that_of_the_last_examples_and_changes_nothing(pico_llm: Path, tmp_path: Path) -> None:
    losses = train(pico_llm, tmp_path / "watched", watch=WatchSettings(rows=4, steps=4), batch_tokens=60)
    train(pico_llm, tmp_path / "parts", GROUPS[:12], batch_tokens=60)
    assert list(losses) == [4, 6], "every four steps, and the last one"
    assert_same(tmp_path / "watched", tmp_path / "parts")
    assert losses[6] == pytest.approx(loss_of(load_trained(pico_llm, tmp_path / "watched"), GROUPS[12:]), abs=1e-5)
    assert (tmp_path / "watched" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert not (tmp_path / "parts" / "loss.png").exists()


LONG: dict[str, Any] = {"epochs": 4, "learning_rate": 0.05, "warmup": 0.0}


def test_the_best_step_is_saved_and_it_stops_after_looks_without_a_lower_loss(
    pico_llm: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses = train(pico_llm, tmp_path / "best", watch=WatchSettings(rows=4, steps=1, keep="best"), **LONG)
    best = min(losses, key=losses.__getitem__)
    assert best < max(losses) and losses[best] < losses[max(losses)] - 0.01
    found = loss_of(load_trained(pico_llm, tmp_path / "best"), GROUPS[12:])
    assert found == pytest.approx(losses[best], abs=1e-5)
    assert (
        f"at step {best}, {losses[max(losses)]:.4f} at step 24, the last; kept: step {best}" in capsys.readouterr().out
    )
    stopped = train(pico_llm, tmp_path / "stopped", watch=WatchSettings(rows=4, steps=1, patience=3), **LONG)
    assert len(stopped) < len(losses) and stopped == dict(list(losses.items())[: len(stopped)])
    assert count_since_best(stopped) == 3
    assert max(count_since_best(dict(list(losses.items())[:n])) for n in range(1, len(stopped))) == 2


@pytest.mark.parametrize("step", [5, *(pytest.param(step, marks=pytest.mark.slow) for step in (4, 9))])
def test_killed_it_keeps_the_same_best_step(
    pico_llm: Path,
    tmp_path: Path,
    kill: Callable[[int], None],  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    """With an average of the weights too, whose copy also lies in the checkpoints."""
    words: dict[str, Any] = {"epochs": 2, "learning_rate": 0.03, "warmup": 0.0, "batch_tokens": 10_000}
    words |= {"watch": WatchSettings(rows=4, steps=2, keep="best"), "tricks": TrickSettings(ema=0.8)}
    whole = train(pico_llm, tmp_path / "whole", **words)
    with pytest.MonkeyPatch.context():
        kill(step)
        with pytest.raises(Killed):
            train(pico_llm, tmp_path / "killed", **words)
    assert train(pico_llm, tmp_path / "killed", **words) == whole
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_a_watch_is_in_the_key_where_it_is_on() -> None:
    known = describe_settings(TrainingSettings())
    assert not {"watch", "tricks"} & set(known)
    on = describe_settings(TrainingSettings(watch=WatchSettings(rows=5), tricks=TrickSettings(ema=0.9)))
    assert on == {**known, "watch": {"rows": 5, "steps": 50, "keep": "last", "patience": 0}, "tricks": {"ema": 0.9}}


def test_what_cannot_be_watched_is_refused(pico_llm: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows = 16 of 16 examples: none is left to train on"):
        train(pico_llm, tmp_path / "run", watch=WatchSettings(rows=16))
    with pytest.raises(ValueError, match=r"keep = best and patience need held-out examples: set rows"):
        WatchSettings(keep="best")


def test_each_look_has_no_dropout_and_leaves_the_random_numbers_alone(pico_llm: Path, tmp_path: Path) -> None:
    for name, watch in {"watched": WatchSettings(rows=4, steps=1), "plain": WatchSettings()}.items():
        job = make_job(pico_llm, tmp_path / name, watch=watch)
        job.lora.dropout = 0.3
        fine_tune(POINTWISE, GROUPS if name == "watched" else GROUPS[:12], job)
    assert_same(tmp_path / "watched", tmp_path / "plain")
    assert HELD_OUT in (tmp_path / "watched" / "log.jsonl").read_text()
    assert isinstance(POINTWISE, ChoiceTask) and weights(tmp_path / "plain")
