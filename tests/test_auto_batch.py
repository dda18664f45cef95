"""batch_tokens: auto, of a training and of an engine: what config.yaml takes, what a card and a CPU make of it."""

from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kaggle_llm.base.config import ConfigError, build_config
from kaggle_llm.engines import maker
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import choose_batch, make_engine
from kaggle_llm.experiment import start
from kaggle_llm.training.settings import TrainingSettings


@dataclass
class Config:
    training: TrainingSettings = field(default_factory=TrainingSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)


def read(section: str, value: Any) -> Any:
    return getattr(build_config({section: {"batch_tokens": value}}, Config), section).batch_tokens


@pytest.mark.parametrize("section", ["training", "engine"])
def test_a_config_takes_a_number_or_auto(section: str) -> None:
    assert read(section, "auto") == "auto" and read(section, 512) == 512
    for wrong in ("many", 1.5, True, None, 0):
        with pytest.raises(ConfigError, match=rf"{section}.*batch_tokens"):
            read(section, wrong)


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


def test_an_engine_on_a_cpu_computes_a_fixed_number(pico_llm: Path) -> None:
    engine = make_engine(pico_llm, EngineSettings(workers=0))
    assert (engine.settings.batch_tokens, engine.settings.tokens) == ("auto", 4096)  # type: ignore[attr-defined]


@pytest.mark.parametrize("gpus", [[], [["0"], ["1"]], [["1"], ["1"]]])
def test_an_engine_takes_its_share_of_the_fullest_card(
    gpus: list[list[str]], pico_llm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 3 GiB on the first visible card and on card 0, and of 2 on card 1, which two workers may share."""
    monkeypatch.setattr(maker, "measure_free_memory", {"": 3.0, "0": 3.0, "1": 2.0}.__getitem__)
    monkeypatch.setattr(maker, "fit_inference", lambda config, kind, dtype, room, weights: int(room))
    chosen = choose_batch(pico_llm, EngineSettings(dtype="float16"), None, gpus)
    free = 3.0 if not gpus else 2.0 / sum(own == ["1"] for own in gpus)
    assert chosen.batch_tokens == int((free - 0.7) * 2**30 / 1.05)
    assert f"engine.batch_tokens = {chosen.batch_tokens}, for {free} GiB of free memory" in capsys.readouterr().out
    number = EngineSettings(batch_tokens=77)
    assert choose_batch(pico_llm, number, None, gpus) is number


@pytest.mark.parametrize("pico_head", ["bert-sequence", "bert-token", "llama-sequence"], indirect=True)
def test_every_kind_of_head_gets_a_batch(pico_head: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maker, "measure_free_memory", lambda gpu: 20.0)
    assert choose_batch(pico_head, EngineSettings(dtype="float16"), None, [["0"]]).batch_tokens == 2**14


@pytest.mark.parametrize("model", ["pico_llm", "pico_encoder"])
def test_a_language_model_and_an_encoder_get_a_batch(
    model: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maker, "measure_free_memory", lambda gpu: 20.0)
    folder = request.getfixturevalue(model)
    assert choose_batch(folder, EngineSettings(dtype="float16"), None, [["0"]]).batch_tokens == 2**14


def test_where_nothing_can_be_computed_an_engine_gets_what_a_cpu_gets(
    pico_llm: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> int:
        raise ValueError("model_type = mixture: not computed")

    monkeypatch.setattr(maker, "measure_free_memory", lambda gpu: 20.0)
    monkeypatch.setattr(maker, "fit_inference", refuse)
    assert choose_batch(pico_llm, EngineSettings(dtype="float16"), None, [["0"]]).batch_tokens == 4096
    assert "mixture: not computed" in capsys.readouterr().out
