"""A sick model is stopped at its first answers; a healthy one answers as without the sentinel."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kaggle_llm.engines.engine import EngineSettings, Sampling
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.sentinel import COLLAPSED_SPREAD, FIRST_PROMPTS, Sentinel, SickModelError
from kaggle_llm.inference.model import Model
from kaggle_llm.inference.run import Run

PROMPTS = [[7 + n, 8, 9 + n] for n in range(FIRST_PROMPTS + 10)]
LABELS = [[266], [265]]


def break_weights(folder: Path, out: Path, name: str) -> Path:
    """The model with one weight, its tied embedding too, set to zero: finite everywhere, and deaf."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        dict(model.named_parameters())[name].zero_()
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder).save_pretrained(out)
    return out


@pytest.fixture
def deaf(pico_llm: Path, tmp_path: Path) -> Any:
    """Run.engine of a model whose final norm is zero: every token is as likely as another, whatever is asked."""
    folder = break_weights(pico_llm, tmp_path / "deaf", "model.norm.weight")
    with Run(SimpleNamespace(engine=EngineSettings()), None, [Model("model", folder)]) as run:  # type: ignore[arg-type]
        yield run.engine("model")


def test_one_constant_label_stops_at_the_first_prompts(deaf: Any) -> None:
    with pytest.raises(
        SickModelError, match=r"deaf is sick: the scores \[-6.34\d*, -6.34\d*\] for 32 different prompts"
    ):
        deaf.choices(PROMPTS, LABELS)


def test_one_token_for_ever_stops(deaf: Any) -> None:
    with pytest.raises(SickModelError, match="is sick: the text"):
        deaf.generate(PROMPTS, Sampling(max_tokens=10))


def test_a_few_or_equal_prompts_are_no_evidence(deaf: Any) -> None:
    assert deaf.choices(PROMPTS[:7], LABELS).shape == (7, 2)
    assert deaf.choices([PROMPTS[0]] * 40, LABELS).shape == (40, 2)
    assert deaf.choices([], LABELS).shape == (0, 2)
    assert len(deaf.generate(PROMPTS, Sampling(max_tokens=7))) == len(PROMPTS), "short texts may be alike"


@pytest.mark.parametrize("count", [0, 1, FIRST_PROMPTS, FIRST_PROMPTS + 10])
def test_a_healthy_model_answers_in_order_and_is_asked_for_everything_once(pico_llm: Path, count: int) -> None:
    engine = make_engine(pico_llm, EngineSettings())
    watched, sampling = Sentinel(engine, pico_llm), Sampling(max_tokens=3, temperature=1.0, n=2, seed=3)
    for _ in range(2):
        found = watched.choices(PROMPTS[:count], LABELS)
        np.testing.assert_allclose(found, engine.choices(PROMPTS[:count], LABELS), atol=1e-5, rtol=0)
        assert watched.generate(PROMPTS[:count], sampling) == engine.generate(PROMPTS[:count], sampling)


def test_heads_are_watched_too(pico_head: Path) -> None:
    engine = make_engine(pico_head, EngineSettings())
    prompts = [[7 + n, 8] for n in range(10)]
    for one, other in zip(Sentinel(engine, pico_head).logits(prompts), engine.logits(prompts), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5, rtol=0)

    class Constant:
        def logits(self, prompts: Any) -> list[np.ndarray]:
            return [np.ones(3)] * len(prompts)

    with pytest.raises(SickModelError, match=r"the scores \[1.0, 1.0, 1.0\]"):
        Sentinel(Constant(), pico_head).logits(prompts)  # type: ignore[arg-type]


@pytest.mark.parametrize(("spread", "sick"), [(0.9 * COLLAPSED_SPREAD, True), (2 * COLLAPSED_SPREAD, False)])
def test_a_head_that_says_one_value_but_for_the_last_digits_stops(pico_head: Path, spread: float, sick: bool) -> None:
    """Its tokens or its rows: what it learned is a constant; half precision alone moves more."""

    class Collapsed:
        def logits(self, prompts: Any) -> list[np.ndarray]:
            return [np.array([0.5, -1.0]) + spread * (prompt[0] % 2) for prompt in prompts]

    watched = Sentinel(Collapsed(), pico_head)  # type: ignore[arg-type]
    if sick:
        with pytest.raises(SickModelError, match=r"is sick: the scores \[0.5"):
            watched.logits(PROMPTS)
    else:
        assert len(watched.logits(PROMPTS)) == len(PROMPTS)
    assert len(watched.logits(PROMPTS[:7])) == 7, "a few prompts are no evidence"


def test_small_differences_of_log_probabilities_are_answers(pico_llm: Path) -> None:
    class Flat:
        def choices(self, prompts: Any, labels: Any) -> np.ndarray:
            return np.array([[-6.0, -6.0 + 1e-6 * prompt[0]] for prompt in prompts])

    assert Sentinel(Flat(), pico_llm).choices(PROMPTS, LABELS).shape == (len(PROMPTS), 2)  # type: ignore[arg-type]
