"""A pool of workers answers as one engine does, whatever becomes of the workers, and leaves no process behind."""

import gc
import json
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from kaggle_llm.engines.engine import Engine, EngineSettings, LengthError, NonFiniteError, Sampling
from kaggle_llm.engines.maker import count_gpus_per_model, make_engine
from kaggle_llm.engines.pool import (
    MAX_ATTEMPTS,
    WORKER_MODULE,
    Worker,
    WorkerLostError,
    WorkerPool,
    assign_gpus,
    make_environment,
)
from kaggle_llm.engines.worker import make_portable

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("fast_python")]
INTERPRETER = sys.executable  # where the process itself is tested
LABELS = [[266], [265], [300]]
SAMPLED = Sampling(max_tokens=6, temperature=1.0, n=2, seed=3)
LONG = Sampling(max_tokens=120)
Rows = list[list[int]]


def tokens(seed: int, length: int) -> list[int]:
    return random.Random(seed).choices(range(6, 567), k=length)


def make_prompts(count: int = 90) -> Rows:
    """Of many lengths, some with a beginning that others share, in no order."""
    rows = [tokens(seed, 1 + 3 * seed % 50) for seed in range(count // 2)]
    rows += [[*tokens(query, 40), *tokens(100 + query, 5 + query % 7)] for query in range(count - len(rows))]
    random.Random(0).shuffle(rows)
    return rows


def workers_of(pid: int) -> list[psutil.Process]:
    """The worker processes that a process has started, the oldest first."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        try:
            if WORKER_MODULE in child.cmdline() and child.status() != psutil.STATUS_ZOMBIE:
                found.append(child)
        except psutil.NoSuchProcess:
            continue
    return sorted(found, key=lambda process: process.create_time())


def wait_until(holds: Callable[[], Any], seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := holds():
            return found
        time.sleep(0.01)
    raise TimeoutError(f"not within {seconds} s")


def gone(pids: Sequence[int]) -> bool:
    return not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in pids)


@pytest.fixture(scope="module")
def engine(pico_llm: Path) -> Engine:
    return make_engine(pico_llm, EngineSettings(workers=0))


@pytest.fixture(scope="module")
def pool(pico_llm: Path) -> Iterator[WorkerPool]:
    """Two workers, started; tests may kill them."""
    made = make_engine(pico_llm, EngineSettings(workers=2))
    assert isinstance(made, WorkerPool)
    made.choices(make_prompts(), LABELS)
    before = {worker.pid for worker in workers_of(os.getpid())}
    assert len(before) == 2
    yield made
    pids = [worker.pid for worker in workers_of(os.getpid())]
    made.close()
    assert gone(pids), "close() left a worker"
    assert workers_of(os.getpid()) == []


# the same answers ----------------------------------------------------------------------------------------------


def test_choices_are_those_of_one_engine_in_the_order_given(engine: Engine, pool: WorkerPool) -> None:
    prompts = make_prompts()
    found = pool.choices(prompts, LABELS)
    np.testing.assert_allclose(found, engine.choices(prompts, LABELS), atol=1e-5, rtol=0)
    np.testing.assert_allclose(pool.choices(prompts[::-1], LABELS)[::-1], found, atol=1e-5, rtol=0)
    assert found.std() > 0.1  # else agreement would say little


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=6), SAMPLED], ids=["greedy", "sampled"])
def test_completions_are_those_of_one_engine_and_do_not_depend_on_the_chunks(
    engine: Engine, pool: WorkerPool, sampling: Sampling
) -> None:
    prompts = make_prompts()
    found = pool.generate(prompts, sampling)
    assert found == engine.generate(prompts, sampling)
    assert pool.generate(prompts[50:], sampling) == found[50:]


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one_prompt_are_answered_as_by_one_engine(engine: Engine, pool: WorkerPool, count: int) -> None:
    prompts = make_prompts()[:count]
    found = pool.choices(prompts, LABELS)
    assert found.shape == (count, 3)
    np.testing.assert_allclose(found, engine.choices(prompts, LABELS), atol=1e-5, rtol=0)
    assert pool.generate(prompts, SAMPLED) == engine.generate(prompts, SAMPLED)


def test_vectors_are_those_of_one_engine_and_a_pool_that_is_forgotten_ends_its_worker(pico_encoder: Path) -> None:
    prompts = [[token % 100 + 5 for token in row] for row in make_prompts(40)]
    before = {worker.pid for worker in workers_of(os.getpid())}
    workers = make_engine(pico_encoder, EngineSettings(workers=1))
    expected = make_engine(pico_encoder, EngineSettings(workers=0)).embed(prompts)
    np.testing.assert_allclose(workers.embed(prompts), expected, atol=1e-5, rtol=0)
    assert workers.embed([]).shape == (0, expected.shape[1])
    assert expected.std() > 0.1
    assert len({worker.pid for worker in workers_of(os.getpid())} - before) == 1
    del workers
    gc.collect()
    assert {worker.pid for worker in workers_of(os.getpid())} == before


def test_logits_of_a_head_are_those_of_one_engine_and_refused_where_they_are_no_numbers(
    pico_llm: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForTokenClassification

    torch.manual_seed(0)
    model = LlamaForTokenClassification(AutoConfig.from_pretrained(pico_llm, num_labels=3))
    model.model.embed_tokens.weight.data[5] = float("nan")  # no other prompt has this token
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(pico_llm).save_pretrained(tmp_path)
    prompts = make_prompts(40)
    workers = make_engine(tmp_path, EngineSettings(workers=1))
    found, expected = workers.logits(prompts), make_engine(tmp_path, EngineSettings(workers=0)).logits(prompts)
    assert [row.shape for row in found] == [(len(prompt), 3) for prompt in prompts]
    for row, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(row, other, atol=1e-5, rtol=0)
    assert workers.logits([]) == []
    with pytest.raises(NonFiniteError, match=re.escape(f"{tmp_path} gave 6 non-finite of 6 scores")) as refused:
        workers.logits([[5, 7]])
    assert refused.value.bad == 6
    workers.close()


# workers that are lost -----------------------------------------------------------------------------------------


class Answering(threading.Thread):
    """A call in a thread of its own, for tests that disturb it."""

    def __init__(self, ask: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.ask, self.found, self.error = ask, None, None
        self.start()

    def run(self) -> None:
        try:
            self.found = self.ask()
        except Exception as error:
            self.error = error

    def result(self) -> Any:
        self.join(110)
        assert not self.is_alive(), "the call never ended"
        if self.error is not None:
            raise self.error
        return self.found


@pytest.mark.parametrize("lost", [pytest.param(1, marks=pytest.mark.slow), 2], ids=["one", "both"])
def test_killed_workers_are_replaced_and_nothing_is_missing(
    engine: Engine, pool: WorkerPool, lost: int, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = make_prompts()
    pool.generate(prompts[:40], Sampling(max_tokens=1))  # both are there
    before = workers_of(os.getpid())
    call = Answering(lambda: pool.generate(prompts, LONG))
    wait_until(lambda: all(worker.busy for worker in pool._workers.values()))
    for worker in before[:lost]:
        os.killpg(worker.pid, signal.SIGKILL)
    assert call.result() == engine.generate(prompts, LONG)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == lost
    for line in lines:
        assert re.fullmatch(
            r"worker \d of pico-llm ended \(killed by SIGKILL\): another worker takes its \d+ prompts", line
        )
    pool.choices(prompts, LABELS)
    after = workers_of(os.getpid())
    assert len(after) == 2
    assert len({worker.pid for worker in after} - {worker.pid for worker in before}) == lost


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced(
    engine: Engine, pico_llm: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = make_prompts()
    known = {worker.pid for worker in workers_of(os.getpid())}
    pool = make_engine(pico_llm, EngineSettings(workers=1))
    with monkeypatch.context() as itself:
        itself.setattr(sys, "executable", INTERPRETER)  # to be stopped
        pool.generate(prompts[:40], Sampling(max_tokens=1))
    (hanging,) = (worker for worker in workers_of(os.getpid()) if worker.pid not in known)
    with monkeypatch.context() as short:
        short.setattr(pool, "settings", replace(pool.settings, patience=4.0))
        hanging.suspend()
        call = Answering(lambda: pool.generate(prompts, SAMPLED))
        wait_until(lambda: gone([hanging.pid]))  # from here on a start may take its time
    assert call.result() == engine.generate(prompts, SAMPLED)
    assert "gave no answer for 4 s and was killed: another worker takes its" in capsys.readouterr().out
    pool.close()


def test_prompts_that_take_down_every_worker_are_named(pico_llm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    workers = make_engine(pico_llm, EngineSettings(workers=1))
    known = {worker.pid for worker in workers_of(os.getpid())}
    killed: list[int] = []
    call = Answering(lambda: workers.choices([tokens(0, 7), tokens(1, 70)], LABELS))
    while call.is_alive():
        for worker in workers_of(os.getpid()):
            if worker.pid not in {*known, *killed}:
                worker.kill()
                killed.append(worker.pid)
        time.sleep(0.01)
    expected = (
        f"worker 0 of pico-llm ended (killed by SIGKILL); 3 workers were lost on these 2 prompts "
        f"(choices, the longest of 70 tokens, model {pico_llm})"
    )
    with pytest.raises(RuntimeError, match=re.escape(expected)):
        call.result()
    assert len(killed) == MAX_ATTEMPTS
    assert len(capsys.readouterr().out.splitlines()) == MAX_ATTEMPTS - 1
    assert gone(killed)


# exceptions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1025])
def test_a_prompt_that_is_empty_or_too_long_is_named_by_the_callers_index(pool: WorkerPool, length: int) -> None:
    prompts = make_prompts()
    prompts[61] = tokens(0, length)
    for ask in (lambda: pool.choices(prompts, [[266]]), lambda: pool.generate(prompts, LONG)):
        with pytest.raises(ValueError, match=f"^prompt 61 has {length} tokens, .*pico-llm takes 1 "):
            ask()


def test_what_an_engine_raises_is_raised_here_and_the_workers_go_on(engine: Engine, pool: WorkerPool) -> None:
    before = {worker.pid for worker in workers_of(os.getpid())}
    prompts = make_prompts()
    for ask in (lambda one: one.choices(prompts, [[266], []]), lambda one: one.logits(prompts)):
        with pytest.raises(ValueError) as expected:
            ask(engine)
        with pytest.raises(ValueError) as found:
            ask(pool)
        assert str(found.value) == str(expected.value)
        assert type(found.value) is type(expected.value)
        assert any("in the worker:" in note for note in found.value.__notes__)
    assert pool.choices(prompts, LABELS).shape == (len(prompts), 3)
    assert {worker.pid for worker in workers_of(os.getpid())} == before


class Stubborn(Exception):
    """It cannot be pickled."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__("said")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (LengthError(3, 0, 9, Path("m")), LengthError, "prompt 3 has 0 tokens, m takes 1 to 9: set prompt.budgets"),
        (NonFiniteError(Path("m"), 1, 2), NonFiniteError, "model m gave 1 non-finite of 2 scores"),
        (FileNotFoundError(2, "No such file", "m"), FileNotFoundError, "[Errno 2] No such file: 'm'"),
        (Stubborn(1, 2), RuntimeError, "Stubborn: said"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_an_exception_leaves_the_worker_as_it_is_or_in_words(error: Exception, kind: type, text: str) -> None:
    try:
        raise error from ValueError("the cause")
    except Exception as raised:
        found = pickle.loads(pickle.dumps(make_portable(raised)))
    assert type(found) is kind
    assert str(found).startswith(text)
    assert "the cause" in found.__notes__[0]


def test_an_adapter_without_its_base_is_refused_before_a_worker_starts(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match="an adapter without its base"):
        make_engine(tmp_path, EngineSettings(workers=2))


# no process is left --------------------------------------------------------------------------------------------

PARENT = """
import os, sys
from pathlib import Path
from kaggle_llm.engines.engine import EngineSettings, Sampling
from kaggle_llm.engines.maker import make_engine

def main():
    engine = make_engine(Path(sys.argv[1]), EngineSettings(workers=int(sys.argv[2])))
    prompts = [[7 + i, 8, 9] for i in range(64)]
    if sys.argv[3] == "warm":
        engine.generate(prompts, Sampling(max_tokens=1))
    print("asking", flush=True)
    try:
        engine.generate(prompts, Sampling(max_tokens=900))
    except KeyboardInterrupt:
        import psutil
        print("left", len(psutil.Process().children(recursive=True)), flush=True)

if __name__ == "__main__":
    main()
"""


def start_parent(folder: Path, workers: int, state: str) -> tuple["subprocess.Popen[str]", list[psutil.Process]]:
    """A process in the middle of a long call of its pool, and its workers."""
    command = [INTERPRETER, "-c", PARENT, str(folder), str(workers), state]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "asking\n"
    found = wait_until(lambda: len(now := workers_of(parent.pid)) == workers and now)
    return parent, found


@pytest.mark.slow
def test_no_worker_outlives_a_parent_that_is_killed_in_a_call(pico_llm: Path) -> None:
    parent, workers = start_parent(pico_llm, 1, "warm")
    try:
        time.sleep(0.5)
        assert not gone([workers[0].pid])
        parent.kill()
        parent.wait()
        wait_until(lambda: gone([workers[0].pid]), 10)
    finally:
        parent.kill()
        parent.wait()


def test_an_interrupt_ends_the_workers_at_once(pico_llm: Path) -> None:
    parent, workers = start_parent(pico_llm, 2, "cold")
    parent.send_signal(signal.SIGINT)
    out, _ = parent.communicate(timeout=60)
    assert out == "left 0\n"
    assert gone([worker.pid for worker in workers])


CHILD = """
import json, subprocess, sys
child = subprocess.Popen(["sleep", "1000"])
print(child.pid, flush=True)
from kaggle_llm.engines import worker
worker.main(int(sys.argv[1]), json.loads(sys.argv[2]))
"""


def start_worker(code: str) -> Worker:
    job = json.dumps({"folder": "absent", "base": None, "settings": {}})
    return Worker([INTERPRETER, "-c", code], job, make_environment([], 1))


@pytest.mark.parametrize("how", ["parent", "kill", "end"])
def test_what_a_worker_started_ends_with_it(how: str) -> None:
    worker = start_worker(CHILD)
    (child,) = wait_until(psutil.Process(worker.process.pid).children)
    if how == "parent":  # its connection ends
        worker.connection.close()
    elif how == "kill":
        worker.kill()
    else:
        worker.ask_to_end()
        worker.finish(time.monotonic() + 30)
        assert worker.process.returncode == 0 or worker.process.returncode == -signal.SIGKILL
    wait_until(lambda: gone([child.pid]), 20)
    wait_until(worker.has_ended, 20)
    worker.kill()


ENGINE_PROCESS = """
import json, multiprocessing, sys, time
multiprocessing.get_context("fork").Process(target=time.sleep, args=(1000,), name="core").start()
from kaggle_llm.engines import worker
worker.main(int(sys.argv[1]), json.loads(sys.argv[2]))
"""


@pytest.mark.parametrize("sent", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_worker_ends_where_a_process_of_its_engine_is_killed(
    sent: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    worker = start_worker(ENGINE_PROCESS)
    (child,) = wait_until(psutil.Process(worker.process.pid).children)
    time.sleep(3)  # the worker looks once a second
    assert not worker.has_ended()
    child.send_signal(sent)
    if sent == signal.SIGKILL:
        wait_until(worker.has_ended, 20)
        assert "core, a process that worker" in capfd.readouterr().err
    else:  # as an engine ends its own
        time.sleep(3)
        assert not worker.has_ended()
    worker.kill()


def test_a_worker_that_takes_no_request_is_killed_in_time() -> None:
    worker = start_worker("import time; time.sleep(1000)")
    start = time.monotonic()
    request = ("choices", ([[7] * 100_000] * 20, [[7]]))  # more than the connection holds
    with pytest.raises(WorkerLostError, match="gave no answer for 2 s and was killed"):
        worker.ask(request, 2.0)
    assert time.monotonic() - start < 10
    assert worker.has_ended()


def test_a_worker_that_cannot_start_says_its_exit_code() -> None:
    with pytest.raises(WorkerLostError, match=r"ended \(exit code 7\)"):
        start_worker("raise SystemExit(7)").ask(("choices", ([[7]], [[7]])), 60.0)


# settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpus", "workers", "each", "expected"),
    [
        ([], None, 1, []),
        ([], 0, 1, []),
        ([], 2, 1, [[], []]),
        (["0"], None, 1, [["0"]]),
        (["0", "1"], None, 1, [["0"], ["1"]]),
        (["0", "1"], None, 2, [["0", "1"]]),
        (["4", "6", "7"], None, 2, [["4", "6"]]),
        (["0", "1"], 0, 1, []),
        (["0", "1"], 1, 1, [["0"]]),
        (["0", "1"], 4, 1, [["0"], ["1"], ["0"], ["1"]]),
        (["0"], None, 2, [["0"]]),  # too few for the model: vLLM says so
    ],
)
def test_every_worker_has_its_gpus(gpus: list[str], workers: int | None, each: int, expected: Any) -> None:
    assert assign_gpus(gpus, workers, each) == expected


def test_a_model_takes_as_many_gpus_as_vllm_spreads_it_over() -> None:
    assert count_gpus_per_model({}) == 1
    assert count_gpus_per_model({"tensor_parallel_size": 2, "max_model_len": 7}) == 2


def test_a_worker_is_told_what_it_needs_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    import kaggle_llm

    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "HF_TOKEN", "KAGGLE_KEY"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "6")
    monkeypatch.setenv("NCCL_P2P_DISABLE", "1")
    monkeypatch.setenv("PYTHONPATH", "a:b")
    found = make_environment([], 2)
    assert not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID", "HF_TOKEN", "KAGGLE_KEY"} & set(found)
    assert found["PATH"] == os.environ["PATH"]
    assert found["NCCL_P2P_DISABLE"] == found["HF_HUB_OFFLINE"] == found["TRANSFORMERS_OFFLINE"] == "1"
    assert found["PYTHONPATH"] == f"{Path(kaggle_llm.__file__).parents[1]}:a:b"
    assert found["OMP_NUM_THREADS"] == "3"
    with_gpus = make_environment(["4", "6"], 2)
    assert with_gpus["CUDA_VISIBLE_DEVICES"] == "4,6"
    assert with_gpus["OMP_NUM_THREADS"] == "6"


@pytest.mark.parametrize("given", [{"workers": -1}, {"patience": 0.0}, {"patience": float("nan")}])
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be 0 or more, and above 0"):
        EngineSettings(**given)
