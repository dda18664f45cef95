"""`auto` dtypes: decided by the card here and the accelerator that ships, seen by keys and by the recorded config."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kaggle_llm.base.config import build_config, load_config, save_config
from kaggle_llm.engines import engine, maker
from kaggle_llm.engines.engine import EngineSettings, choose_shipped_dtype
from kaggle_llm.engines.maker import resolve_engine
from kaggle_llm.engines.transformers_engine import TransformersEngine
from kaggle_llm.experiment.base_config import BaseConfig
from kaggle_llm.experiment.start import resolve_auto
from kaggle_llm.inference.answers import describe_answers
from kaggle_llm.training import settings as training_settings
from kaggle_llm.training.settings import LoraSettings, TrainingSettings, resolve_training
from kaggle_llm.training.trainer import Job, describe_settings

SHIPPED = {
    "NvidiaTeslaT4": "float16",
    "NvidiaL4": "bfloat16",
    "NvidiaH100": "bfloat16",
    "NvidiaRtxPro6000": "bfloat16",
    "none": "float32",
}


@dataclass(kw_only=True)
class Config(BaseConfig):
    training: TrainingSettings = field(default_factory=TrainingSettings)


def show_card(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None) -> None:
    """As on a machine with this card; None: without one."""
    monkeypatch.setattr(engine, "describe_device", lambda: "a card" if capability else "cpu")
    monkeypatch.setattr(training_settings, "read_capability", lambda: capability)
    monkeypatch.setattr(maker, "has_gpu", lambda: False)  # so that auto does not take vLLM


@pytest.mark.parametrize(("accelerator", "dtype"), SHIPPED.items())
def test_the_engine_computes_what_ships_and_float32_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, accelerator: str, dtype: str
) -> None:
    assert choose_shipped_dtype("auto", accelerator) == dtype
    show_card(monkeypatch, (9, 0))
    assert resolve_engine(EngineSettings(accelerator=accelerator)).dtype == dtype, "in CV on an H100 too"
    assert resolve_engine(EngineSettings(accelerator=accelerator, dtype="float32")).dtype == "float32"
    show_card(monkeypatch, None)
    assert resolve_engine(EngineSettings(accelerator=accelerator)).dtype == "float32"


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), "float16"), ((8, 6), "bfloat16"), ((12, 0), "bfloat16"), (None, "float32")]
)
def test_a_training_computes_what_its_card_does(monkeypatch: pytest.MonkeyPatch, capability: Any, dtype: str) -> None:
    show_card(monkeypatch, capability)
    assert resolve_training(TrainingSettings()).dtype == dtype
    assert resolve_training(TrainingSettings(dtype="float32")).dtype == "float32"


def test_keys_see_what_auto_became(monkeypatch: pytest.MonkeyPatch, pico_llm: Path) -> None:
    show_card(monkeypatch, (7, 5))
    job = Job(pico_llm, Path(), LoraSettings(), TrainingSettings(), 0)
    assert describe_settings(job.training)["dtype"] == "float16"
    described = [
        describe_answers(pico_llm, None, "transformers", EngineSettings(**settings), "a card")
        for settings in ({}, {"dtype": "float16"}, {"accelerator": "NvidiaH100"})
    ]
    assert described[0] == described[1] and described[2]["dtype"] == "bfloat16"


def test_an_engine_made_without_a_run_decides_too(pico_llm: Path) -> None:
    made = TransformersEngine(pico_llm, EngineSettings())
    assert made.settings.dtype == str(made.dtype).removeprefix("torch.") != "auto"


def test_the_recorded_config_names_the_choice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On a CPU what ships would be computed otherwise, which is said; a second reading changes nothing."""
    config = build_config({"competition": {"name": "x"}, "engine": {"kind": "transformers"}}, Config)
    show_card(monkeypatch, None)
    resolve_auto(config)
    assert config.engine.dtype == config.training.dtype == "float32"
    assert "NvidiaTeslaT4 would compute float16" in capsys.readouterr().out
    save_config(config, tmp_path / "config.yaml")
    again = load_config(tmp_path / "config.yaml", Config)
    assert asdict(again) == asdict(config)
    show_card(monkeypatch, (9, 0))
    resolve_auto(again)
    assert again.engine.dtype == "float32" and capsys.readouterr().out == "", "what was chosen stays"
    auto: Any = SimpleNamespace(engine=EngineSettings("transformers", accelerator="NvidiaL4"))
    resolve_auto(auto)
    assert auto.engine.dtype == "bfloat16" and capsys.readouterr().out == ""
