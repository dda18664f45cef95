"""What a model said is kept and comes back without it; what was not asked is asked, and nothing is asked twice."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from kaggle_llm.base import records
from kaggle_llm.engines import texts
from kaggle_llm.engines.engine import Completion, EngineSettings, LengthError, NonFiniteError, Sampling
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.texts import TextPrompts, encode_texts
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.inference import answers, cache, vectors
from kaggle_llm.inference import run as run_module
from kaggle_llm.inference.answers import (
    AnswerFile,
    KeepingEngine,
    cut_parts,
    describe_answers,
    pack_array,
    pack_text,
    unpack_array,
    unpack_text,
)
from kaggle_llm.inference.model import Model
from kaggle_llm.inference.run import Run
from kaggle_llm.inference.vectors import describe_vectors, load_vectors, save_vectors

PROMPTS, LABELS = [[7, 8, 9], [7, 10]], [[11], [12]]


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    return tmp_path


def open_run(*models: Model, keep_for: str = "exp--a", **settings: Any) -> Run:
    config: Any = SimpleNamespace(engine=EngineSettings(**settings))
    nothing: Any = None
    return Run(config, nothing, models, keep_for=keep_for)


def list_files(root: Path, kind: str = "answers") -> list[Path]:
    folder = root / "output" / "cache" / kind
    return sorted(path for path in folder.glob("*") if path.suffix in (".sqlite", ".index"))


def count_answers(path: Path) -> int:
    database = sqlite3.connect(path)
    (count,) = database.execute("SELECT COUNT(*) FROM answers").fetchone()
    database.close()
    return int(count)


class Noting:
    """An engine that notes what it is asked; as with a real one, the last digits depend on what stands beside it."""

    def __init__(self, limit: int = 10**6, fail_at: int = 0, error: BaseException | None = None) -> None:
        self.calls: list[list[list[int]]] = []
        self.samplings: list[Sampling] = []
        self.limit, self.fail_at, self.error, self.closed = limit, fail_at, error, False

    @property
    def asked(self) -> list[list[int]]:
        """All prompts, in the order in which they were asked."""
        return [prompt for call in self.calls for prompt in call]

    def _note(self, prompts: Sequence[Prompt]) -> float:
        for index, prompt in enumerate(prompts):
            if not 0 < len(prompt) <= self.limit:
                raise LengthError(index, len(prompt), self.limit, Path("model"))
        self.calls.append([list(prompt) for prompt in prompts])
        if self.error is not None and len(self.calls) == self.fail_at:
            raise self.error
        return len(self.calls) * 1e-3

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        noise = self._note(prompts)
        return np.array([[sum(prompt) + sum(label) + noise for label in labels] for prompt in prompts])

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        noise = self._note(prompts)
        return np.array([[sum(prompt), noise] for prompt in prompts]).reshape(-1, 2)

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        noise = self._note(prompts)
        return [np.array([[token + noise, 1.0] for token in prompt]) for prompt in prompts]

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        noise = self._note(prompts)
        self.samplings.append(sampling)
        seeds = [sampling.seed + n if sampling.temperature else 0 for n in range(sampling.n)]
        return [[Completion(f"{sum(prompt)} {seed} {noise}", [seed]) for seed in seeds] for prompt in prompts]

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def file(tmp_path: Path) -> AnswerFile:
    return AnswerFile(tmp_path / "answers" / "model.sqlite")


def keeping(engine: Noting, file: AnswerFile) -> KeepingEngine:
    return KeepingEngine(lambda: engine, file)


ASK: dict[str, Callable[[Any, Sequence[Prompt]], Any]] = {
    "choices": lambda engine, prompts: engine.choices(prompts, LABELS).tolist(),
    "logits": lambda engine, prompts: [one.tolist() for one in engine.logits(prompts)],
    "embed": lambda engine, prompts: engine.embed(prompts).tolist(),
    "generate": lambda engine, prompts: engine.generate(prompts, Sampling(4, 1.0, n=2)),
}
every_kind = pytest.mark.parametrize("kind", ASK)


# a real model ---------------------------------------------------------------------------------------------------


def test_the_second_time_answers_come_without_the_model(pico_llm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model("judge", pico_llm)
    with open_run(model) as run:
        first = run.engine("judge").choices(PROMPTS, LABELS)
        texts = run.engine("judge").generate(PROMPTS, Sampling(4, 1.0, n=2))
    kept = first.copy()
    first[:] = 0  # what is done to them is not remembered
    monkeypatch.setattr(run_module, "make_engine", lambda *_: pytest.fail("the model is loaded"))
    with open_run(model, keep_for="exp--b") as run:
        assert run.engine("judge").choices(PROMPTS, LABELS).tobytes() == kept.tobytes()
        assert run.engine("judge").generate(PROMPTS, Sampling(4, 1.0, n=2)) == texts


@pytest.mark.parametrize(
    ("prompts", "labels"),
    [(PROMPTS[::-1], LABELS), (PROMPTS, LABELS[::-1]), (PROMPTS[:1], LABELS), ([[7, 8], [9, 7, 10]], LABELS)],
)
def test_whatever_was_asked_before_the_answer_is_the_model_s(pico_llm: Path, prompts: list, labels: list) -> None:
    with open_run(Model("judge", pico_llm)) as run, open_run(Model("judge", pico_llm), keep_for="") as fresh:
        run.engine("judge").choices(PROMPTS, LABELS)
        found = run.engine("judge").choices(prompts, labels)
        np.testing.assert_allclose(found, fresh.engine("judge").choices(prompts, labels), atol=1e-6)


def test_another_model_and_another_base_have_answers_of_their_own(
    root: Path, pico_llm: Path, make_llm: Callable[..., Path], with_lora: Callable[..., Any]
) -> None:
    other = make_llm(root / "other", intermediate_size=48)
    with_lora(pico_llm).save_pretrained(root / "adapter")
    models = [Model("judge", pico_llm), Model("judge", other), Model("judge", root / "adapter", pico_llm)]
    found = []
    for model in models:
        with open_run(model) as run:
            found.append(run.engine("judge").choices(PROMPTS, LABELS))
    assert not any(np.allclose(one, two) for n, one in enumerate(found) for two in found[:n])
    assert [count_answers(path) for path in list_files(root)] == [2, 2, 2]


def test_the_same_weights_under_another_name_and_place_are_known(root: Path, pico_llm: Path) -> None:
    (root / "copy").mkdir()
    for path in pico_llm.iterdir():
        (root / "copy" / path.name).write_bytes(path.read_bytes())
    for model in (Model("judge", pico_llm), Model("teacher", root / "copy", fold=1)):
        with open_run(model) as run:
            run.engine(model.name).choices(PROMPTS, LABELS)
    (path,) = list_files(root)
    assert count_answers(path) == 2


def test_a_rehearsal_or_a_notebook_keeps_nothing_and_computes_all(root: Path, pico_llm: Path) -> None:
    """They open a Run without keep_for."""
    with open_run(Model("judge", pico_llm)) as run:
        run.engine("judge").choices(PROMPTS, LABELS)
    (path,) = list_files(root)
    database = sqlite3.connect(path)
    database.execute("UPDATE answers SET value = ?", (pack_array(np.array([5.0, 6.0])),))
    database.commit()
    database.close()
    with open_run(Model("judge", pico_llm)) as run:
        assert run.engine("judge").choices(PROMPTS, LABELS).tolist() == [[5.0, 6.0]] * 2
    with open_run(Model("judge", pico_llm), keep_for="") as run:
        assert (run.engine("judge").choices(PROMPTS, LABELS) < 0).all()
        run.engine("judge").choices([[3, 4]], LABELS)
    assert count_answers(path) == 2


# Noting: kind by kind -------------------------------------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "dtype": {"settings": EngineSettings(dtype="bfloat16")},
    "engine": {"kind": "vllm"},
    "device": {"device": "cuda"},
    "base": {"base": "other"},
    "weights": {"model": "other"},
}


def describe(folder: Path, **changes: Any) -> dict[str, Any]:
    for name in ("model", "other"):
        records.write_text(folder / name / "config.json", name)
    about: dict[str, Any] = {"base": None, "kind": "transformers", "settings": EngineSettings(), "device": "cpu"}
    about |= {"model": "model", **changes}
    base = folder / about["base"] if about["base"] else None
    return describe_answers(folder / about["model"], base, about["kind"], about["settings"], about["device"])


@pytest.mark.parametrize("change", CHANGES)
def test_what_moves_a_model_s_answers_makes_another_file(tmp_path: Path, change: str) -> None:
    assert describe(tmp_path) == describe(tmp_path)
    assert describe(tmp_path, **CHANGES[change]) != describe(tmp_path)


def test_memory_batches_and_workers_are_no_part_of_what_a_model_says(tmp_path: Path) -> None:
    other = EngineSettings(batch_tokens=77, workers=3, patience=5.0, vllm={"gpu_memory_utilization": 0.5})
    assert describe(tmp_path, settings=other) == describe(tmp_path)
    quantised = EngineSettings(vllm={"quantization": "gptq", "max_num_seqs": 3})
    assert describe(tmp_path, settings=quantised) == describe(tmp_path), "vLLM's settings are vLLM's only"
    by_vllm = describe(tmp_path, kind="vllm")
    assert describe(tmp_path, kind="vllm", settings=other) == by_vllm
    assert describe(tmp_path, kind="vllm", settings=quantised) != by_vllm


def test_another_version_or_code_of_the_engine_is_asked_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = describe(tmp_path)
    assert {"torch", "transformers", "peft"} <= set(before["versions"]) and "polars" not in before["versions"]
    monkeypatch.setattr(answers, "hash_code", lambda module: f"edited {module}")
    assert describe(tmp_path) == {**before, "code": "edited kaggle_llm.engines.transformers_engine"}
    monkeypatch.undo()
    monkeypatch.setenv("KAGGLE_LLM_ROOT", str(tmp_path))
    monkeypatch.setattr(records, "package_versions", lambda: {"torch": "9", "python": "3"})
    assert describe(tmp_path) == {**before, "versions": {"torch": "9"}}


@every_kind
def test_of_what_is_asked_again_nothing_is_asked(file: AnswerFile, kind: str) -> None:
    prompts = [[1, 2], [3], [4, 5, 6]]
    engine = Noting()
    first = ASK[kind](keeping(engine, file), prompts)
    assert engine.asked == prompts
    silent = KeepingEngine(lambda: pytest.fail("the model is loaded"), file)
    for order in ([0, 1, 2], [2, 0, 1], [1], [1, 1, 0]):
        assert ASK[kind](silent, [prompts[n] for n in order]) == [first[n] for n in order]


@every_kind
def test_only_what_is_new_is_asked_and_what_was_first_computed_stays(file: AnswerFile, kind: str) -> None:
    engine = Noting()
    first = ASK[kind](keeping(engine, file), [[1, 2], [3]])
    both = ASK[kind](keeping(engine, file), [[9], [3], [8], [1, 2]])
    assert engine.calls == [[[1, 2], [3]], [[9], [8]]]
    assert [both[1], both[3]] == [first[1], first[0]], "though the engine would say it with other last digits now"


@every_kind
def test_a_prompt_that_stands_there_twice_is_asked_once(file: AnswerFile, kind: str) -> None:
    engine = Noting()
    found = ASK[kind](keeping(engine, file), [[3], [1, 1], [3], [3], [1, 1]])
    assert engine.asked == [[3], [1, 1]]
    assert found == [found[0], found[1], found[0], found[0], found[1]] and found[0] != found[1]


@every_kind
def test_random_questions_in_any_order_have_the_first_answer_and_are_asked_once(
    file: AnswerFile, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "PART_PROMPTS", 2)
    monkeypatch.setattr(answers, "PART_TOKENS", 3)
    monkeypatch.setattr(answers, "KEYS_A_QUERY", 3)
    rng, engine, known = random.Random(0), Noting(), dict[str, Any]()
    for _ in range(30):
        prompts = [[rng.randrange(4) for _ in range(rng.randint(1, 3))] for _ in range(rng.randrange(8))]
        found = ASK[kind](keeping(engine, file), prompts)
        assert len(found) == len(prompts)
        for prompt, one in zip(prompts, found, strict=True):
            assert known.setdefault(str(prompt), one) == one
    assert sorted(map(str, engine.asked)) == sorted(known)


def test_numpy_s_token_ids_and_lists_are_the_same_prompt(file: AnswerFile) -> None:
    engine = Noting()
    first = keeping(engine, file).choices([[1, 2]], [[3]])
    prompts: Any = [np.array([1, 2], dtype=np.int32), (1, 2)]
    label: Any = [np.array([3])]
    assert keeping(engine, file).choices(prompts, label).tolist() == [first[0].tolist()] * 2
    assert len(engine.calls) == 1


def test_each_kind_of_question_and_each_label_is_another_question(file: AnswerFile) -> None:
    engine = Noting()
    for labels in ([[11], [12]], [[12], [11]], [[11]], [[11, 12]], [[1], [1, 12]]):
        keeping(engine, file).choices([[7]], labels)
    keeping(engine, file).logits([[7]])
    keeping(engine, file).embed([[7]])
    for sampling in (Sampling(4), Sampling(5), Sampling(4, 0.5), Sampling(4, 0.5, 0.9), Sampling(4, 0.5, seed=1)):
        keeping(engine, file).generate([[7]], sampling)
    for more in ({"stop": ("a",)}, {"options": ("a",)}, {"regex": "a"}):
        keeping(engine, file).generate([[7]], replace(Sampling(4), **more))
    assert len(engine.calls) == 15 and engine.asked == [[7]] * 15


def test_no_prompts_are_no_answers(file: AnswerFile) -> None:
    engine = Noting()
    assert keeping(engine, file).choices([], LABELS).shape == (0, 2)
    assert keeping(engine, file).embed([]).shape == (0, 2), "as wide as the encoder's"
    assert keeping(engine, file).logits([]) == [] == keeping(engine, file).generate([], Sampling(4))
    assert engine.asked == []


def test_shapes_of_a_head_come_back_and_whoever_has_them_may_write_into_them(file: AnswerFile) -> None:
    for _ in range(2):
        found = keeping(Noting(), file).logits(PROMPTS)
        assert [one.shape for one in found] == [(3, 2), (2, 2)] and found[0][0, 1] == 1.0
        found[0][:] = 7.0


def test_the_engine_is_closed_where_it_was_loaded(file: AnswerFile) -> None:
    engine = Noting()
    kept = keeping(engine, file)
    kept.choices(PROMPTS, LABELS)
    kept.close()
    assert engine.closed
    KeepingEngine(lambda: pytest.fail("the model is loaded"), AnswerFile(file.path)).close()


# sampling -------------------------------------------------------------------------------------------------------


def test_of_more_samples_only_the_further_ones_are_asked(file: AnswerFile) -> None:
    engine = Noting()
    two = keeping(engine, file).generate([[1], [2]], Sampling(4, 1.0, n=2, seed=5))
    five = keeping(engine, file).generate([[1], [2], [3]], Sampling(4, 1.0, n=5, seed=5))
    assert [one[:2] for one in five[:2]] == two and [len(one) for one in five] == [5, 5, 5]
    assert [one.ids for one in five[0]] == [[5], [6], [7], [8], [9]]
    asked = [(call, sampling.seed, sampling.n) for call, sampling in zip(engine.calls, engine.samplings, strict=True)]
    assert asked == [([[1], [2]], 5, 2), ([[3]], 5, 5), ([[1], [2]], 7, 3)]
    assert keeping(engine, file).generate([[2]], Sampling(4, 1.0, n=1, seed=7)) == [[five[1][2]]]
    assert len(engine.calls) == 3


def test_a_gap_between_known_samples_is_filled_and_what_is_known_stays(file: AnswerFile) -> None:
    engine = Noting()
    (last,) = keeping(engine, file).generate([[1]], Sampling(4, 1.0, n=1, seed=2))
    (found,) = keeping(engine, file).generate([[1]], Sampling(4, 1.0, n=3, seed=0))
    assert found[2] == last[0]
    assert keeping(engine, file).generate([[1]], Sampling(4, 1.0, n=3, seed=0)) == [found]
    assert len(engine.calls) == 2


def test_without_a_temperature_the_seed_and_the_number_are_no_other_question(file: AnswerFile) -> None:
    engine = Noting()
    ((one,),) = keeping(engine, file).generate([[1]], Sampling(4, seed=3))
    assert keeping(engine, file).generate([[1]], Sampling(4, seed=8, n=2)) == [[one, one]]
    assert len(engine.calls) == 1


def test_texts_come_back_as_they_were(file: AnswerFile) -> None:
    for text in ("", "two\nlines", "é 語 \x00", "half \ud83d of a pair"):
        assert unpack_text(pack_text(Completion(text, [1, 2]))) == Completion(text, [1, 2])


@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (0, 3), (2, 1, 2)])
def test_arrays_come_back_in_their_shape_as_float32(shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape)
    found = unpack_array(pack_array(array))
    assert found.dtype == np.float32 and found.shape == shape and np.array_equal(found, array.astype(np.float32))
    if array.ndim == 2:
        assert np.array_equal(unpack_array(pack_array(array.T)), array.T.astype(np.float32))


# what fails -----------------------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("parts", [1, 100])
def test_a_prompt_that_is_too_long_is_named_by_the_place_where_the_caller_put_it(
    file: AnswerFile, kind: str, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "PART_PROMPTS", parts)
    monkeypatch.setattr(answers, "PART_TOKENS", 1)
    engine = keeping(Noting(limit=3), file)
    ASK[kind](engine, [[1], [2]])
    with pytest.raises(LengthError) as caught:
        ASK[kind](engine, [[2], [5], [1], [5], [6, 6, 6], [7, 7, 7, 7], [8]])
    assert (caught.value.index, caught.value.length, caught.value.limit) == (5, 4, 3)
    with pytest.raises(LengthError) as caught:
        ASK[kind](engine, [[1], []])
    assert caught.value.index == 1


@every_kind
def test_what_was_written_before_an_error_is_kept_and_of_the_part_that_failed_nothing(
    file: AnswerFile, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "PART_PROMPTS", 2)
    monkeypatch.setattr(answers, "PART_TOKENS", 1)
    prompts = [[n] for n in range(1, 8)]
    whole = kind == "embed"  # in one call
    engine = Noting(fail_at=1 if whole else 3, error=NonFiniteError(Path("model"), 1, 4))
    with pytest.raises(NonFiniteError):
        ASK[kind](keeping(engine, file), prompts)
    again = Noting()
    ASK[kind](keeping(again, file), prompts)
    assert again.asked == (prompts if whole else prompts[4:])


def test_vectors_are_saved_part_by_part(file: AnswerFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PART_PROMPTS", 2)
    monkeypatch.setattr(answers, "PART_TOKENS", 1)
    engine = Noting()
    keeping(engine, file).embed([[n] for n in range(1, 8)])
    assert [len(prompts) for prompts in engine.calls] == [2, 2, 2, 1]


def test_answers_that_are_no_numbers_are_not_kept(root: Path, broken_llm: Path) -> None:
    for _ in range(2):
        with open_run(Model("judge", broken_llm)) as run, pytest.raises(NonFiniteError):
            run.engine("judge").choices(PROMPTS, LABELS)
    (path,) = list_files(root)
    assert count_answers(path) == 0


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from kaggle_llm.inference import answers
answers.PART_PROMPTS, answers.PART_TOKENS = 3, 1
class Dying:
    calls = 0
    def choices(self, prompts, labels):
        self.calls += 1
        if self.calls == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return np.array([[float(sum(prompt))] for prompt in prompts])
engine = answers.KeepingEngine(Dying, answers.AnswerFile(Path(sys.argv[1])))
engine.choices([[n] for n in range(1, 11)], [[0]])
"""


def test_a_killed_inference_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "model.sqlite"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    engine = Noting()
    found = keeping(engine, AnswerFile(path)).choices([[n] for n in range(1, 11)], [[0]])
    assert engine.asked == [[7], [8], [9], [10]]
    assert found[:6, 0].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


# parts and files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_parts_hold_every_prompt_once_in_order_and_are_as_small_as_both_bounds_allow(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "PART_PROMPTS", 3)
    monkeypatch.setattr(answers, "PART_TOKENS", 20)
    rng = random.Random(seed)
    costs = [rng.randrange(1, 15) for _ in range(60)]
    parts = list(cut_parts(range(100, 160), costs))
    assert [index for part in parts for index in part] == list(range(100, 160))
    sizes = [(len(part), sum(costs[index - 100] for index in part)) for part in parts]
    assert all(count >= 3 and tokens >= 20 for count, tokens in sizes[:-1])
    last = [costs[part[-1] - 100] for part in parts]
    assert all(count <= 3 or tokens - cost < 20 for (count, tokens), cost in zip(sizes, last, strict=True))
    assert list(cut_parts([], [])) == []


def test_two_processes_may_share_a_file_and_the_first_answer_stays(file: AnswerFile) -> None:
    other = AnswerFile(file.path)
    file.write({b"a": b"1", b"b": b"1"})
    other.write({b"b": b"2", b"c": b"2"})
    for one in (file, other, AnswerFile(file.path)):
        assert one.read([b"a", b"b", b"c", b"d", b"a"]) == {b"a": b"1", b"b": b"1", b"c": b"2"}


def test_many_keys_are_found_at_once(file: AnswerFile) -> None:
    known = {str(n).encode(): b"x" * n for n in range(1234)}
    file.write(known)
    assert file.read([*known, b"none"]) == known and file.read([]) == {}


def test_a_file_that_cannot_be_read_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "model.sqlite"
    path.write_text("no database" * 1000)
    with pytest.raises(ValueError, match=r"model\.sqlite cannot be read .*: delete it, its answers are computed again"):
        AnswerFile(path)


# vectors of documents -------------------------------------------------------------------------------------------

DOCUMENTS = [[2, 5, 3], [2, 6, 7, 3], [2, 8, 3]]


def test_vectors_of_documents_are_made_once_and_mapped(
    root: Path, pico_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model("encoder", pico_encoder)
    with open_run(model, keep_for="") as run:
        expected = run.embed_documents("encoder", DOCUMENTS)
        assert not list_files(root, "vectors"), "a rehearsal computes them"
    with open_run(model) as run:
        first = run.embed_documents("encoder", DOCUMENTS)
    np.testing.assert_allclose(first, expected, atol=1e-6)
    monkeypatch.setattr(run_module, "make_engine", lambda *_: pytest.fail("the model is loaded"))
    with open_run(model, keep_for="exp--b") as run:
        again = run.embed_documents("encoder", DOCUMENTS)
    assert np.array_equal(first, again) and isinstance(again, np.memmap) and not again.flags.writeable
    assert len(list_files(root, "vectors")) == 1


def test_texts_whose_vectors_are_kept_are_not_tokenised_again(
    root: Path, pico_encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokenizer, documents = Model("encoder", pico_encoder), load_tokenizer(pico_encoder), ["adds digits", "no"]
    with open_run(model) as run:
        first = run.embed_documents("encoder", TextPrompts(tokenizer, documents, 16))
    np.testing.assert_allclose(first, run.engine("encoder").embed(encode_texts(tokenizer, documents, 16)), atol=1e-6)
    monkeypatch.setattr(texts, "encode_texts", lambda *_: pytest.fail("tokenised"))
    with open_run(model, keep_for="exp--b") as run:
        assert np.array_equal(run.embed_documents("encoder", TextPrompts(tokenizer, documents, 16)), first)
        with pytest.raises(pytest.fail.Exception, match="tokenised"):
            run.embed_documents("encoder", TextPrompts(tokenizer, documents, 15))


def test_vectors_of_other_texts_or_encoders_are_made_and_half_of_them_never_stays(root: Path) -> None:
    made: list[float] = []

    def keep(encoder: str, documents: list[list[int]], value: float = 0.0) -> np.ndarray:
        def embed(part: Sequence[Prompt]) -> np.ndarray:
            made.append(value)
            if np.isnan(value):
                raise MemoryError("killed")
            return np.full((len(part), 2), value, dtype=np.float32)

        about = describe_vectors({"weights": encoder}, documents, "float32")
        path = cache.open_entry("vectors", about, root / "model", "exp--a", ".index")
        cache.fill_entry(path, lambda folder: save_vectors(folder, about, documents, embed))
        return load_vectors(path)

    with pytest.raises(MemoryError):
        keep("e", DOCUMENTS, float("nan"))
    for n, (encoder, documents) in enumerate([("e", DOCUMENTS), ("e", DOCUMENTS[::-1]), ("f", DOCUMENTS), ("e", [])]):
        assert keep(encoder, documents, n).tolist() == [[n, n]] * len(documents)
        assert keep(encoder, documents, 9.0).tolist() == [[n, n]] * len(documents)
    assert len(made) == 5
    numpys: Any = [np.array(document) for document in DOCUMENTS]
    assert keep("e", numpys, 9.0).tolist() == [[0.0, 0.0]] * 3


def test_vectors_are_written_a_part_at_a_time_into_a_file_that_numpy_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors, "DOCUMENTS_A_PART", 3)
    sizes: list[int] = []

    def embed(part: Sequence[Prompt]) -> np.ndarray:
        sizes.append(len(part))
        return np.array([[document[0], 1 / 3] for document in part], dtype=np.float32)

    documents = [[n] for n in range(7)]
    for dtype in ("float32", "float16"):
        (tmp_path / dtype).mkdir()
        save_vectors(tmp_path / dtype, {"dtype": dtype}, documents, embed)
        expected = np.array([[n, 1 / 3] for n in range(7)], dtype=dtype)
        for found in (np.load(tmp_path / dtype / vectors.VECTORS), load_vectors(tmp_path / dtype)):
            assert found.dtype == expected.dtype and np.array_equal(found, expected)
    assert sizes == [3, 3, 1] * 2


def test_a_run_reads_the_index_that_ships_and_embeds_other_documents_again(
    root: Path, pico_encoder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Model("encoder", pico_encoder)
    with open_run(model) as run:
        expected = run.embed_documents("encoder", DOCUMENTS, "float16")
    (root / "index").mkdir()
    vectors.link_index(root / "index", run.artefacts["encoder"])
    with open_run(model, keep_for="") as run:
        run.models.append(Model("encoder_index", root / "index"))
        asked: list[int] = []
        engine = run.engine("encoder")
        embed = engine.embed
        engine.embed = lambda part: (asked.append(len(part)), embed(part))[1]  # type: ignore[method-assign]
        assert np.array_equal(run.embed_documents("encoder", DOCUMENTS, "float16"), expected)
        assert asked == [3], "at most four, to see whether the encoder is the same"
        assert run.embed_documents("encoder", DOCUMENTS[:2], "float16").shape == (2, 32)
        assert "not of these documents" in capsys.readouterr().out


def test_an_index_of_another_encoder_is_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    own, other = (row / np.linalg.norm(row, axis=1, keepdims=True) for row in rng.standard_normal((2, 50, 8)))
    documents = [[n] for n in range(50)]
    asked: list[list[int]] = []

    def embed(part: Sequence[Prompt]) -> np.ndarray:
        asked.append([document[0] for document in part])
        return np.array([own[document[0]] for document in part], dtype=np.float32)

    for name, made, is_used in (("own", own, True), ("other", other, False), ("wide", np.hstack([own, own]), False)):
        (tmp_path / name).mkdir()
        about = describe_vectors({"weights": name}, documents, "float16")
        save_vectors(tmp_path / name, about, documents, lambda part, made=made: made[: len(part)])
        read = vectors.read_index(tmp_path / name, documents, "float16", embed)
        assert (read is not None) == is_used
        assert ("of another encoder: the documents are embedded again" in capsys.readouterr().out) != is_used
    assert asked == [[0, 16, 32, 49]] * 3


# what is kept, and how it goes ----------------------------------------------------------------------------------


def add_entry(root: Path, name: str, days: float, size: int, run: str = "exp--a", kind: str = "vectors") -> Path:
    """A file that a run used so many days ago, with what SQLite leaves beside it."""
    suffix = ".safetensors" if kind == "vectors" else ".sqlite"
    path = cache.open_entry(kind, {"weights": name}, root / "output" / "exp--a" / name, run, suffix)
    path.write_bytes(b"x" * (size - 10))
    path.with_name(f"{path.name}-wal").write_bytes(b"x" * 10)
    note = path.with_suffix(".json")
    known = records.read_json(note)
    records.write_json(note, {**known, "runs": {**known["runs"], run: time.time() - days * cache.DAY_SECONDS}})
    return path


def left(root: Path) -> list[str]:
    return sorted(Path(entry.model).name for entry in cache.list_entries())


def test_files_are_listed_with_their_model_size_age_and_runs(
    root: Path, pico_llm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run_name in ("exp--a", "exp--b"):
        with open_run(Model("judge", pico_llm), keep_for=run_name) as run:
            run.engine("judge").choices(PROMPTS, LABELS)
    add_entry(root, "encoder", 3.0, 5_000_000)
    old, new = cache.list_entries()
    assert (old.kind, old.model, old.bytes, set(old.runs)) == (
        "vectors",
        "output/exp--a/encoder",
        5_000_000,
        {"exp--a"},
    )
    assert (new.kind, new.model, set(new.runs)) == ("answers", str(pico_llm), {"exp--a", "exp--b"})
    assert new.bytes >= list_files(root)[0].stat().st_size > 0 and time.time() - new.used < 100
    assert old.used == pytest.approx(time.time() - 3 * cache.DAY_SECONDS, abs=100)
    cache.print_cache()
    said = capsys.readouterr().out
    assert "output/exp--a/encoder" in said and "5.0 MB" in said and "3.0" in said and "exp--a, exp--b" in said
    assert "2 file(s)" in said


def test_what_no_run_has_used_for_long_is_cleared(root: Path) -> None:
    paths = {days: add_entry(root, f"m{days}", days, 100, kind="answers") for days in (1, 5, 9)}
    add_entry(root, "m9", 2, 100, run="exp--b", kind="answers")
    removed = cache.clear_cache(older=5)
    assert [Path(entry.model).name for entry in removed] == ["m5"] and left(root) == ["m1", "m9"]
    assert not list(paths[5].parent.glob(f"{paths[5].stem}*")), "with its note and what SQLite left beside it"
    assert cache.clear_cache(older=5) == [] == cache.clear_cache()


def test_what_was_unused_longest_is_cleared_until_the_rest_is_small_enough(root: Path) -> None:
    for name, days, size in (("a", 4, 100), ("b", 3, 1000), ("c", 2, 50), ("d", 1, 200)):
        add_entry(root, name, days, size)
    assert cache.clear_cache(keep=1350) == [] and left(root) == ["a", "b", "c", "d"]
    cache.clear_cache(keep=1250)
    assert left(root) == ["b", "c", "d"]
    cache.clear_cache(keep=1000)
    assert left(root) == ["c", "d"]
    removed = cache.clear_cache(older=1.5, keep=200)
    assert [Path(entry.model).name for entry in removed] == ["c"] and left(root) == ["d"]
    cache.clear_cache(keep=0)
    assert left(root) == [] and not list((root / "output" / "cache").rglob("*.*"))


def test_what_was_cleared_is_asked_again(root: Path, pico_llm: Path) -> None:
    with open_run(Model("judge", pico_llm)) as run:
        first = run.engine("judge").choices(PROMPTS, LABELS)
    cache.clear_cache(older=0)
    assert not list_files(root)
    with open_run(Model("judge", pico_llm)) as run:
        np.testing.assert_allclose(run.engine("judge").choices(PROMPTS, LABELS), first, atol=1e-6)
    assert count_answers(list_files(root)[0]) == 2


def test_a_use_makes_a_file_young_again(root: Path) -> None:
    add_entry(root, "a", 9, 100)
    cache.open_entry("vectors", {"weights": "a"}, root / "a", "exp--new", ".safetensors")
    assert cache.clear_cache(older=5) == [] and set(cache.list_entries()[0].runs) == {"exp--a", "exp--new"}


@pytest.mark.parametrize(("text", "size"), [("20GB", 2e10), ("500mb", 5e8), (" 1.5 TB ", 1.5e12), ("3KB", 3e3)])
def test_sizes_are_read(text: str, size: float) -> None:
    assert cache.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "20", "GB", "-1GB", "1 XB", "1,5GB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no size: write it like 20GB or 500MB"):
        cache.parse_size(text)


def test_an_empty_cache_is_shown_and_cleared(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cache.list_entries() == [] == cache.clear_cache(older=0, keep=0)
    cache.print_cache()
    assert "0 file(s), 0.0 MB" in capsys.readouterr().out
    assert os.listdir(root) == []
