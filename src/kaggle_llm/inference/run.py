"""All that predict.py touches, and `answer()`: the only caller of its `score`.

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

from kaggle_llm.base.device import describe_device
from kaggle_llm.competition.competition import Competition
from kaggle_llm.competition.rankings import (
    average_by_id,
    check_answer,
    most_uncertain_first,
    replace_rows,
    select_rows,
)
from kaggle_llm.engines.engine import Engine
from kaggle_llm.engines.loading import note_loading
from kaggle_llm.engines.maker import choose_kind, make_engine
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.sentinel import Sentinel
from kaggle_llm.inference.answers import AnswerFile, KeepingEngine, describe_answers
from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.cache import open_entry
from kaggle_llm.inference.cross_fit import FOLDER, Decided, load_decided
from kaggle_llm.inference.ensemble import Member, MemberError, open_member
from kaggle_llm.inference.model import Model, find_model, split_folds

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

Combine = Callable[["pl.DataFrame"], "pl.DataFrame"]  # what members said, below each other → one RANKING
SHARES, FEWEST = 50, 16  # in how many parts a further member answers, of how many rows at least


class Run:
    """One prediction: config, competition, budget and models. Alike in CV, rehearsal and on Kaggle.

    models: fold k's in CV, the shipped ones in a bundle. on_offer: called with the RANKING of everything that
    predict.py offers; None in CV. recorded: run → its out-of-fold RANKING, in CV: a member that is a run is not asked
    again. keep_for: the run whose training this is: answers are looked up and kept; "": all is computed.
    """

    def __init__(
        self,
        config: Any,
        competition: Competition,
        models: Sequence[Model],
        budget: Budget | None = None,
        on_offer: Callable[[pl.DataFrame], None] | None = None,
        recorded: Mapping[str, pl.DataFrame] | None = None,
        keep_for: str = "",
    ) -> None:
        self.config, self.competition, self.models = config, competition, list(models)
        self.recorded, self.keep_for = recorded or {}, keep_for
        self.exp: Path | None = None
        """The folder of the experiment that answers; its neighbours are the members' experiments."""
        self.decision: Decided | None = None
        """What is applied to all that predict.py offers, and to what it scores."""
        self.budget = budget or Budget()
        self.spare: pl.DataFrame | None = None
        """predict.fallback's RANKING of the rows that are asked: for those that no model answers."""
        self._on_offer = on_offer
        self._engines: dict[str, Engine] = {}
        self._loaded: Any = None

    def model(self, name: str) -> Path:
        """The folder of a model by the name that the config or train.py gives it."""
        return find_model(self.models, name).folder

    def engine(self, name: str) -> Engine:
        """The engine for model(name): made once, closed with the run."""
        if name not in self._engines:
            self._engines[name] = self.open_engine(find_model(self.models, name))
        return self._engines[name]

    def open_engine(self, model: Model) -> Engine:
        """A new engine for a model; in CV one that keeps what it is told."""

        def load() -> Engine:
            with note_loading():
                return Sentinel(make_engine(model.folder, self.config.engine, model.base), model.folder)

        if not self.keep_for:
            return load()
        about = self._describe(model)
        return KeepingEngine(load, AnswerFile(open_entry("answers", about, model.folder, self.keep_for, ".sqlite")))

    def embed_documents(self, name: str, documents: Sequence[Prompt]) -> np.ndarray:
        """[documents, d] vectors of unit length by model `name`; in CV kept as a file that is mapped into memory."""

        if not self.keep_for:
            return self.engine(name).embed(documents)
        from kaggle_llm.inference.vectors import keep_vectors

        model = find_model(self.models, name)

        def embed() -> np.ndarray:
            return self.engine(name).embed(documents)

        return keep_vectors(self._describe(model), model.folder, self.keep_for, documents, embed)

    def _describe(self, model: Model) -> dict[str, Any]:
        kind = choose_kind(model.folder, self.config.engine, model.base)
        return describe_answers(model.folder, model.base, kind, self.config.engine, describe_device())

    def decide(self, scored: Any) -> pl.DataFrame:
        """What predict.py scored → RANKING: by its decision, where it has one; rows that nobody answered by `spare`."""
        found: pl.DataFrame = scored if self.decision is None else self.decision.apply(scored)
        return found if self.spare is None else replace_rows(self.spare, found)

    def offer(self, scored: Any) -> None:
        """A better submission than the one before, should the time end here; does nothing in CV.

        scored: what predict.score has so far.
        """
        if self._on_offer is not None:
            self._on_offer(self.decide(scored))

    def offer_ranking(self, ranking: pl.DataFrame) -> None:
        """The same of what is decided."""
        if self._on_offer is not None:
            self._on_offer(ranking)

    def loaded(self, predict: ModuleType) -> Any:
        """What predict.load made, once a run; its time counts."""
        if self._loaded is None:
            with note_loading():
                self._loaded = predict.load(self)
        return self._loaded

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
    """Load, score, decide, check: the RANKING of `rows` (columns id and the test set's texts), in their order."""
    run.exp = exp
    members = split_folds(run.models)
    if len(members) > 1:
        config = asdict(run.config)
        asked = [Member(exp, config, models) for models in members.values()]
        said = ask_members(run, rows, asked, average_by_id, lambda said: run.offer_ranking(average_by_id(said)))
        return check_answer(average_by_id(said), rows["id"].to_list())
    if run.decision is None:
        run.decision = load_decision(run, import_predict(exp))
    return check_answer(run.decide(score_rows(exp, run, rows)), rows["id"].to_list())


def score_rows(exp: Path, run: Run, rows: pl.DataFrame) -> Any:
    """What predict.score says of `rows`, before a decision; what a row gets that no model answers is offered first."""
    run.exp, predict = exp, import_predict(exp)
    if hasattr(predict, "fallback"):
        run.spare = predict.fallback(rows, run)
        run.offer_ranking(run.spare)
    return predict.score(rows, run.loaded(predict), run)


def load_decision(run: Run, predict: ModuleType) -> Decided | None:
    """What was fitted for the models of the run, where predict.py has a decision."""
    neutral = neutral_decision(predict, run.config)
    return None if neutral is None else load_decided(run.model(FOLDER), type(neutral))


def neutral_decision(predict: ModuleType, config: Any) -> Any:
    """predict.py's decision before anything was fitted; None where it has none."""
    return predict.decision(config) if hasattr(predict, "decision") else None


def ask_members(
    run: Run,
    rows: pl.DataFrame,
    members: Sequence[Member],
    combine: Combine,
    offer: Callable[[pl.DataFrame], None],
    numbers: Sequence[int] | None = None,
) -> pl.DataFrame:
    """The RANKINGs of several members below each other, with their number in the column `member`.

    Each member is in a process with the memory to itself, one after the other. From the second member on, rows that are
    most uncertain so far are asked first: where the time or the member ends, the other rows have what the members
    before said. offer: called with what was said so far; combine: makes one RANKING of it. numbers: of the members,
    else they are counted from 0. Raises MemberError where the first member gives no answer, and where another one
    gives none and nobody would learn of it: without a time limit nothing is ever cut.
    """
    import polars as pl

    first, *others = members
    own, *numbered = numbers if numbers is not None else range(len(members))
    with open_member(first, run.competition.folder) as process:  # waited for as long as a single model is
        ranking = process.answer(rows, run.budget, math.inf, run.offer_ranking)
    said, late = add_member(ranking, own), run.budget.cuts.total() > 0
    offer(said)
    for place, (number, member) in enumerate(zip(numbered, others, strict=True), 1):
        name, waiting, budget = f"member {place + 1} of {len(members)}", len(members) - place, run.budget.fork()
        uncertain, answered = most_uncertain_first(combine(said)) if not late else [], 0
        for part in ask_parts(run, rows, uncertain, member, name, budget, waiting):
            said, answered = pl.concat([said, add_member(part, number)]), answered + part.height
            offer(said)
        late = late or budget.cuts.total() > 0  # another one would have no more time; one that died has taken none
        if answered < rows.height:
            run.budget.cuts[name] = rows.height - answered
    return said


def add_member(ranking: pl.DataFrame, number: int) -> pl.DataFrame:
    import polars as pl

    return ranking.with_columns(member=pl.lit(number, dtype=pl.Int64()))


def ask_parts(
    run: Run, rows: pl.DataFrame, ids: Sequence[str], member: Member, name: str, budget: Budget, waiting: int
) -> Iterator[pl.DataFrame]:
    """The RANKINGs of one more member for as many rows as the time and the member last, some at a time.

    waiting: members that have not answered yet, this one too: one that hangs leaves the others their share of the time.
    """
    parts = budget.split(ids, max(FEWEST, -(-len(ids) // SHARES))) if ids else []
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
