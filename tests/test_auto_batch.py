"""training.batch_tokens: auto: what config.yaml takes, and what a run's start makes of it with a card and without."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kaggle_llm.base.config import ConfigError, build_config
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.experiment import start
from kaggle_llm.training.settings import TrainingSettings


@dataclass
class Config:
    training: TrainingSettings = field(default_factory=TrainingSettings)


def read(value: Any) -> Any:
    return build_config({"training": {"batch_tokens": value}}, Config).training.batch_tokens


def test_a_config_takes_a_number_or_auto() -> None:
    assert read("auto") == "auto" and read(512) == 512
    for wrong in ("many", 1.5, True, None):
        with pytest.raises(ConfigError, match=r"training\.batch_tokens"):
            read(wrong)


def test_auto_that_was_not_decided_is_no_number() -> None:
    with pytest.raises(ValueError, match="was not decided"):
        assert TrainingSettings(batch_tokens="auto").part_tokens


@pytest.mark.parametrize(("free", "tokens"), [(None, 2048), (80.0, 2**14)])
def test_start_decides_it_by_the_free_memory(
    free: float | None, tokens: int, pico_llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None: no GPU, where it is today's default, so that results and keys stay."""
    monkeypatch.setattr(start, "measure_free_memory", lambda: free)
    training = TrainingSettings(batch_tokens="auto", dtype="float32")
    config = SimpleNamespace(engine=EngineSettings(), training=training, models={"llm": str(pico_llm)})
    start.resolve_auto(config)
    assert config.training.batch_tokens == config.training.part_tokens == tokens
    assert config.training.dtype == "float32"


def test_without_a_model_folder_auto_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "measure_free_memory", lambda: 10.0)
    config = SimpleNamespace(training=TrainingSettings(batch_tokens="auto"), models={"llm": "run:reader"})
    with pytest.raises(ValueError, match="no folders here, set a number"):
        start.choose_batch_tokens(config)
