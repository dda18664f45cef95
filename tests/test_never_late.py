"""Never late, never an invalid file: predictions of random speed that hang and crash, against a clock that is not real.

The clock stands for the parent process: where it passes the deadline, everything stops as if killed.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest

from kaggle_llm.competition.competition import CompetitionSettings, load_competition
from kaggle_llm.competition.csv_table import read_csv
from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm.decisions.rerank_blend import Blend, Reranked
from kaggle_llm.inference import run as rooms
from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.cross_fit import Decided
from kaggle_llm.inference.ensemble import Member, MemberError
from kaggle_llm.inference.model import Model
from kaggle_llm.kaggle.predict import offer_submission, predict_test
from kaggle_llm.retrieval import rerank as reranking

DOCUMENTS = [f"M{n}" for n in range(6)]
LIMIT = 1000.0


class Killed(BaseException):
    """The parent ended the process."""


class Crash(Exception):
    pass


@dataclass
class Nothing:
    """A config."""


class Clock:
    def __init__(self) -> None:
        self.now, self.patience = 0.0, LIMIT
        """patience: when a member that has said nothing until then is lost."""

    def __call__(self) -> float:
        return self.now

    def work(self, seconds: float) -> None:
        end = min(LIMIT, self.patience)
        self.now = min(self.now + seconds, end)
        if self.now >= end:
            raise Killed if end == LIMIT else Crash


@dataclass(frozen=True)
class Weather:
    """How a prediction goes."""

    rows: int
    members: int
    load: float
    """Seconds until a model is loaded."""
    pace: float
    """Seconds a prompt, at its fastest."""
    jitter: float
    """The slowest is 1 + jitter as slow."""
    hang: float
    crash: float
    """How probable each is in a call."""
    spare: bool
    """Whether a row that no model answered has what predict.fallback says, or what the retrieval says."""


def draw_weather(rng: random.Random, trouble: bool) -> Weather:
    rows = rng.choice([0, 1, 2, 40, 90])
    return Weather(
        rows=rows,
        members=rng.choice([1, 1, 2, 3]),
        load=rng.choice([0.0, 50.0, 2000.0 if trouble else 200.0]),
        pace=10 ** rng.uniform(-2, 1),
        jitter=rng.choice([0.0, 0.2, 10.0 if trouble else 0.3]),
        hang=rng.choice([0.0, 0.05]) if trouble else 0.0,
        crash=rng.choice([0.0, 0.05]) if trouble else 0.0,
        spare=rng.choice([False, True]),
    )


class RandomEngine:
    """An engine of random scores."""

    def __init__(self, weather: Weather, clock: Clock, rng: random.Random) -> None:
        self.weather, self.clock, self.rng = weather, clock, rng
        self.loaded = False

    def choices(self, prompts: Sequence[Any], labels: Sequence[Any]) -> np.ndarray:
        if not self.loaded:
            self.clock.work(self.weather.load)
            self.loaded = True
        for _ in prompts:
            if self.rng.random() < self.weather.hang / 10:
                self.clock.work(1e9)
            if self.rng.random() < self.weather.crash / 10:
                raise Crash
            self.clock.work(self.weather.pace * (1 + self.rng.random() * self.weather.jitter))
        return np.array([[self.rng.random(), 0.0] for _ in prompts]).reshape(-1, 2)


class Predict:
    """A predict.py without texts: a retrieval, then the model on its first candidates."""

    def __init__(self, weather: Weather, clock: Clock, rng: random.Random) -> None:
        self.weather, self.clock, self.rng = weather, clock, rng
        self.labels, self.settings = [[1], [2]], SimpleNamespace(labels=["a", "b"])
        self.prompter = self

    def report_cuts(self) -> None: ...

    def prompts(self, row: Any, items: Sequence[str]) -> list[list[int]]:
        return [[1]] * len(items)

    def load(self, run: rooms.Run) -> RandomEngine:
        return RandomEngine(self.weather, self.clock, self.rng)

    def search(self, rows: pl.DataFrame) -> pl.DataFrame:
        self.clock.work(0.5)
        shuffled = [random.Random(i).sample(DOCUMENTS, 6) for i in rows["id"]]
        return make_ranking(rows["id"].to_list(), shuffled, [[6.0, 5, 4, 3, 2, 1]] * rows.height)

    def rerank(
        self, rows: pl.DataFrame, retrieved: pl.DataFrame, loaded: RandomEngine, run: rooms.Run, offer: Any
    ) -> pl.DataFrame:
        return reranking.rerank(rows, retrieved, 3, self, loaded, run.budget, offer)


class WithDecision(Predict):
    """exp002's way: the retrieval is offered, and blended with what the model said."""

    def score(self, rows: pl.DataFrame, loaded: RandomEngine, run: rooms.Run) -> Reranked:
        retrieved = self.search(rows)
        run.offer(Reranked(retrieved, retrieved.clear()))

        def offer(reranked: pl.DataFrame) -> None:
            run.offer(Reranked(retrieved, reranked))

        return Reranked(retrieved, self.rerank(rows, retrieved, loaded, run, offer))

    def decision(self, config: Any, competition: Any) -> Blend:
        return Blend()


class WithFallback(Predict):
    """exp005's way: rows that the model did not come to have what is known without it."""

    def fallback(self, rows: pl.DataFrame, run: rooms.Run) -> pl.DataFrame:
        return self.search(rows)

    def score(self, rows: pl.DataFrame, loaded: RandomEngine, run: rooms.Run) -> pl.DataFrame:
        assert run.fallback is not None
        return self.rerank(rows, run.fallback, loaded, run, run.offer)


@pytest.fixture(scope="module")
def competitions(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """rows → a competition with so many test rows."""
    made = {}
    for rows in (0, 1, 2, 40, 90):
        folder = tmp_path_factory.mktemp(f"rows{rows}")
        texts = "id,question,correct_answer,wrong_answer"
        (folder / "test.csv").write_text(f"{texts}\n" + "".join(f"t{n},q,a,b\n" for n in range(rows)))
        (folder / "train.csv").write_text(f"{texts},misconception_id\nx,q,a,b,M0\n")
        (folder / "misconceptions.csv").write_text("misconception_id,text\n" + "".join(f"{i},x\n" for i in DOCUMENTS))
        sample = "id,misconception_id\n" + "".join(f"t{n},M0 M1\n" for n in range(rows))
        (folder / "sample_submission.csv").write_text(sample)
        made[rows] = load_competition(CompetitionSettings("demo-misconceptions"), folder)
    return made


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    yield


class FakeProcess:
    """A MemberProcess without a process: what a member is asked is answered here, by the same clock."""

    def __init__(self, clock: Clock, member: Member, folder: Path) -> None:
        self.clock = clock
        self.offer: Any = None
        self.run = rooms.Run(member.config, None, member.models, on_offer=self._offer)

    def __enter__(self) -> "FakeProcess":
        return self

    def __exit__(self, *_: object) -> None: ...

    def _offer(self, ranking: pl.DataFrame) -> None:
        if self.offer:
            self.offer(ranking)

    def answer(self, rows: pl.DataFrame, budget: Budget, seconds: float, offer: Any = None) -> pl.DataFrame:
        self.clock.patience = self.clock.now + seconds
        self.run.budget, self.offer = budget, offer
        try:
            return rooms.answer(Path(), self.run, rows)
        except Crash as error:
            raise MemberError("it crashed, or took too long") from error
        finally:
            self.clock.patience = LIMIT


def predict_in(
    weather: Weather, seed: int, competition: Any, working: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, Clock, rooms.Run]:
    """How it ended: done, killed or crashed."""
    clock, rng = Clock(), random.Random(seed)
    folds = [*range(weather.members)] if weather.members > 1 else [None]
    decision = working.with_name(f"{working.name}-decision")
    Decided(Blend(3.0)).save(decision)
    models = [Model("model", Path(f"{fold}"), fold=fold) for fold in folds] + [Model("decision", decision)]
    budget = Budget(LIMIT, reserve=0.05 * LIMIT, clock=clock)
    offer = partial(offer_submission, competition, working)
    run = rooms.Run(Nothing(), competition, models, budget, offer)
    predict = (WithFallback if weather.spare else WithDecision)(weather, clock, rng)
    monkeypatch.setattr(rooms, "import_predict", lambda _: predict)
    monkeypatch.setattr(rooms, "open_member", partial(FakeProcess, clock))
    try:
        predict_test(Path(), run, working)
    except Killed:
        return "killed", clock, run
    except (Crash, MemberError):
        return "crashed", clock, run
    return "done", clock, run


@pytest.mark.timeout(280)
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.release) for part in range(1, 7))])
def test_whatever_happens_a_valid_submission_lies_there(
    part: int, competitions: dict[int, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    ends = dict.fromkeys(("done", "killed", "crashed", "cut"), 0)
    seeds = range(300 * part, 300 * (part + 1)) if part else range(60)
    for seed in seeds:
        weather = draw_weather(random.Random(seed), trouble=True)
        competition = competitions[weather.rows]
        end, clock, run = predict_in(weather, seed, competition, tmp_path, monkeypatch)
        found = read_csv(tmp_path / "submission.csv")
        assert competition.check_submission(found) == [], (seed, weather, end)
        assert clock.now <= LIMIT and (clock.now < LIMIT) == (end != "killed")
        ends[end] += 1
        ends["cut"] += bool(run.budget.cuts.total())
        (tmp_path / "submission.csv").unlink()
    assert all(count >= (10 if part else 4) for count in ends.values()), ends


@pytest.mark.timeout(280)
def test_without_hangs_the_budget_ends_in_time_by_itself_and_counts_what_it_cut(
    competitions: dict[int, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    cut = 0
    for seed in range(40):
        weather = draw_weather(random.Random(seed), trouble=False)
        end, clock, run = predict_in(weather, seed, competitions[weather.rows], tmp_path, monkeypatch)
        assert end == "done" and clock.now < LIMIT, (seed, weather)
        work = weather.rows * 3 * weather.pace * (1 + weather.jitter) + weather.load + 60 + weather.rows
        if work * weather.members < 0.8 * LIMIT:
            assert not run.budget.cuts.total(), (seed, weather, "there was time for all")
        cut += bool(run.budget.cuts.total())
    assert cut >= 3


@pytest.mark.parametrize("spare", [False, True])
@pytest.mark.parametrize("pace", [0.01, 1.0])
def test_the_file_on_disk_gets_better_while_the_model_works(
    pace: float, spare: bool, competitions: dict[int, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sample, retrieval or fallback, then rows of the model every minute."""
    written: list[str] = []
    weather = Weather(rows=90, members=1, load=0.0, pace=pace, jitter=0.0, hang=0.0, crash=0.0, spare=spare)
    real = Path.replace

    def note(self: Path, target: Any) -> Any:
        written.extend([self.read_text()] * (Path(target).name == "submission.csv"))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", note)
    end, _, _ = predict_in(weather, 1, competitions[90], tmp_path, monkeypatch)
    assert end == "done"
    assert len(set(written)) == (3 if pace == 0.01 else 5)  # 270 s of work: after 96 and 192 s, and the end
