"""Generated texts are those that transformers writes one by one; stops, structure and seeds are kept in every batch."""

import json
import random
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kaggle_llm.engines.engine import Completion, EngineSettings, Sampling
from kaggle_llm.engines.generation import find_stop, keep_structure
from kaggle_llm.engines.prompts import Prompt, Prompter, PromptSettings
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.engines.transformers_engine import TransformersEngine

LENGTHS = [5, 1, 60, 33, 2, 60, 17, 90]
OPTIONS = ("Yes", "No", 'No "x" \\ y', "two\nlines", "ü🙂", "[a-z]+")


def tokens(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(6, 567), k=length)


PROMPTS = [tokens(seed, length) for seed, length in enumerate(LENGTHS)]


def engine_of(folder: Path, batch_tokens: int = 4096) -> TransformersEngine:
    return TransformersEngine(folder, EngineSettings(batch_tokens=batch_tokens))


def texts(answers: Sequence[Sequence[Completion]]) -> list[list[str]]:
    return [[one.text for one in found] for found in answers]


@pytest.fixture(scope="module")
def engine(pico_llm: Path) -> TransformersEngine:
    return engine_of(pico_llm)


@pytest.fixture(scope="module")
def model(pico_llm: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(pico_llm).eval()


def write_alone(model: Any, prompt: Prompt, **how: Any) -> list[int]:
    """Greedy new tokens of transformers for one prompt without padding."""
    import torch

    (whole,) = model.generate(torch.tensor([list(prompt)]), do_sample=False, **how)
    return whole[len(prompt) :].tolist()


@pytest.mark.parametrize("batch_tokens", [1, 250, 100_000])
def test_greedy_texts_in_batches_are_those_of_every_prompt_alone(pico_llm: Path, model: Any, batch_tokens: int) -> None:
    answers = engine_of(pico_llm, batch_tokens).generate(PROMPTS, Sampling(max_tokens=24))
    assert [found[0].ids for found in answers] == [write_alone(model, p, max_new_tokens=24) for p in PROMPTS]
    assert len({found[0].text for found in answers}) > 4  # else agreement would say little


def test_rows_of_one_batch_end_each_at_its_own_end(model: Any, pico_llm: Path) -> None:
    """The end is made the token that some of the texts hold early, and some do not."""
    alone = [write_alone(model, prompt, max_new_tokens=12) for prompt in PROMPTS]
    end = next(token for row in alone for token in row[1:] if 0 < sum(token in other for other in alone) < len(alone))
    engine = engine_of(pico_llm)
    engine._causal.generation_config.eos_token_id = [end]
    found = [one.ids for (one,) in engine.generate(PROMPTS, Sampling(max_tokens=12))]
    assert found == [row[: row.index(end) + 1] if end in row else row for row in alone]
    assert len({len(row) for row in found}) > 1


def test_a_batch_holds_prompt_padding_and_new_tokens(engine: TransformersEngine) -> None:
    generator = engine._generator
    tasks = [(index, sample) for index in range(len(PROMPTS)) for sample in range(3)]
    batches = list(type(generator)(generator.model, generator.tokenizer, 250)._batches(PROMPTS, tasks, 20))
    assert sorted(task for batch in batches for task in batch) == tasks
    for batch in batches:
        longest = max(len(PROMPTS[index]) for index, _ in batch)
        assert len(batch) == 1 or len(batch) * (longest + 20) <= 250


def test_a_text_ends_at_the_context_s_end_whatever_stands_beside_it(engine: TransformersEngine) -> None:
    prompts = [tokens(1, 1020), tokens(2, 1010), tokens(3, 8)]
    lengths = [len(one.ids) for (one,) in engine.generate(prompts, Sampling(max_tokens=30))]
    assert lengths == [4, 14, 30]
    with pytest.raises(ValueError, match=r"prompt 1 has 1024 tokens, .* takes 1 to 1023"):
        engine.generate([[7], tokens(0, 1024)], Sampling(max_tokens=1))


def copy_model(pico_llm: Path, folder: Path, **generation: Any) -> Path:
    """The model with other settings in its generation_config.json."""
    shutil.copytree(pico_llm, folder)
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | generation))
    return folder


def test_a_text_ends_at_the_end_that_training_teaches_and_at_the_model_s_own(pico_llm: Path, tmp_path: Path) -> None:
    folder = copy_model(pico_llm, tmp_path / "model", eos_token_id=[7, 8])
    tokenizer = load_tokenizer(folder)
    taught = Prompter(tokenizer, PromptSettings("Q:", chat=False)).completion("Yes")[-1]
    generator = engine_of(folder)._generator
    assert set(generator.ends) == {taught, 7, 8}
    ids = [*tokenizer("Yes")["input_ids"], taught, *tokenizer(" and on")["input_ids"]]
    assert generator._complete(ids, Sampling(9)).text == "Yes"


def test_a_tokenizer_without_an_end_teaches_nothing(pico_llm: Path) -> None:
    tokenizer = load_tokenizer(pico_llm)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        Prompter(tokenizer, PromptSettings("Q:", chat=False)).completion("Yes")


@pytest.mark.parametrize(
    "brought", [{"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 1}, {"min_p": 0.9}, {"suppress_tokens": [11]}]
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_penalties_that_a_model_brings_along_change_no_text(
    engine: TransformersEngine, pico_llm: Path, tmp_path: Path, brought: dict[str, Any], temperature: float
) -> None:
    folder, sampling = copy_model(pico_llm, tmp_path / "model", **brought), Sampling(12, temperature)
    together = engine_of(folder).generate(PROMPTS, sampling)
    assert together == engine.generate(PROMPTS, sampling)
    assert [engine_of(folder).generate([prompt], sampling)[0] for prompt in PROMPTS[:2]] == together[:2]


# samples ----------------------------------------------------------------------------------------------------


def test_samples_do_not_depend_on_what_is_asked_beside_them(pico_llm: Path, engine: TransformersEngine) -> None:
    sampling = Sampling(max_tokens=10, temperature=1.0, n=5, seed=3)
    together = engine.generate(PROMPTS, sampling)
    assert [engine.generate([prompt], sampling)[0] for prompt in PROMPTS] == together
    assert engine_of(pico_llm, 60).generate(PROMPTS[::-1], sampling)[::-1] == together
    assert len(set(texts(together)[0])) > 1


def test_sample_i_has_the_seed_plus_i(engine: TransformersEngine) -> None:
    (together,) = engine.generate([PROMPTS[2]], Sampling(max_tokens=10, temperature=1.0, n=6, seed=40))
    for first, count in ((0, 2), (2, 3), (5, 1)):
        (part,) = engine.generate([PROMPTS[2]], Sampling(10, temperature=1.0, n=count, seed=40 + first))
        assert part == together[first : first + count]


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.3, 0.6)])
def test_samples_have_the_probabilities_of_the_model(
    engine: TransformersEngine, model: Any, temperature: float, top_p: float
) -> None:
    """Of the next token: softmax at the temperature; top_p keeps the fewest tokens with that much of it."""
    import torch

    with torch.no_grad():
        p = (model(torch.tensor([PROMPTS[0]])).logits[0, -1].double() / temperature).softmax(-1).numpy()
    order = np.argsort(-p)
    kept = order[: 1 + int((p[order].cumsum() < top_p).sum())]
    wanted = np.zeros_like(p)
    wanted[kept] = p[kept] / p[kept].sum()
    draws = 4000
    (found,) = engine.generate([PROMPTS[0]], Sampling(1, temperature, top_p, n=draws))
    counts = np.bincount([one.ids[0] for one in found], minlength=len(p))
    assert counts[wanted == 0].sum() == 0
    often = wanted > 20 / draws
    spread = np.sqrt(draws * wanted[often] * (1 - wanted[often]))
    assert often.sum() > 3 and (np.abs(counts[often] - draws * wanted[often]) < 5 * spread).all()


# stops ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_a_text_ends_before_the_first_stop(pico_llm: Path, engine: TransformersEngine, batch_tokens: int) -> None:
    whole = texts(engine.generate(PROMPTS, Sampling(max_tokens=24)))
    stop = (whole[0][0][9:12], whole[3][0][2:4])
    expected = [min((text.split(one)[0] for one in stop), key=len) for (text,) in whole]
    answers = engine_of(pico_llm, batch_tokens).generate(PROMPTS, Sampling(max_tokens=24, stop=stop))
    assert [text for (text,) in texts(answers)] == expected and expected[0] != whole[0][0]
    tokenizer = load_tokenizer(pico_llm)
    for (one,), (text,) in zip(answers, whole, strict=True):
        if one.text != text:  # the ids go on just until the stop is there
            assert find_stop(tokenizer.decode(one.ids), stop) is not None
            assert find_stop(tokenizer.decode(one.ids[:-1]), stop) is None


def test_a_stop_that_the_prompt_begins_does_not_count(engine: TransformersEngine, pico_llm: Path) -> None:
    tokenizer = load_tokenizer(pico_llm)
    ((whole,),) = engine.generate([PROMPTS[0]], Sampling(max_tokens=6))
    stop = tokenizer.decode(PROMPTS[0][-1:]) + tokenizer.decode(whole.ids[:1])
    ((found,),) = engine.generate([PROMPTS[0]], Sampling(max_tokens=6, stop=(stop,)))
    assert stop not in whole.text and found == whole


# structure --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("batch_tokens", [1, 4096])
def test_a_text_is_exactly_one_of_the_options(pico_llm: Path, batch_tokens: int, temperature: float) -> None:
    """In a large batch each of them comes, the rarest twice in 256 texts; one by one, these would take seconds."""
    n = 32 if batch_tokens > 1 else 3
    sampling = Sampling(max_tokens=16, temperature=temperature, n=n, options=OPTIONS)
    answers = engine_of(pico_llm, batch_tokens).generate(PROMPTS, sampling)
    found = {text for row in texts(answers) for text in row}
    assert found <= set(OPTIONS) and (temperature == 0 or n < 32 or found == set(OPTIONS))


@pytest.mark.parametrize("regex", [r"(\d{1,3}|none) apples?", "[A-Z][a-z]{2,5}", "(é|ß){1,8}!", "a"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_text_matches_the_regex_wholly(engine: TransformersEngine, regex: str, temperature: float) -> None:
    answers = engine.generate(PROMPTS, Sampling(40, temperature=temperature, n=3, regex=regex))
    assert all(re.fullmatch(regex, text) for row in texts(answers) for text in row)


def test_a_text_that_is_cut_before_it_matches_is_empty(engine: TransformersEngine) -> None:
    ((cut,),) = engine.generate([PROMPTS[0]], Sampling(max_tokens=5, regex="[a-z]{40}x"))
    assert cut.text == "" and len(cut.ids) == 5
    assert keep_structure("12", False, Sampling(2, regex=r"\d+")) == "12", "complete, though it might go on"
    assert keep_structure("1x", False, Sampling(2, regex=r"\d+")) == ""


@pytest.mark.parametrize("regex", ["(", "(?=a)b", r"\bword"])
def test_a_regex_that_is_not_known_is_an_error_that_names_it(engine: TransformersEngine, regex: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"regex = {regex!r}")):
        engine.generate([[7]], Sampling(max_tokens=4, regex=regex))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"options": ("a", "b"), "regex": "a"}, "give one of the two"),
        ({"options": ("a", "b"), "stop": ("a",)}, "those end a text themselves"),
        ({"options": ("a", "a")}, "no option twice"),
        ({"options": ("", "a")}, "no empty text"),
        ({"stop": ("",)}, "no empty text"),
        ({"options": ("nine bytes",)}, "set max_tokens=10"),
    ],
)
def test_structure_that_cannot_be_kept_is_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sampling(max_tokens=9, **settings)


@pytest.mark.slow
def test_vllm_is_asked_for_the_same_by_its_own_names() -> None:
    """What the texts then are is tested where vLLM runs."""
    sampling_params = pytest.importorskip("vllm.sampling_params")
    from kaggle_llm.engines.vllm_engine import structure_of

    choice = structure_of(Sampling(9, options=("Yes", "No")))
    regex = structure_of(Sampling(9, regex="[a-z]+"))
    params = sampling_params.SamplingParams(max_tokens=9, stop=["x"], **choice)
    assert params.structured_outputs.choice == ["Yes", "No"]
    assert sampling_params.SamplingParams(**regex).structured_outputs.regex == "[a-z]+"
    assert structure_of(Sampling(9, stop=("x",))) == {}
