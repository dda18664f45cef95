"""An engine over several worker processes, one for each GPU, each with the model to itself.

Leaves nothing on disk and no process behind: a worker ends with its pool, and with the process that made it, however
that ends. One that dies or hangs is replaced, and its prompts are asked again.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from multiprocessing.connection import Pipe
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kaggle_llm
from kaggle_llm.engines.chunks import TOKENS, Chunk, ChunkQueue, cut_by_length, cut_by_prefix
from kaggle_llm.engines.engine import Completion, EngineSettings, LengthError, Sampling, check_base
from kaggle_llm.engines.prompts import Prompt

if TYPE_CHECKING:
    import numpy as np

MODULE = "kaggle_llm.engines.worker"
ERROR = "error"  # the first part of a reply that is an exception
ATTEMPTS = 3  # workers that one chunk may take down
LOOK = 1.0  # seconds between two looks at a worker that says nothing
CLOSING = 40.0  # seconds; vLLM gives its own processes 30
KILLING = 10.0  # seconds; what waits for a GPU that hangs cannot be killed
# What a worker is told of this environment. torchrun's RANK and the like would make it wait for others.
KEPT = re.compile(
    "(PATH|HOME|USER|LANG|TZ|TMPDIR|VIRTUAL_ENV|CC|HF_HOME|LIBRARY_PATH|USE_TF)$|HF_HUB|KAGGLE_LLM|LC_|LD_|PYTHON|TRANSFORMERS|XDG|"
    "CUDA|FLASHINFER|GOMP|KMP|MKL|NCCL|NVIDIA|OMP|OPENBLAS|PYTORCH|TORCH_|TORCHINDUCTOR|TRITON|VLLM"
)
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class WorkerPool:
    """The Engine over the workers of one model; a worker starts when prompts wait for it.

    cards: of each worker, the GPUs that it sees; none for one that computes on the CPU. What an engine raises comes
    back as the same exception, with the caller's index of a prompt. Raises RuntimeError for prompts that took down
    `ATTEMPTS` workers.
    """

    def __init__(
        self, folder: Path, settings: EngineSettings, base: Path | None, cards: Sequence[Sequence[str]]
    ) -> None:
        check_base(folder, base)
        self.folder, self.settings, self.cards = folder, settings, cards
        own = asdict(replace(settings, workers=0))
        self._job = json.dumps({"folder": str(folder), "base": str(base) if base else None, "settings": own})
        self._workers: dict[int, Worker] = {}
        weakref.finalize(self, end_workers, self._workers)  # where close() is forgotten, and when this process ends

    # the contract -------------------------------------------------------------------------------------------

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        """[n, k] log-probabilities of k labels behind each prompt, over the full vocabulary."""
        rows = self._check(prompts)
        return _join(self._ask("choices", rows, cut_by_prefix(rows, len(self.cards)), labels))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt: the same, however many workers there are."""
        rows = self._check(prompts)
        chunks = cut_by_length(rows, len(self.cards), sampling.n * sampling.max_tokens)
        return _list(self._ask("generate", rows, chunks, sampling))

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """[n, d] vectors of unit length."""
        rows = [tuple(prompt) for prompt in prompts]
        return _join(self._ask("embed", rows, cut_by_length(rows, len(self.cards))))

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """A head's logits: [labels] of a sequence head, [tokens, labels] of a token head."""
        rows = [tuple(prompt) for prompt in prompts]
        return _list(self._ask("logits", rows, cut_by_length(rows, len(self.cards))))

    def close(self) -> None:
        """End the workers, and with them give their memory back."""
        end_workers(self._workers)

    # the work -----------------------------------------------------------------------------------------------

    def _check(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        """The prompts; an empty one is refused before hours of work: the shortest are asked last."""
        rows = [tuple(prompt) for prompt in prompts]
        empty = next((index for index, row in enumerate(rows) if not row), None)
        if empty is not None:
            raise ValueError(f"prompt {empty} has 0 tokens, {self.folder} takes 1 or more: set prompt.budgets")
        return rows

    def _ask(
        self, kind: str, prompts: Sequence[Prompt], chunks: Sequence[Chunk], *more: Any
    ) -> list[tuple[Chunk, Any]]:
        """Every chunk with its answer: a method of Engine, called with its prompts and `more`.

        Each worker is served by a thread of its own. When one raises, the others finish what they are at, so that the
        pool can be used again.
        """
        queue = ChunkQueue(chunks)
        count = min(len(self.cards), len(chunks))
        threads = [
            threading.Thread(target=self._serve, args=(number, queue, kind, prompts, more), daemon=True)
            for number in range(count)
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException as error:  # an interrupt: no worker goes on alone
            queue.stop(error)
            self._kill_until_idle(threads)
            raise
        if queue.error is not None:
            raise queue.error
        return queue.answers

    def _serve(
        self, number: int, queue: ChunkQueue, kind: str, prompts: Sequence[Prompt], more: tuple[Any, ...]
    ) -> None:
        """Give one worker chunk after chunk, and replace it when it is lost."""
        try:
            while (chunk := queue.take()) is not None:
                asked = [prompts[index] for index in chunk.indices]
                try:
                    status, answer = self._worker(number).ask((kind, (asked, *more)), self._patience(chunk))
                except WorkerLostError as lost:
                    self._workers.pop(number).kill()
                    self._retry(queue, chunk, f"worker {number} of {self.folder.name} {lost}", kind, asked)
                    continue
                if status == ERROR:
                    queue.stop(_rename_index(answer, chunk))
                else:
                    queue.finish(chunk, answer)
        except BaseException as error:  # such as a process that cannot be started: raised where the call is waited for
            queue.stop(error)

    def _worker(self, number: int) -> Worker:
        if number not in self._workers:
            environment = make_environment(self.cards[number], len(self.cards))
            self._workers[number] = Worker([sys.executable, "-m", MODULE], self._job, environment)
        return self._workers[number]

    def _patience(self, chunk: Chunk) -> float:
        """Seconds; prompts that cannot be cut into chunks of `TOKENS` have more."""
        return min(self.settings.patience * max(1.0, chunk.tokens / TOKENS), threading.TIMEOUT_MAX)

    def _retry(self, queue: ChunkQueue, chunk: Chunk, what: str, kind: str, asked: Sequence[Prompt]) -> None:
        if queue.error is not None:
            return
        chunk.attempts += 1
        if chunk.attempts < ATTEMPTS:
            print(f"{what}: another one takes its {len(asked)} prompts", flush=True)
            queue.put_back(chunk)
            return
        longest = max(map(len, asked), default=0)
        queue.stop(
            RuntimeError(
                f"{what}, as {ATTEMPTS} did at the same {len(asked)} prompts ({kind}, the longest of {longest} tokens, "
                f"model {self.folder}): its last lines are above; where it was only slow, raise engine.patience"
            )
        )

    def _kill_until_idle(self, threads: Sequence[threading.Thread]) -> None:
        """A thread may be starting a worker just now: it finds its worker dead, and nothing left to take."""
        while True:
            for worker in list(self._workers.values()):
                worker.kill()
            if not any(thread.is_alive() for thread in threads):
                self._workers.clear()
                return
            time.sleep(0.05)


class WorkerLostError(Exception):
    """A worker gave no answer; the message says how it ended."""


class Worker:
    """A process that answers one request at a time, and the group of processes that it leads."""

    def __init__(self, command: Sequence[str], job: str, environment: dict[str, str]) -> None:
        self.connection, theirs = Pipe()
        self.busy = self.late = False
        self._lock = threading.Lock()  # a timer may kill it too
        try:
            self.process = subprocess.Popen(
                [*command, str(theirs.fileno()), job],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                process_group=0,  # the session stays: who ends that ends the workers too
            )
        finally:
            theirs.close()

    def ask(self, request: tuple[str, tuple[Any, ...]], seconds: float) -> tuple[str, Any]:
        """The reply. Raises WorkerLostError where the process ends first, also because it took longer: it is killed."""
        timer = threading.Timer(seconds, self._expire)  # also while a stopped process does not take the request
        timer.daemon = True
        timer.start()
        self.busy = True
        try:
            self.connection.send(request)
            while not self.connection.poll(LOOK):
                if self.late or self.has_ended():
                    raise EOFError
            reply: tuple[str, Any] = self.connection.recv()
        except (EOFError, OSError) as error:
            how = f"gave no answer for {seconds:g} s and was killed" if self.late else f"ended ({self._end_code()})"
            raise WorkerLostError(how) from error
        finally:
            timer.cancel()
        self.busy = False
        return reply

    def has_ended(self) -> bool:
        """Without taking its exit code: as long as nobody does, its number is not another process's."""
        with self._lock:
            if self.process.returncode is not None:
                return True
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def let_go(self) -> None:
        """Tell it to end; a busy one is killed."""
        if self.busy:
            self.kill()
            return
        with suppress(OSError):
            self.connection.send(None)

    def finish(self, deadline: float) -> None:
        """Wait until it has ended, at most until the deadline of time.monotonic(); kill what is left."""
        while not self.has_ended() and time.monotonic() < deadline:
            time.sleep(0.02)
        self.kill()
        self.connection.close()

    def kill(self) -> None:
        """End the process and all that it started."""
        with self._lock:
            if self.process.returncode is None:
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(self.process.pid, signal.SIGKILL)
                    self.process.wait(KILLING)

    def _expire(self) -> None:
        self.late = True
        self.kill()

    def _end_code(self) -> str:
        """How the process ended; called when its end of the connection is closed."""
        self.kill()
        code = self.process.returncode
        return f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"


def end_workers(workers: dict[int, Worker]) -> None:
    """All of them, side by side."""
    for worker in workers.values():
        worker.let_go()
    deadline = time.monotonic() + CLOSING
    for worker in workers.values():
        worker.finish(deadline)
    workers.clear()


def assign_cards(cards: Sequence[str], workers: int | None, each: int) -> list[list[str]]:
    """The GPUs of every worker, `each` of them; more workers than that share them. Without GPUs nobody has one.

    workers: None for as many as the GPUs are enough for, 0 without.
    """
    if workers is None:
        workers = max(1, len(cards) // each) if cards else 0
    if not cards:
        return [[] for _ in range(workers)]
    places = ([cards[(number * each + at) % len(cards)] for at in range(each)] for number in range(workers))
    return [list(dict.fromkeys(place)) for place in places]


def list_cards() -> list[str]:
    """The GPUs that this process sees, by the names that CUDA_VISIBLE_DEVICES gives them."""
    import torch

    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",")[:count] if names else [str(number) for number in range(count)]


def make_environment(cards: Sequence[str], workers: int) -> dict[str, str]:
    """All of a worker's environment: its cards, or its share of the cores, and `kaggle_llm` from where this one is."""
    kept = {name: value for name, value in os.environ.items() if KEPT.match(name)}
    source = str(Path(kaggle_llm.__file__).parents[1])
    path = [part for part in kept.get("PYTHONPATH", "").split(os.pathsep) if part and part != source]
    kept |= OFFLINE | {"PYTHONPATH": os.pathsep.join([source, *path])}
    if cards:
        return kept | {"CUDA_VISIBLE_DEVICES": ",".join(cards)}
    cores = int(kept.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    kept["OMP_NUM_THREADS"] = str(max(1, cores // workers))
    if workers > 1:
        kept.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else every vLLM takes the same cores
    return kept


def _rename_index(error: BaseException, chunk: Chunk) -> BaseException:
    """A prompt's index in the caller's list, where the engine in the worker named the one in its chunk."""
    if isinstance(error, LengthError):
        error.index = chunk.indices[error.index]
        error.args = (error.index, *error.args[1:])
    return error


def _join(answers: Sequence[tuple[Chunk, Any]]) -> np.ndarray:
    """One array in the caller's order, of those of the chunks."""
    import numpy as np

    found = np.concatenate([answer for _, answer in answers])
    ordered = np.empty_like(found)
    ordered[[index for chunk, _ in answers for index in chunk.indices]] = found
    return ordered


def _list(answers: Sequence[tuple[Chunk, Any]]) -> list[Any]:
    """One list in the caller's order."""
    found = {index: one for chunk, answer in answers for index, one in zip(chunk.indices, answer, strict=True)}
    return [found[index] for index in range(len(found))]
