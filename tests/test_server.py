"""The predict server behind a gateway as strict as Kaggle's: exactly the rows asked for, never late, never an error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from arithmetic import NAME, PREDICT, SHOTS, make_bundle, make_competition, make_config, make_problems, sample_of
from gateway import Gateway, InferenceServer, SubmissionError
from workspace import ROOT

from kaggle_llm.kaggle.predict import Mounts
from kaggle_llm.kaggle.server import PredictServer, ServerSettings, fit_answer, read_call

pytestmark = pytest.mark.usefixtures("fast_python")
INTERPRETER = sys.executable  # where the process itself is tested
SMALL_MODEL = ROOT / "input" / "models" / "SmolLM2-135M-Instruct"

TRAPS = '''"""The number of words; without a model, and with traps."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from kaggle_llm.competition.competition import CompetitionSettings
from kaggle_llm.kaggle.server import ServerSettings
from kaggle_llm.competition.rankings import make_ranking


@dataclass
class Config:
    competition: CompetitionSettings
    server: ServerSettings = field(default_factory=ServerSettings)


def load(run: Any) -> str:
    wanted = os.environ.get("TEST_LOADING", "0")
    print("loading", flush=True)
    if wanted == "crash":
        os._exit(3)
    if wanted.startswith("/"):
        while not os.path.exists(wanted):
            time.sleep(0.05)
        return wanted
    time.sleep(float(wanted))
    return wanted


def score(rows: Any, loaded: str, run: Any) -> Any:
    texts = rows["problem"].to_list()
    ranking = make_ranking(rows["id"].to_list(), [[str(len(text.split()))] for text in texts], [[1.0]] * len(texts))
    trap = texts[0].split()[0] if texts[0] else ""
    if trap == "Offer":
        run.offer(ranking)
    if trap == "Start":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        print("child", child.pid, flush=True)
    if trap in ("Hang", "Offer", "Start"):
        time.sleep(600)
    if trap == "Crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if trap == "Exit":
        sys.exit(1)
    if trap == "Raise":
        raise ArithmeticError("three is not a crowd")
    if trap == "Slow":
        time.sleep(run.budget.left() - 0.05)
    if trap == "Lose":
        return ranking.head(0)
    if trap in ("Nothing", "Words"):
        return make_ranking(rows["id"].to_list(), [["many"] if trap == "Words" else []], [[1.0] * (trap == "Words")])
    return ranking
'''


def table(*problems: str) -> pl.DataFrame:
    return pl.DataFrame({"id": [f"h{at}" for at in range(len(problems))], "problem": list(problems)})


@pytest.fixture(scope="module")
def trapped(tmp_path_factory: pytest.TempPathFactory, pico_llm: Path) -> Mounts:
    """A bundle whose prediction has traps; it starts in a second or two."""
    root = tmp_path_factory.mktemp("trapped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAGGLE_LLM_ROOT", str(root))
        code, model = make_bundle(root, pico_llm, f"competition: {{name: {NAME}}}\n", TRAPS)
    competition = make_competition(root / "input" / NAME, make_problems(4, seed=0))
    return Mounts(code, competition, {model.parent.name: model}, root, 0.0)


Start = Callable[..., PredictServer]


@pytest.fixture
def start(trapped: Mounts, tmp_path: Path) -> Iterator[Start]:
    """start(limit=…, **settings) → a server on the trapped bundle, closed with the test."""
    servers: list[PredictServer] = []

    def make(limit: float = 3600.0, **settings: Any) -> PredictServer:
        mounts = Mounts(trapped.bundle, trapped.competition, trapped.model_folders, tmp_path, time.time() + limit)
        servers.append(PredictServer(mounts, ServerSettings(**settings)))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def ask(server: PredictServer, *problems: str) -> list[int]:
    """The answers to single calls, in the order asked."""
    rows = table(*problems)
    return [server.predict(rows[at : at + 1], sample_of(rows)[at : at + 1])["answer"][0] for at in range(rows.height)]


def through_gateway(
    server: PredictServer, rows: pl.DataFrame, folder: Path, timeout: float, by_column: bool = False
) -> Gateway:
    """All rows over the socket, as Kaggle does; the submission is gateway.answers."""
    gateway = Gateway(rows, sample_of(rows), start_limit=5, response_timeout=timeout, by_column=by_column)
    InferenceServer(server.predict).serve_in_background(str(folder / "socket"))
    gateway.answers = gateway.run(str(folder / "socket"))  # type: ignore[attr-defined]
    return gateway


# the stand-in is strict -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda sample: None, "INVALID_SUBMISSION: None"),
        (lambda sample: pl.concat([sample, sample]), "INVALID_SUBMISSION: 2 rows, 1 asked"),
        (lambda sample: sample.head(0), "INVALID_SUBMISSION: 0 rows"),
        (lambda sample: sample.rename({"answer": "value"}), "INVALID_SUBMISSION: columns"),
        (lambda sample: 1 / 0, "SERVER_RAISED_EXCEPTION: ZeroDivisionError"),
        (lambda sample: time.sleep(2), "TIMEOUT"),
    ],
)
def test_the_stand_in_ends_what_kaggle_ends(tmp_path: Path, answer: Callable[..., Any], reason: str) -> None:
    rows = table("one", "two", "three")
    calls: list[str] = []

    def predict(row: pl.DataFrame, sample_submission: pl.DataFrame) -> Any:
        calls.append(row["id"][0])
        return answer(sample_submission) if len(calls) > 1 else 7

    InferenceServer(predict).serve_in_background(str(tmp_path / "socket"))
    with pytest.raises(SubmissionError, match=reason):
        Gateway(rows, sample_of(rows), response_timeout=0.5).run(str(tmp_path / "socket"))
    assert len(calls) == 2


def test_the_stand_in_overwrites_ids_shuffles_rows_and_calls_off_the_main_thread(tmp_path: Path) -> None:
    rows = table(*"abcdefgh")
    threads = set()

    def predict(row: pl.DataFrame, sample_submission: pl.DataFrame) -> pl.DataFrame:
        threads.add(threading.current_thread())
        assert row["id"].to_list() == sample_submission["id"].to_list()
        return pl.DataFrame({"id": ["mine"], "answer": [ord(row["problem"][0])]})

    InferenceServer(predict).serve_in_background(str(tmp_path / "socket"))
    found = Gateway(rows, sample_of(rows)).run(str(tmp_path / "socket"))
    assert found["id"].to_list() != rows["id"].to_list() == sorted(found["id"])
    assert found.sort("id")["answer"].to_list() == [ord(letter) for letter in "abcdefgh"]
    assert len(threads) == 1 and threading.main_thread() not in threads


def test_the_stand_in_wants_a_name_and_a_listener(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a name"):
        InferenceServer(lambda row, sample_submission: row)
    with pytest.raises(SubmissionError, match="SERVER_NEVER_STARTED"):
        Gateway(table("a"), sample_of(table("a")), start_limit=0.1).run(str(tmp_path / "nobody"))


# rows back --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cells", "dtype", "fallback", "expected", "filled"),
    [
        (["1", "2"], pl.Int64, None, [1, 2], 0),
        (["1", None], pl.Int64, None, [1, 50], 1),
        (["1.5", "many"], pl.Int64, "0", [0, 0], 2),
        (["1.5", "nan"], pl.Float64, None, [1.5, 50.0], 1),
        (["inf", "-inf"], pl.Float64, "0.5", [0.5, 0.5], 2),
        (["A B", None], pl.String, "C", ["A B", "C"], 1),
        (["99999999999999999999", "3"], pl.Int64, "no number", [50, 3], 1),
    ],
)
def test_a_cell_that_does_not_fit_is_the_fallback(
    cells: list[str | None], dtype: Any, fallback: str | None, expected: list[Any], filled: int
) -> None:
    """The sample submission says 50 everywhere. Answers come in another order, with one that was not asked for."""
    sample = pl.DataFrame({"id": [8, 3], "value": [50, 50]}).with_columns(pl.col("value").cast(dtype))
    found = pl.DataFrame({"id": ["9", "3", "8"], "value": ["7", *cells[::-1]]}, schema_overrides={"value": pl.String})
    answer, spare = fit_answer(found, sample, fallback)
    assert answer.schema == sample.schema and answer["id"].to_list() == [8, 3]
    assert answer["value"].to_list() == expected
    assert spare == filled


def test_a_row_with_one_bad_cell_of_several_is_all_fallback() -> None:
    sample = pl.DataFrame({"id": ["a", "b"], "x": [0.5, 0.5], "y": [0.25, 0.25]})
    found = pl.DataFrame({"id": ["a", "b"], "x": ["0.1", "0.2"], "y": ["0.9", None]})
    answer, spare = fit_answer(found, sample, None)
    assert spare == 1 and answer.rows() == [("a", 0.1, 0.9), ("b", 0.5, 0.25)]


@pytest.mark.parametrize("name", ["id", "row_key"])
def test_ids_are_the_first_column_of_the_test_file_where_the_sample_calls_them_otherwise(name: str) -> None:
    sample = pl.DataFrame({"id": ["s"], "answer": [7]})
    columns = [pl.Series("problem", ["what?"]), pl.Series(name, ["k1"])]
    rows, empty = read_call(columns[::-1], [name, "problem"], sample)
    assert rows.rows(named=True) == [{name: "k1", "problem": "what?"}]
    assert empty.rows(named=True) == [{"id": "k1", "answer": 7}]


@pytest.mark.parametrize("found", [None, pl.DataFrame({"id": ["a"], "other": ["1"]}), pl.DataFrame()])
def test_without_an_answer_there_is_the_sample(found: pl.DataFrame | None) -> None:
    sample = pl.DataFrame({"id": ["a", "b"], "x": [1, 2]})
    answer, spare = fit_answer(found, sample, None)
    assert answer.equals(sample) and spare == 2


def test_a_sample_with_empty_cells_needs_a_fallback(trapped: Mounts, tmp_path: Path) -> None:
    (tmp_path / "sample_submission.csv").write_text("id,answer\nt000,\n")
    with pytest.raises(ValueError, match=r"empty cells in \['answer'\]: set server.fallback"):
        PredictServer(Mounts(trapped.bundle, tmp_path, {}, tmp_path, 0.0), ServerSettings())


@pytest.mark.parametrize("settings", [{"rows": 0}, {"call_seconds": 0}, {"load_seconds": float("nan")}])
def test_settings_without_time_or_rows_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        ServerSettings(**settings)


# behind the gateway -----------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_rows_that_hang_crash_or_raise_get_the_fallback_and_no_other_row_does(start: Start, tmp_path: Path) -> None:
    traps = ("Hang", "Crash", "Exit", "Raise", "Lose", "Nothing", "Words")
    rows = table("one two three", *(f"{trap} here" for trap in traps), "four", "five six", 'a "b", c\nd 🙂', "seven")
    server = start(call_seconds=6, fallback="-1")
    gateway = through_gateway(server, rows, tmp_path, timeout=7)
    answers = dict(gateway.answers.rows())  # type: ignore[attr-defined]
    assert gateway.answers.schema == sample_of(rows).schema  # type: ignore[attr-defined]
    expected = [3, *[-1] * len(traps), 1, 2, 5, 1]
    assert [answers[row] for row in rows["id"]] == expected
    assert server.fallbacks == len(traps) and server.rows == rows.height
    log = (tmp_path / "server.log").read_text()
    assert "ArithmeticError: three is not a crowd" in log and "SystemExit" in log and "1 rows asked" in log
    assert ask(server, "eight") == [1]
    log = (tmp_path / "server.log").read_text()
    assert log.count("loading") == 3, "made anew after the hang and the crash only"


@pytest.mark.timeout(60)
def test_a_gateway_may_hand_out_the_columns_of_a_row(start: Start, tmp_path: Path) -> None:
    """As predict(id, problem), each a Series with a name or without, or a frame of one column."""
    server, rows = start(fallback="-1"), table("one two three", "four")
    gateway = through_gateway(server, rows, tmp_path, timeout=30, by_column=True)
    assert dict(gateway.answers.rows()) == {"h0": 3, "h1": 1}  # type: ignore[attr-defined]
    nameless = [pl.Series(["n"]), pl.Series(["two words"])]
    frames = [pl.DataFrame({"id": ["f"]}), pl.DataFrame({"problem": ["and three words"]})]
    assert [server.predict(*columns).rows() for columns in (nameless, frames)] == [[("n", 2)], [("f", 3)]]
    assert server.fallbacks == 0


@pytest.mark.timeout(60)
def test_a_call_of_another_kind_gets_the_fallback(start: Start) -> None:
    server = start(fallback="-1")
    calls = [(), ("h0", "one two"), (pl.Series("id", ["a"]),), (pl.DataFrame({"x": [1]}),) * 2]
    for number, tables in enumerate(calls, 1):
        assert server.predict(*tables)["answer"].to_list() == [-1] and server.fallbacks == number
        assert ask(server, "and on we go") == [4]


@pytest.mark.timeout(60)
def test_an_id_that_is_no_number_may_come_late_in_the_sample(trapped: Mounts, start: Start) -> None:
    sample = trapped.competition / "sample_submission.csv"
    before = sample.read_text()
    ids = [*map(str, range(300)), "7f"]
    sample.write_text("id,answer\n" + "".join(f"{row},0\n" for row in ids))
    try:
        server = start(fallback="-1")
        assert server.predict(pl.Series("id", ["7f"]), pl.Series("problem", ["two words"])).rows() == [("7f", 2)]
    finally:
        sample.write_text(before)


@pytest.mark.timeout(60)
def test_what_was_offered_before_a_kill_is_the_answer(start: Start) -> None:
    server = start(call_seconds=1.5, fallback="-1")
    assert ask(server, "Offer me three", "Hang on") == [3, -1]
    assert server.fallbacks == 1


@pytest.mark.timeout(60)
def test_a_killed_worker_takes_its_children_along(start: Start, tmp_path: Path) -> None:
    ask(start(call_seconds=2), "Start a child")
    (line,) = [line for line in (tmp_path / "server.log").read_text().splitlines() if line.startswith("child")]
    assert ends(int(line.split()[1]))


@pytest.mark.timeout(60)
def test_a_batch_comes_back_whole_and_in_order(start: Start) -> None:
    rows = table("one", "two words", "word " * 50_000, "").reverse()
    answer = start().predict(rows, sample_of(rows))
    assert answer.rows() == [("h3", 0), ("h2", 50_000), ("h1", 2), ("h0", 1)]


@pytest.mark.timeout(60)
def test_a_worker_that_raises_again_and_again_is_made_anew(start: Start, tmp_path: Path) -> None:
    server = start(fallback="-1")
    assert ask(server, *["Raise it"] * 3, "and on we go") == [-1, -1, -1, 4]
    assert (tmp_path / "server.log").read_text().count("loading") == 2


@pytest.mark.timeout(60)
def test_a_process_that_ends_between_two_calls_costs_no_row(start: Start) -> None:
    server = start(fallback="-1")
    assert ask(server, "one") == [1]
    worker = server._model._worker
    os.kill(worker.process.pid, signal.SIGKILL)
    while not worker.has_ended():
        time.sleep(0.01)
    assert ask(server, "two words") == [2]


# time -------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
def test_the_server_is_there_before_the_model_and_the_first_call_waits_for_it(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TEST_LOADING", "4")
    before = time.monotonic()
    server = start(call_seconds=2)
    assert time.monotonic() - before < 2, "it listens at once"
    gateway = through_gateway(server, table("one", "two words", "three"), tmp_path, timeout=2.5)
    first, *others = gateway.seconds.values()
    assert server.fallbacks == 0 and first > 3 and max(others) < 2


@pytest.mark.timeout(60)
def test_a_call_waits_no_longer_than_its_share_while_the_model_is_loaded_again(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = start(call_seconds=4.0, fallback="-1")
    assert ask(server, "one") == [1]
    monkeypatch.setenv("TEST_LOADING", str(tmp_path / "loaded"))
    before = time.monotonic()
    assert ask(server, "Crash", "two words") == [-1, -1], "the load goes on while calls fall back"
    assert time.monotonic() - before < 30
    assert not server._model.wait_until_loaded(0.1)
    (tmp_path / "loaded").touch()
    assert server._model.wait_until_loaded(30)
    assert ask(server, "three") == [1]
    assert (tmp_path / "server.log").read_text().count("loading") == 2


@pytest.mark.timeout(60)
def test_a_model_that_cannot_be_loaded_is_given_up_and_every_row_has_its_answer(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TEST_LOADING", "crash")
    server = start(fallback="-1")
    assert ask(server, "one", "two") == [-1, -1]
    assert ask(server, *["more"] * 20) == [-1] * 20
    assert not server._model.wait_until_loaded(30)
    assert (tmp_path / "server.log").read_text().count("loading") == 3


@pytest.mark.timeout(60)
def test_a_model_that_hangs_while_loading_is_loaded_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_LOADING", "600")
    server = start(load_seconds=3.0)
    monkeypatch.setenv("TEST_LOADING", "0")
    assert ask(server, "one more") == [2]


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_at_the_end_of_the_time_every_call_is_answered_at_once(start: Start) -> None:
    """A hanging first row takes no more than the time there is, less the reserve."""
    server = start(limit=8.0, fallback="-1")
    before = time.monotonic()
    assert ask(server, "Hang") == [-1] and time.monotonic() - before < 8
    time.sleep(max(0.0, 8 - (time.monotonic() - before)))
    before = time.monotonic()
    assert ask(server, *["one"] * 20) == [-1] * 20 and time.monotonic() - before < 1


def test_a_row_s_time_is_what_is_left_for_each_row_to_come(start: Start) -> None:
    server = start(limit=1000.0, rows=10, call_seconds=1e6)
    clock = [server.budget.clock()]
    server.budget.clock = lambda: clock[0]
    server.budget.end = clock[0] + 900
    assert server._share(1) == pytest.approx(90) and server._share(3) == pytest.approx(270)
    server.rows, clock[0] = 4, clock[0] + 60  # four quick rows leave their time to the six others
    assert server._share(1) == pytest.approx(140)
    server.rows = 12  # more came than were expected
    assert server._share(1) == pytest.approx(840)
    server.settings = ServerSettings(call_seconds=50)
    assert server._share(1) == 50, "an unknown number of rows: as long as a call may take"
    clock[0] += 830
    assert server._share(1) == pytest.approx(10)
    clock[0] += 20
    assert server._share(1) == 0


@pytest.mark.timeout(60)
def test_a_prediction_that_minds_its_budget_ends_before_it_is_killed(start: Start, tmp_path: Path) -> None:
    server = start(call_seconds=2)
    assert ask(server, "Slow and right", "one") == [3, 1]
    assert server.fallbacks == 0 and (tmp_path / "server.log").read_text().count("loading") == 1


# processes --------------------------------------------------------------------------------------------------

HOLDER = """
import sys, threading, time
from pathlib import Path
import polars as pl
from kaggle_llm.kaggle.predict import Mounts
from kaggle_llm.kaggle.server import PredictServer, ServerSettings
bundle, competition, working, problem, slug, model = sys.argv[1:]
mounts = Mounts(Path(bundle), Path(competition), {slug: Path(model)}, Path(working), time.time() + 600)
server = PredictServer(mounts, ServerSettings())
sample = pl.DataFrame({"id": ["h"], "answer": [0]})
server.predict(pl.DataFrame({"id": ["h"], "problem": ["one"]}), sample)
threading.Thread(target=server.predict, args=(pl.DataFrame({"id": ["h"], "problem": [problem]}), sample)).start()
time.sleep(0.5)
print(server._model._worker.process.pid, flush=True)
time.sleep(600)
"""


def ends(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process is gone, or a zombie that nobody reaps here, within so many seconds."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.timeout(60)
@pytest.mark.parametrize("problem", ["idle", "Hang"])
def test_the_worker_ends_with_a_killed_server_idle_or_busy(trapped: Mounts, tmp_path: Path, problem: str) -> None:
    ((slug, model),) = trapped.model_folders.items()
    words = [str(trapped.bundle), str(trapped.competition), str(tmp_path), problem, slug, str(model)]
    holder = subprocess.Popen([INTERPRETER, "-c", HOLDER, *words], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    worker = int(holder.stdout.readline())
    os.kill(worker, 0)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert ends(worker)


# the notebook, word problems and a model ---------------------------------------------------------------------

EVALUATION = '''"""What a competition brings as kaggle_evaluation, on the stand-in."""

import os

import polars as pl
from gateway import Gateway, InferenceServer

ADDRESS = os.environ["TEST_ADDRESS"]


class ArithmeticInferenceServer:
    def __init__(self, function):
        self.server = InferenceServer(function)

    def serve(self):
        self.server.serve(ADDRESS)

    def run_local_gateway(self, data_paths):
        test = pl.read_csv(data_paths[0])
        sample = test.select("id", pl.lit(0, pl.Int64).alias("answer"))
        self.server.serve_in_background(ADDRESS)
        Gateway(test, sample).run(ADDRESS).write_parquet("submission.parquet")
'''


def make_kaggle(root: Path, model: Path, problems: pl.DataFrame, config: str, predict: str = PREDICT) -> Path:
    """A folder laid out as Kaggle's, with the bundle of an experiment attached."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KAGGLE_LLM_ROOT", str(root))
        code, folder = make_bundle(root, model, config, predict)
    kaggle = root / "kaggle"
    datasets = kaggle / "input" / "datasets" / "me"
    datasets.mkdir(parents=True)
    code.rename(datasets / "code")
    folder.parent.rename(datasets / folder.parent.name)
    competition = make_competition(kaggle / "input" / "competitions" / NAME, problems)
    (competition / "kaggle_evaluation").mkdir()
    (competition / "kaggle_evaluation" / f"{NAME}_inference_server.py").write_text(EVALUATION)
    (kaggle / "working").mkdir()
    return kaggle


def run_notebook(kaggle: Path, **environment: str) -> subprocess.Popen[str]:
    """The cells of the server's notebook, one after the other, in Kaggle's working folder."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "submission" / "server_notebook.py")],
        cwd=kaggle / "working",
        env={**os.environ, "PYTHONPATH": str(ROOT / "tests"), "TEST_ADDRESS": str(kaggle / "socket"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def answer_hidden(kaggle: Path, hidden: pl.DataFrame) -> pl.DataFrame:
    """The submission of a rerun; the notebook must end without an error."""
    notebook = run_notebook(kaggle, KAGGLE_IS_COMPETITION_RERUN="1")
    gateway = Gateway(hidden.select("id", "problem"), sample_of(hidden), start_limit=60, response_timeout=32)
    answers = gateway.run(str(kaggle / "socket"))
    said, _ = notebook.communicate(timeout=60)
    assert notebook.returncode == 0, said
    log = (kaggle / "working" / "server.log").read_text()
    assert "loaded in" in log and "Traceback" not in log, log
    return answers


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_word_problems_are_answered_by_generation_and_votes_in_the_rerun(pico_llm: Path, tmp_path: Path) -> None:
    """The answers of random weights are nonsense; the rows are the hidden ones, and a vote is no fallback."""
    shared = r"Problem: {problem}\nAnswer:"
    kaggle = make_kaggle(
        tmp_path, pico_llm, make_problems(3, seed=1), make_config(shared, max_tokens=12, fallback="-7")
    )
    hidden = make_problems(6, seed=2).with_columns(pl.lit("🙂 ").add(pl.col("problem")).alias("problem"))
    answers = answer_hidden(kaggle, hidden)
    assert sorted(answers["id"]) == hidden["id"].to_list() and answers.schema == sample_of(hidden).schema
    assert (answers["answer"] >= 0).any(), "a vote came out of the samples"


@pytest.mark.release
@pytest.mark.timeout(600)
@pytest.mark.skipif(not SMALL_MODEL.is_dir(), reason="the small model is absent: make models")
def test_a_small_model_solves_some_easy_problems(tmp_path: Path) -> None:
    kaggle = make_kaggle(tmp_path, SMALL_MODEL, make_problems(3, seed=1), make_config(SHOTS, max_tokens=14, n=5))
    hidden = make_problems(5, seed=3)
    answers = answer_hidden(kaggle, hidden).sort("id")
    right = (answers["answer"] == hidden["answer"]).sum()
    print(f"{right} of 5 right", answers["answer"].to_list(), hidden["answer"].to_list())
    assert answers["id"].to_list() == hidden["id"].to_list() and right >= 3


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("problem", "code", "said"), [("three little words", 0, ""), ("Raise it", 1, "1 of 1 rows")])
def test_the_notebook_s_own_run_answers_the_public_test_and_ends_with_an_error_at_a_fallback(
    pico_llm: Path, tmp_path: Path, problem: str, code: int, said: str
) -> None:
    public = pl.DataFrame({"id": ["p000"], "problem": [problem], "answer": [5]})
    kaggle = make_kaggle(tmp_path, pico_llm, public, f"competition: {{name: {NAME}}}\n", TRAPS)
    notebook = run_notebook(kaggle)
    log, _ = notebook.communicate(timeout=60)
    assert notebook.returncode == code and said in log, log
    found = pl.read_parquet(kaggle / "working" / "submission.parquet")
    assert found.rows() == [("p000", 0 if code else 3)]
