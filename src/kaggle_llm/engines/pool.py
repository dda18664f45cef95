"""An engine over several worker processes, each with its own copy of the model on its own GPUs.

A worker that dies or hangs is replaced, and its prompts are asked again. Leaves nothing on disk and no process: workers
end with their pool, and with the process that started them, however it ends.
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
from kaggle_llm.engines.chunks import MAX_CHUNK_TOKENS, Chunk, ChunkQueue, cut_by_length, cut_by_prefix
from kaggle_llm.engines.engine import Completion, EngineSettings, LengthError, Sampling, check_adapter_base
from kaggle_llm.engines.prompts import Prompt

if TYPE_CHECKING:
    import numpy as np

WORKER_MODULE = "kaggle_llm.engines.worker"
ERROR_REPLY = "error"  # first item of a reply whose second one is an exception
MAX_ATTEMPTS = 3  # workers lost on one chunk
POLL_SECONDS = 1.0  # between two looks at a silent worker
CLOSE_TIMEOUT = 40.0  # seconds; vLLM gives its own processes 30
KILL_TIMEOUT = 10.0  # seconds; a process that waits for a hanging GPU cannot be killed
# Environment variables that a worker gets. torchrun's RANK and the like would make it wait for other processes.
WORKER_VARIABLES = re.compile(
    "(PATH|HOME|USER|LANG|TZ|TMPDIR|VIRTUAL_ENV|CC|HF_HOME|LIBRARY_PATH|USE_TF)$|HF_HUB|KAGGLE_LLM|LC_|LD_|PYTHON|TRANSFORMERS|XDG|"
    "CUDA|FLASHINFER|GOMP|KMP|MKL|NCCL|NVIDIA|OMP|OPENBLAS|PYTORCH|TORCH_|TORCHINDUCTOR|TRITON|VLLM"
)
OFFLINE_VARIABLES = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


class WorkerPool:
    """An Engine over the workers of one model, which start when prompts wait for them.

    gpus: the GPUs that each worker sees; none for a worker on the CPU. A worker's exception is raised here, with the
    caller's index of the prompt. Raises RuntimeError for prompts on which `MAX_ATTEMPTS` workers were lost.
    """

    def __init__(
        self, folder: Path, settings: EngineSettings, base: Path | None, gpus: Sequence[Sequence[str]]
    ) -> None:
        check_adapter_base(folder, base)
        self.folder, self.settings, self.gpus = folder, settings, gpus
        job = {"folder": str(folder), "base": str(base) if base else None}
        self._job = json.dumps({**job, "settings": asdict(replace(settings, workers=0))})
        self._workers: dict[int, Worker] = {}
        weakref.finalize(self, end_workers, self._workers)  # if close() is forgotten, and when this process ends

    # calls of Engine ------------------------------------------------------------------------------------------

    def choices(self, prompts: Sequence[Prompt], labels: Sequence[Prompt]) -> np.ndarray:
        """[n, k] log-probabilities of k labels after each prompt, over the full vocabulary."""
        rows = self._check(prompts)
        chunks = cut_by_prefix(rows, len(self.gpus), self.settings.tokens)
        return _concatenate(self._ask("choices", rows, chunks, labels))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions for each prompt: the same, however many workers there are."""
        rows = self._check(prompts)
        chunks = cut_by_length(rows, len(self.gpus), self.settings.tokens, sampling.n * sampling.max_tokens)
        return _in_order(self._ask("generate", rows, chunks, sampling))

    def embed(self, prompts: Sequence[Prompt]) -> np.ndarray:
        """[n, d] vectors of unit length."""
        rows = [tuple(prompt) for prompt in prompts]
        return _concatenate(self._ask("embed", rows, cut_by_length(rows, len(self.gpus), self.settings.tokens)))

    def logits(self, prompts: Sequence[Prompt]) -> list[np.ndarray]:
        """A head's logits: [labels] of a sequence head, [tokens, labels] of a token head."""
        rows = [tuple(prompt) for prompt in prompts]
        return _in_order(self._ask("logits", rows, cut_by_length(rows, len(self.gpus), self.settings.tokens)))

    def close(self) -> None:
        """End the workers."""
        end_workers(self._workers)

    # work of the pool -----------------------------------------------------------------------------------------

    def _check(self, prompts: Sequence[Prompt]) -> list[tuple[int, ...]]:
        """The prompts as tuples. An empty one is refused now: the shortest are answered last, maybe hours from now."""
        rows = [tuple(prompt) for prompt in prompts]
        empty = next((index for index, row in enumerate(rows) if not row), None)
        if empty is not None:
            raise ValueError(f"prompt {empty} has 0 tokens, {self.folder} takes 1 or more: set prompt.budgets")
        return rows

    def _ask(
        self, method: str, prompts: Sequence[Prompt], chunks: Sequence[Chunk], *arguments: Any
    ) -> list[tuple[Chunk, Any]]:
        """Every chunk with its answer: of a method of Engine, called with the chunk's prompts and `arguments`.

        Each worker has a thread. When one raises, the others finish their chunk, so that the pool can be used again.
        """
        queue = ChunkQueue(chunks)
        threads = [
            threading.Thread(target=self._serve, args=(number, queue, method, prompts, arguments), daemon=True)
            for number in range(min(len(self.gpus), len(chunks)))
        ]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        except BaseException as error:  # an interrupt: end all workers
            queue.stop(error)
            self._kill_until_idle(threads)
            raise
        if queue.error is not None:
            raise queue.error
        return queue.answers

    def _serve(
        self, number: int, queue: ChunkQueue, method: str, prompts: Sequence[Prompt], arguments: tuple[Any, ...]
    ) -> None:
        """Give one worker chunk after chunk, and replace it when it is lost."""
        try:
            while (chunk := queue.take()) is not None:
                batch = [prompts[index] for index in chunk.indices]
                try:
                    status, answer = self._worker(number).ask((method, (batch, *arguments)), self._timeout(chunk))
                except WorkerLostError as lost:
                    self._workers.pop(number).kill()
                    self._retry(queue, chunk, f"worker {number} of {self.folder.name} {lost}", method, batch)
                    continue
                if status == ERROR_REPLY:
                    queue.stop(_rename_index(answer, chunk))
                else:
                    queue.finish(chunk, answer)
        except BaseException as error:  # such as a process that cannot be started: raised in _ask
            queue.stop(error)

    def _worker(self, number: int) -> Worker:
        if number not in self._workers:
            environment = make_environment(self.gpus[number], len(self.gpus))
            self._workers[number] = Worker([sys.executable, "-m", WORKER_MODULE], self._job, environment)
        return self._workers[number]

    def _timeout(self, chunk: Chunk) -> float:
        """Seconds for a chunk: `engine.patience`, more for a chunk above `MAX_CHUNK_TOKENS`."""
        return min(self.settings.patience * max(1.0, chunk.tokens / MAX_CHUNK_TOKENS), threading.TIMEOUT_MAX)

    def _retry(self, queue: ChunkQueue, chunk: Chunk, message: str, method: str, batch: Sequence[Prompt]) -> None:
        """Put the chunk of a lost worker back, or stop the queue after `MAX_ATTEMPTS`."""
        if queue.error is not None:
            return
        chunk.attempts += 1
        if chunk.attempts < MAX_ATTEMPTS:
            print(f"{message}: another worker takes its {len(batch)} prompts", flush=True)
            queue.put_back(chunk)
            return
        longest = max(map(len, batch), default=0)
        queue.stop(
            RuntimeError(
                f"{message}; {MAX_ATTEMPTS} workers were lost on these {len(batch)} prompts ({method}, the longest of "
                f"{longest} tokens, model {self.folder}): its last lines are above; if it was only slow, raise "
                f"engine.patience"
            )
        )

    def _kill_until_idle(self, threads: Sequence[threading.Thread]) -> None:
        """Kill workers until no thread runs: one may be starting a worker just now."""
        while True:
            for worker in list(self._workers.values()):
                worker.kill()
            if not any(thread.is_alive() for thread in threads):
                self._workers.clear()
                return
            time.sleep(0.05)


class WorkerLostError(Exception):
    """A worker ended without an answer; the message says how."""


class Worker:
    """A process that answers one request at a time, and leads its own process group."""

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
                process_group=0,  # but the same session: whoever ends that ends the workers too
            )
        finally:
            theirs.close()

    def ask(self, request: tuple[str, tuple[Any, ...]], seconds: float) -> tuple[str, Any]:
        """The reply. Raises WorkerLostError where the process ends first; after `seconds` it is killed."""
        timer = threading.Timer(seconds, self._expire)  # a timer: also send() may block, when the process is stopped
        timer.daemon = True
        timer.start()
        self.busy = True
        try:
            self.connection.send(request)
            while not self.connection.poll(POLL_SECONDS):
                if self.late or self.has_ended():
                    raise EOFError
            reply: tuple[str, Any] = self.connection.recv()
        except (EOFError, OSError) as error:
            end = f"gave no answer for {seconds:g} s and was killed" if self.late else f"ended ({self._end_code()})"
            raise WorkerLostError(end) from error
        finally:
            timer.cancel()
        self.busy = False
        return reply

    def has_ended(self) -> bool:
        """Whether the process has ended; its exit code is not collected, so its process id stays reserved."""
        with self._lock:
            if self.process.returncode is not None:
                return True
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def ask_to_end(self) -> None:
        """Tell the process to end; a busy one is killed."""
        if self.busy:
            self.kill()
            return
        with suppress(OSError):
            self.connection.send(None)

    def finish(self, deadline: float) -> None:
        """Wait for its end, at most until `deadline` (time.monotonic()), then kill what is left of its group."""
        while not self.has_ended() and time.monotonic() < deadline:
            time.sleep(0.02)
        self.kill()
        self.connection.close()

    def kill(self) -> None:
        """Kill the process and all that it started."""
        with self._lock:
            if self.process.returncode is None:
                with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                    os.killpg(self.process.pid, signal.SIGKILL)
                    self.process.wait(KILL_TIMEOUT)

    def _expire(self) -> None:
        self.late = True
        self.kill()

    def _end_code(self) -> str:
        """How the process ended, in words."""
        self.kill()
        code = self.process.returncode
        return f"killed by {signal.Signals(-code).name}" if code and code < 0 else f"exit code {code}"


def end_workers(workers: dict[int, Worker]) -> None:
    """End all workers in parallel."""
    for worker in workers.values():
        worker.ask_to_end()
    deadline = time.monotonic() + CLOSE_TIMEOUT
    for worker in workers.values():
        worker.finish(deadline)
    workers.clear()


def assign_gpus(gpus: Sequence[str], workers: int | None, each: int) -> list[list[str]]:
    """The GPUs of every worker, `each` of them; workers share GPUs where there are too few. Without GPUs empty lists.

    workers: None for as many as the GPUs suffice for, 0 without a GPU.
    """
    if workers is None:
        workers = max(1, len(gpus) // each) if gpus else 0
    if not gpus:
        return [[] for _ in range(workers)]
    assigned = ([gpus[(number * each + i) % len(gpus)] for i in range(each)] for number in range(workers))
    return [list(dict.fromkeys(own)) for own in assigned]


def list_visible_gpus() -> list[str]:
    """The GPUs that this process sees, by their names in CUDA_VISIBLE_DEVICES."""
    import torch

    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",")[:count] if names else [str(number) for number in range(count)]


def make_environment(gpus: Sequence[str], workers: int) -> dict[str, str]:
    """A worker's environment: its GPUs, or without any its share of the cores, and the same `kaggle_llm` as here."""
    variables = {name: value for name, value in os.environ.items() if WORKER_VARIABLES.match(name)}
    source = str(Path(kaggle_llm.__file__).parents[1])
    path = [part for part in variables.get("PYTHONPATH", "").split(os.pathsep) if part and part != source]
    variables |= OFFLINE_VARIABLES | {"PYTHONPATH": os.pathsep.join([source, *path])}
    if gpus:
        return variables | {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    cores = int(variables.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))
    variables["OMP_NUM_THREADS"] = str(max(1, cores // workers))
    if workers > 1:
        variables.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # else every vLLM takes the same cores
    return variables


def _rename_index(error: BaseException, chunk: Chunk) -> BaseException:
    """The error with the prompt's index in the caller's list instead of the one in its chunk."""
    if isinstance(error, LengthError):
        error.index = chunk.indices[error.index]
        error.args = (error.index, *error.args[1:])
    return error


def _concatenate(answers: Sequence[tuple[Chunk, Any]]) -> np.ndarray:
    """The arrays of all chunks as one, in the caller's order."""
    import numpy as np

    joined = np.concatenate([answer for _, answer in answers])
    ordered = np.empty_like(joined)
    ordered[[index for chunk, _ in answers for index in chunk.indices]] = joined
    return ordered


def _in_order(answers: Sequence[tuple[Chunk, Any]]) -> list[Any]:
    """The lists of all chunks as one, in the caller's order."""
    by_index = {index: item for chunk, answer in answers for index, item in zip(chunk.indices, answer, strict=True)}
    return [by_index[index] for index in range(len(by_index))]
