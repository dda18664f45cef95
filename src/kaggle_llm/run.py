"""All that predict.py touches, and `answer()`: the only caller of its `predict`.

CV, rehearsal, notebook, replay and parity all go through `answer()`, so what computed CV is what ships.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

from kaggle_llm.borrowed import list_members
from kaggle_llm.competition import Competition
from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.engine import Engine, EngineSettings
from kaggle_llm.inference.loading import note_loading
from kaggle_llm.inference.maker import make_engine
from kaggle_llm.inference.members import Member, MemberError, open_member
from kaggle_llm.inference.sentinel import Sentinel
from kaggle_llm.rankings import (
    average_rankings,
    check_ranking,
    most_uncertain_first,
    ranking_schema,
    replace_rows,
    select_rows,
)

if TYPE_CHECKING:
    import polars as pl

Combine = Callable[[Mapping[int, "pl.DataFrame"]], "pl.DataFrame"]  # member → its RANKING, of the same rows → one
SHARES, FEWEST = 50, 16  # in how many parts a further member answers, of how many rows at least


class Run:
    """One prediction: config, competition, budget and models. Alike in CV, rehearsal and on Kaggle.

    models: name → folder: fold k's in CV, the shipped ones in a bundle. An adapter X needs its base X_base beside it;
    the names fold<k>.X are an ensemble: see `list_members`.
    on_offer: called with every ranking that predict.py offers; None in CV.
    recorded: run → its out-of-fold RANKING, in CV: a member that is a run is not asked again.
    """

    def __init__(
        self,
        config: Any,
        competition: Competition,
        models: Mapping[str, Path],
        budget: Budget | None = None,
        on_offer: Callable[[pl.DataFrame], None] | None = None,
        recorded: Mapping[str, pl.DataFrame] | None = None,
    ) -> None:
        self.config, self.competition, self.models = config, competition, dict(models)
        self.recorded = recorded or {}
        self.exp: Path | None = None
        """The folder of the experiment that answers; its neighbours are the members' experiments."""
        self.budget = budget or Budget()
        self._on_offer = on_offer
        self._engines: dict[str, Engine] = {}
        self._loaded: Any = None

    def model(self, name: str) -> Path:
        """The folder of a model by its name in `ship()` or `score()`."""
        if name not in self.models:
            raise KeyError(f"no model {name!r} in this run: it has {', '.join(self.models) or 'none'}")
        return self.models[name]

    def engine(self, name: str) -> Engine:
        """The engine for model(name): made once, closed with the run."""
        if name not in self._engines:
            self._engines[name] = self.open_engine(name)
        return self._engines[name]

    def open_engine(self, name: str) -> Engine:
        """A new engine for model(name)."""
        settings = getattr(self.config, "engine", EngineSettings())
        with note_loading():
            engine = make_engine(self.model(name), settings, self.models.get(f"{name}_base"))
        return Sentinel(engine, self.model(name))

    def offer(self, ranking: pl.DataFrame) -> None:
        """A better submission than the one before, should the time end here; does nothing in CV."""
        if self._on_offer is not None:
            self._on_offer(ranking)

    def loaded(self, predict: ModuleType) -> Any:
        """What predict.load made, once a run; its time counts."""
        if self._loaded is None:
            with note_loading():
                self._loaded = predict.load(self)
        return self._loaded

    def members(self) -> dict[str, dict[str, Path]]:
        """The models of each member of an ensemble, else "" → all models."""
        return list_members(self.models)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the engines."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._loaded = None


def answer(exp: Path, run: Run, rows: pl.DataFrame) -> pl.DataFrame:
    """Load, predict, check: the RANKING of `rows` (columns id and the test set's texts), in their order."""
    run.exp = exp
    members = run.members()
    if len(members) > 1:
        config = asdict(run.config)
        return answer_together(run, rows, [Member(exp, config, models) for models in members.values()])
    predict = import_predict(exp)
    ranking: pl.DataFrame = predict.predict(rows, run.loaded(predict), run)
    return check_ranking(ranking, rows["id"].to_list())


def average_members(answers: Mapping[int, pl.DataFrame]) -> pl.DataFrame:
    """The mean RANKING."""
    return average_rankings(list(answers.values()))


def answer_together(
    run: Run, rows: pl.DataFrame, members: Sequence[Member], combine: Combine = average_members
) -> pl.DataFrame:
    """The RANKINGs of several members as one, each member in a process with the memory to itself, one after the other.

    From the second member on, rows that are most uncertain so far are asked first: where the time or the member ends,
    the other rows keep what the members before make of them. Raises MemberError where the first member gives no answer,
    and where another one gives none and nobody would learn of it: without a time limit nothing is ever cut.
    """
    import polars as pl

    first, *others = members
    with open_member(first, run.competition.folder) as process:  # waited for as long as a single model is
        answers = {0: process.answer(rows, run.budget, math.inf, run.offer)}
    found, late = combine(answers), run.budget.cuts.total() > 0
    run.offer(found)
    for number, member in enumerate(others, 1):
        name, waiting, budget = f"member {number + 1} of {len(members)}", len(members) - number, run.budget.fork()
        parts = [pl.DataFrame(schema=ranking_schema())]
        for part in ask_uncertain_first(run, rows, member, name, found, budget, waiting) if not late else ():
            parts.append(part)
            asked = part["id"].to_list()
            known = {other: select_rows(answer, asked) for other, answer in answers.items()}
            found = replace_rows(found, combine({**known, number: part}))
            run.offer(found)
        late = late or budget.cuts.total() > 0  # another one would have no more time; one that died has taken none
        said = pl.concat(parts)
        if said.height == rows.height:
            answers[number] = select_rows(said, rows["id"].to_list())
        else:  # of one that died, what it said stays only until another member is asked
            run.budget.cuts[name] = rows.height - said.height
    return found


def ask_uncertain_first(
    run: Run, rows: pl.DataFrame, member: Member, name: str, found: pl.DataFrame, budget: Budget, waiting: int
) -> Iterator[pl.DataFrame]:
    """The RANKINGs of one more member for as many rows as the time and the member last, some at a time.

    waiting: members that have not answered yet, this one too: one that hangs leaves the others their share of the time.
    """
    ids = most_uncertain_first(found)
    parts = budget.split(ids, max(FEWEST, -(-len(ids) // SHARES)))
    with open_member(member, run.competition.folder) as process:
        try:
            for asked in budget.take(parts):
                patience = budget.left() / waiting + budget.reserve / 2
                ranking = process.answer(select_rows(rows, asked), budget, patience)
                if budget.cuts.total():
                    break
                yield ranking
        except MemberError as error:
            if math.isinf(budget.left()):
                raise
            print(f"{name} is left out from here on: {error}", flush=True)


def import_predict(exp: Path) -> ModuleType:
    """predict.py of the folder `exp`, and of no other: a second experiment in one process is refused."""
    exp = exp.resolve()
    wanted = exp / "predict.py"
    if not wanted.is_file():
        raise FileNotFoundError(f"{wanted} does not exist: an experiment needs a predict.py")
    if "predict" not in sys.modules:
        sys.path.insert(0, str(exp))
        before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            importlib.import_module("predict")
        finally:
            sys.dont_write_bytecode = before
    module = sys.modules["predict"]
    if Path(module.__file__ or "").resolve() != wanted:
        raise ImportError(f"this process has loaded {module.__file__}, so {wanted} needs a process of its own")
    return module
