"""A run's settings and curve reach the tracker that the config names; keys and tokens reach none."""

import json
from pathlib import Path
from typing import Any

import pytest
from test_choice_training import POINTWISE, random_groups

from kaggle_llm.training.settings import LoraSettings, TrainingSettings
from kaggle_llm.training.trainer import Job, fine_tune

ABOUT = {"run": "exp9--a", "competition": "some-competition", "config": {"seed": 7}, "git": {"commit": "abc"}}
SECRET = "0123456789secret0123456789secret01234567"


def train(base: Path, folder: Path, word: Any) -> Path:
    folder.mkdir(parents=True)
    settings = TrainingSettings(batch=2, track=word)
    fine_tune(POINTWISE, random_groups(1, 4), Job(base, folder, LoraSettings(r=2), settings, 0, ABOUT))
    return folder.parent / "tracking"


def content(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "HF_TOKEN", "KAGGLE_KEY"):
        monkeypatch.setenv(name, SECRET)


def test_off_leaves_nothing_beside_the_log(pico_llm: Path, tmp_path: Path) -> None:
    assert not train(pico_llm, tmp_path / "adapter", "off").exists()
    rows = [json.loads(line) for line in (tmp_path / "adapter" / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]


def test_tensorboard_has_the_curve_and_the_settings(pico_llm: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = train(pico_llm, tmp_path / "adapter", "tensorboard")
    events = EventAccumulator(str(folder))
    events.Reload()
    assert [point.step for point in events.Scalars("train/loss")] == [1, 2]
    (about,) = events.Tensors("about/text_summary")
    assert b'"run": "exp9--a"' in about.tensor_proto.string_val[0] and b"abc" in about.tensor_proto.string_val[0]
    assert SECRET.encode() not in content(folder)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_wandb_offline_has_the_curve_and_the_settings_and_no_key(pico_llm: Path, tmp_path: Path) -> None:
    folder = train(pico_llm, tmp_path / "adapter", "wandb-offline")
    (run,) = folder.rglob("run-*.wandb")
    stored = run.read_bytes()
    for words in (b"exp9--a", b"some-competition", b"abc", b"train/loss"):
        assert words in stored, words
    assert SECRET.encode() not in content(folder)


def test_another_word_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    from kaggle_llm.base.config import ConfigError, load_config

    (tmp_path / "config.yaml").write_text("track: mlflow\n")
    with pytest.raises(ConfigError, match="must be one of 'off', 'tensorboard', 'wandb', 'wandb-offline'"):
        load_config(tmp_path / "config.yaml", TrainingSettings)
