"""The Run, all that predict.py uses, and `score_rows()`, the only caller of its `score`.

CV, rehearsal, notebook, replay and parity all go through `answer()`, so the code that computed CV is what ships.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Self

from kaggle_llm.base import paths, records
from kaggle_llm.base.config import read_saved_config
from kaggle_llm.base.device import describe_device
from kaggle_llm.competition.competition import Competition
from kaggle_llm.competition.rankings import average_by_id, check_answer, most_uncertain_first, replace_rows, select_rows
from kaggle_llm.engines.engine import Engine
from kaggle_llm.engines.loading import note_loading
from kaggle_llm.engines.maker import choose_kind, make_engine
from kaggle_llm.engines.memory import CuttingEngine
from kaggle_llm.engines.prompts import Prompt
from kaggle_llm.engines.sentinel import Sentinel
from kaggle_llm.inference.answers import AnswerFile, KeepingEngine, describe_answers
from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.cache import fill_entry, open_entry
from kaggle_llm.inference.cross_fit import DECISION_MODEL, Decided, load_decided
from kaggle_llm.inference.ensemble import MEMBERS, Member, MemberError, open_member
from kaggle_llm.inference.model import Model, find_model, select_member_models, split_folds
from kaggle_llm.inference.vectors import ABOUT, describe_vectors, load_vectors, read_index, save_vectors
from kaggle_llm.inference.vectors import SUFFIX as INDEX_SUFFIX

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

Combine = Callable[["pl.DataFrame"], "pl.DataFrame"]  # concatenated RANKINGs of members → one RANKING
MEMBER_PARTS, MIN_PART_ROWS = 50, 16  # from the second member on, rows are answered in 50 parts of at least 16


class Run:
    """One prediction: config, competition, budget and models. Alike in CV, rehearsal and on Kaggle.

    models: fold k's in CV, the shipped ones in a bundle. on_offer: called with every RANKING that predict.py offers;
    None in CV. recorded: in CV, member run → its out-of-fold RANKING, used instead of asking it again. keep_for: the
    run in training, for which answers are cached; "": nothing is cached.
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
        """The folder of the experiment that answers; members' experiments are in the same parent folder."""
        self.decision: Decided | None = None
        """Applied to all that predict.py offers, and to its final scores."""
        self.budget = budget or Budget()
        self.fallback: pl.DataFrame | None = None
        """predict.fallback's RANKING of all rows, for those that no model answers."""
        self.artefacts: dict[str, Path] = {}
        """With keep_for: encoder, or name of an artefact → the folder of its index, for what ships."""
        self._on_offer = on_offer
        self._engines: dict[str, Engine] = {}
        self._loaded: Any = None

    def model(self, name: str) -> Path:
        """The folder of a model, by its name in the config or train.py."""
        return find_model(self.models, name).folder

    def engine(self, name: str) -> Engine:
        """The engine for model(name): made once, closed with the run."""
        if name not in self._engines:
            self._engines[name] = self.open_engine(find_model(self.models, name))
        return self._engines[name]

    def open_engine(self, model: Model) -> Engine:
        """A new engine for a model; with `keep_for` its answers are cached."""

        def load() -> Engine:
            with note_loading():
                return Sentinel(make_engine(model.folder, self.config.engine, model.base), model.folder)

        if not self.keep_for:
            return CuttingEngine(load())
        path = open_entry("answers", self._describe(model), model.folder, self.keep_for, ".sqlite")
        return KeepingEngine(load, AnswerFile(path))

    def embed_documents(self, name: str, documents: Sequence[Prompt], dtype: str = "float32") -> np.ndarray:
        """[documents, d] vectors of unit length by model `name`, stored in `dtype`.

        With `keep_for` cached as a memory-mapped file; else those of the index that ships with the model, if there is
        one.
        """
        model, index = find_model(self.models, name), self._shipped_index(name)

        def embed(part: Sequence[Prompt]) -> np.ndarray:
            return self.engine(name).embed(part)

        if self.keep_for:
            about = describe_vectors(self._describe(model), documents, dtype)
            make = partial(save_vectors, about=about, documents=documents, embed=embed)
            return load_vectors(self._keep(name, "vectors", about, model.folder, make))
        shipped = read_index(index, documents, dtype, embed) if index else None
        return embed(documents[:]).astype(dtype, copy=False) if shipped is None else shipped

    def artefact(self, name: str, about: Mapping[str, Any], make: Callable[[Path], None]) -> Path | None:
        """The folder that make(folder) fills, such as an index. about: all that it depends on, as JSON.

        With `keep_for` cached; else the one that ships as <name>_index where that is of the same content; else None.
        """
        if self.keep_for:
            return self._keep(name, name, dict(about), self.competition.folder, make)
        index = self._shipped_index(name)
        if index is None:
            return None
        if records.read_json(index / ABOUT) == dict(about):
            print(f"{name}: the shipped index is read", flush=True)
            return index
        print(f"{name}: the shipped index is of other documents or settings: it is made again", flush=True)
        return None

    def _shipped_index(self, name: str) -> Path | None:
        shipped = [model for model in self.models if (model.name, model.member) == (f"{name}{INDEX_SUFFIX}", None)]
        return shipped[0].folder if shipped else None

    def _keep(self, name: str, kind: str, about: dict[str, Any], of: Path, make: Callable[[Path], None]) -> Path:
        """The cached folder of what `about` describes, made where it is not there; noted in `artefacts`."""
        path = open_entry(kind, about, of, self.keep_for, ".index")
        fill_entry(path, make)
        self.artefacts[name] = path
        return path

    def _describe(self, model: Model) -> dict[str, Any]:
        """All that the model's answers depend on."""
        kind = choose_kind(model.folder, self.config.engine, model.base)
        return describe_answers(model.folder, model.base, kind, self.config.engine, describe_device())

    def decide(self, scored: Any) -> pl.DataFrame:
        """predict.py's scores → RANKING: by the decision, where there is one; missing rows from the fallback."""
        ranking: pl.DataFrame = scored if self.decision is None else self.decision.apply(scored)
        return ranking if self.fallback is None else replace_rows(self.fallback, ranking)

    def offer(self, scored: Any) -> None:
        """Write the submission from the scores so far, in case the time ends; does nothing in CV."""
        if self._on_offer is not None:
            self._on_offer(self.decide(scored))

    def offer_ranking(self, ranking: pl.DataFrame) -> None:
        """`offer` for a RANKING, to which the decision has been applied."""
        if self._on_offer is not None:
            self._on_offer(ranking)

    def loaded(self, predict: ModuleType) -> Any:
        """The result of predict.load, called once a run; its time counts as loading."""
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
        folds = [Member(exp, config, models) for models in members.values()]
        rankings = ask_members(run, rows, folds, average_by_id, lambda some: run.offer_ranking(average_by_id(some)))
        return check_answer(average_by_id(rankings), rows["id"].to_list())
    neutral = neutral_decision(import_predict(exp), run.config, run.competition)
    if run.decision is None and neutral is not None:
        run.decision = load_decided(run.model(DECISION_MODEL), type(neutral))
    return check_answer(run.decide(score_rows(exp, run, rows)), rows["id"].to_list())


def score_rows(exp: Path, run: Run, rows: pl.DataFrame) -> Any:
    """predict.score of `rows`, before the decision; the fallback, where there is one, is offered first."""
    run.exp, predict = exp, import_predict(exp)
    if hasattr(predict, "fallback"):
        run.fallback = predict.fallback(rows, run)
        run.offer_ranking(run.fallback)
    return predict.score(rows, run.loaded(predict), run)


def neutral_decision(predict: ModuleType, config: Any, competition: Competition) -> Any:
    """predict.py's decision before a fit; None where it has none."""
    return predict.decision(config, competition) if hasattr(predict, "decision") else None


def find_member(run: Run, number: int) -> Member:
    """Experiment, config and models of member `number`, and in CV its recorded answers."""
    if run.exp is None:
        raise ValueError("members are asked through run.answer, which knows the experiment's folder")
    name = run.config.members[number]
    exp = run.exp.parent / name.split("--")[0]
    bundled = run.exp.parents[1] / MEMBERS / f"{name}.yaml"
    config = read_saved_config(bundled if bundled.is_file() else paths.run_folder(name) / "config.yaml")
    config |= {"competition": asdict(run.config.competition)}
    return Member(exp, config, select_member_models(run.models, number), run.recorded.get(name))


def ask_members(
    run: Run,
    rows: pl.DataFrame,
    members: Sequence[Member],
    combine: Combine,
    offer: Callable[[pl.DataFrame], None],
    numbers: Sequence[int] | None = None,
) -> pl.DataFrame:
    """The concatenated RANKINGs of all members, with their number in the column `member`.

    Members run one after the other, each in its own process. From the second on, the most uncertain rows are asked
    first: where the time ends or a member dies, the other rows keep the answers of the members before. combine: makes
    one RANKING of the answers so far. offer: called with the answers so far. numbers: of the members, else 0, 1, ….
    Raises MemberError where the first member gives no answer; without a time limit where any gives none.
    """
    import polars as pl

    first, *others = members
    first_number, *other_numbers = numbers if numbers is not None else range(len(members))
    with open_member(first, run.competition.folder) as process:  # without a timeout, as for a single model
        ranking = process.answer(rows, run.budget, math.inf, run.offer_ranking)
    answers, late = add_member(ranking, first_number), run.budget.cuts.total() > 0
    offer(answers)
    for index, (number, member) in enumerate(zip(other_numbers, others, strict=True), 1):
        name, waiting, budget = f"member {index + 1} of {len(members)}", len(members) - index, run.budget.fork()
        uncertain, answered = most_uncertain_first(combine(answers)) if not late else [], 0
        for part in ask_parts(run, rows, uncertain, member, name, budget, waiting):
            answers, answered = pl.concat([answers, add_member(part, number)]), answered + part.height
            offer(answers)
        late = late or budget.cuts.total() > 0  # then no time is left for the next; a member that died took none
        if answered < rows.height:
            run.budget.cuts[name] = rows.height - answered
    return answers


def add_member(ranking: pl.DataFrame, number: int) -> pl.DataFrame:
    """The RANKING with the column `member`."""
    import polars as pl

    return ranking.with_columns(member=pl.lit(number, dtype=pl.Int64()))


def ask_parts(
    run: Run, rows: pl.DataFrame, ids: Sequence[str], member: Member, name: str, budget: Budget, waiting: int
) -> Iterator[pl.DataFrame]:
    """RANKINGs of one more member, some rows at a time, until the time ends or the member dies.

    waiting: members without an answer yet, this one included; each has an equal share of the time before it is killed.
    """
    parts = budget.split(ids, max(MIN_PART_ROWS, -(-len(ids) // MEMBER_PARTS))) if ids else []
    with open_member(member, run.competition.folder) as process:
        try:
            for part in budget.take(parts):
                timeout = budget.left() / waiting + budget.reserve / 2
                ranking = process.answer(select_rows(rows, part), budget, timeout)
                if budget.cuts.total():
                    break
                yield ranking
        except MemberError as error:
            if math.isinf(budget.left()):
                raise
            print(f"{name} is left out from here on: {error}", flush=True)


def import_predict(exp: Path) -> ModuleType:
    """The module predict.py of the folder `exp`; raises ImportError where this process has loaded another one's."""
    exp = exp.resolve()
    path = exp / "predict.py"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: an experiment needs a predict.py")
    if "predict" not in sys.modules:
        sys.path.insert(0, str(exp))
        before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
        try:
            importlib.import_module("predict")
        finally:
            sys.dont_write_bytecode = before
    module = sys.modules["predict"]
    if Path(module.__file__ or "").resolve() != path:
        raise ImportError(f"this process has loaded {module.__file__}, so {path} needs a process of its own")
    return module
