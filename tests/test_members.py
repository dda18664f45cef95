"""An ensemble answers with its members' mean, each from its own process; one that fails costs its answers only."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kaggle_llm.competition.competition import CompetitionSettings, load_competition
from kaggle_llm.competition.rankings import average_by_id, average_rankings, make_ranking
from kaggle_llm.inference.budget import Budget
from kaggle_llm.inference.ensemble import Member, MemberError
from kaggle_llm.inference.model import Model, select_member_models, split_folds
from kaggle_llm.inference.run import Run, answer, ask_members

pytestmark = [pytest.mark.timeout(120), pytest.mark.usefixtures("fast_python")]

# An experiment whose models are JSON files: a score, and what its process does when it is asked.
PREDICT = '''
import json, os, signal, time
from dataclasses import dataclass, field
from pathlib import Path
from kaggle_llm.competition.competition import CompetitionSettings
from kaggle_llm.competition.rankings import make_ranking


@dataclass
class Config:
    competition: CompetitionSettings
    items: list[str] = field(default_factory=list)


class OwnError(Exception):
    """No other process knows it."""


def is_alive(pid):
    """A zombie, whom its parent has not asked how it ended, has given its memory back."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.is_file() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def load(run):
    about = json.loads((run.model("reranker") / "model.json").read_text())
    log = run.competition.folder / "members.jsonl"
    before = [json.loads(line)["pid"] for line in log.read_text().splitlines()] if log.is_file() else []
    alive = [pid for pid in before if is_alive(pid)]
    with log.open("a") as file:
        file.write(json.dumps({"pid": os.getpid(), "alive": alive, "name": about["name"]}) + "\\n")
    return about


def score(rows, loaded, run):
    ids, do = rows["id"].to_list(), loaded.get("do")
    loaded["asked"] = loaded.get("asked", 0) + 1
    run.offer(make_ranking(ids, [["early"]] * len(ids), [[0.0]] * len(ids)))
    if do == "die" or do == "die at the second part" and loaded["asked"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    elif do == "hang":
        time.sleep(1000)
    elif do == "raise":
        raise OwnError("out of memory")
    elif do == "exit":
        raise SystemExit(0)
    elif do == "cut":
        run.budget.cuts["reranking"] += len(ids)
    return make_ranking(ids, [run.config.items] * len(ids), [[float(loaded["score"]), 0.5]] * len(ids))
'''


@dataclass
class Config:
    """As the experiment's own: this process must not need to import it."""

    competition: CompetitionSettings
    items: list[str] = field(default_factory=list)


@dataclass
class Ensemble:
    exp: Path
    run: Run
    offers: list[pl.DataFrame]

    def answer(self, rows: int = 1) -> pl.DataFrame:
        return answer(self.exp, self.run, pl.DataFrame({"id": [f"r{n}" for n in range(rows)]}))

    @property
    def processes(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.exp.parent / "data" / "members.jsonl").read_text().splitlines()]


def make_ensemble(root: Path, members: list[dict[str, Any]], limit: float = 100.0) -> Ensemble:
    """Models of the folds 0, 1, …; the first gives the item x the score 0, the second 1, …; y has 0.5."""
    exp, data = root / "exp", root / "data"
    exp.mkdir()
    data.mkdir()
    (exp / "predict.py").write_text(PREDICT)
    models = []
    for number, about in enumerate(members):
        folder = root / f"model{number}"
        models.append(Model("reranker", folder, fold=number))
        folder.mkdir()
        (folder / "model.json").write_text(json.dumps({"name": f"fold{number}", "score": number, **about}))
    settings = CompetitionSettings("demo-misconceptions")
    offers: list[pl.DataFrame] = []
    competition = load_competition(settings, data)
    run = Run(Config(settings, ["x", "y"]), competition, models, Budget(limit), offers.append)
    return Ensemble(exp, run, offers)


def test_the_answer_is_the_mean_and_no_offer_is_less_than_the_one_before(tmp_path: Path) -> None:
    ensemble = make_ensemble(tmp_path, [{}, {"score": 2.0}])
    ranking = ensemble.answer(rows=3)
    assert ranking["items"].to_list() == [["x", "y"]] * 3 and ranking["scores"].to_list() == [[1.0, 0.5]] * 3
    assert [offer["items"].to_list()[0][0] for offer in ensemble.offers] == ["early", "y", "x"], "no early second one"
    assert not ensemble.run.budget.cuts


def test_every_member_has_a_process_and_the_memory_of_the_one_before(tmp_path: Path) -> None:
    import os

    ensemble = make_ensemble(tmp_path, [{}, {}, {}])
    ensemble.answer()
    assert [process["name"] for process in ensemble.processes] == ["fold0", "fold1", "fold2"]
    assert len({os.getpid(), *(process["pid"] for process in ensemble.processes)}) == 4
    assert [process["alive"] for process in ensemble.processes] == [[], [], []], "they had ended"


def test_one_process_answers_all_parts_of_a_member(tmp_path: Path) -> None:
    ensemble = make_ensemble(tmp_path, [{}, {"score": 2.0}])
    ranking = ensemble.answer(rows=40)
    assert ranking["scores"].to_list() == [[1.0, 0.5]] * 40
    assert len(ensemble.processes) == 2 and len(ensemble.offers) == 2 + 3, "40 rows in parts of 16"


@pytest.mark.parametrize("do", ["die", "raise", pytest.param("exit", marks=pytest.mark.slow)])
def test_a_member_that_dies_costs_its_answers_and_the_next_is_asked(
    tmp_path: Path, do: str, capsys: pytest.CaptureFixture[str]
) -> None:
    ensemble = make_ensemble(tmp_path, [{}, {"do": do}, {"score": 2.0}])
    ranking = ensemble.answer()
    assert ranking["scores"].to_list() == [[1.0, 0.5]], "the mean of the first and the third"
    assert ensemble.run.budget.cuts == {"member 2 of 3": 1}
    reason = "OwnError: out of memory" if do == "raise" else "killed by SIGKILL"
    said = capsys.readouterr().out
    assert "member 2 of 3 is left out from here on" in said and reason in said


@pytest.mark.slow
def test_a_member_that_hangs_leaves_the_next_its_share_of_the_time(tmp_path: Path) -> None:
    ensemble = make_ensemble(tmp_path, [{}, {"do": "hang"}, {"score": 2.0}], limit=16.0)
    assert ensemble.answer()["scores"].to_list() == [[1.0, 0.5]]
    assert ensemble.run.budget.cuts == {"member 2 of 3": 1}
    assert ensemble.run.budget.left() > 0


@pytest.mark.parametrize("do", ["die", "raise"])
def test_without_the_first_member_there_is_no_answer(tmp_path: Path, do: str) -> None:
    ensemble = make_ensemble(tmp_path, [{"do": do}, {}])
    with pytest.raises(MemberError, match="killed by SIGKILL" if do == "die" else "OwnError: out of memory"):
        ensemble.answer()
    assert [offer["items"].to_list() for offer in ensemble.offers] == [[["early"]]], "what it offered before stays"


def test_without_a_time_limit_no_member_is_left_out(tmp_path: Path) -> None:
    ensemble = make_ensemble(tmp_path, [{}, {"do": "raise"}], limit=float("inf"))
    with pytest.raises(MemberError, match="OwnError"):
        ensemble.answer()


def test_a_member_that_the_time_would_cut_is_left_out_with_those_behind_it(tmp_path: Path) -> None:
    ensemble = make_ensemble(tmp_path, [{}, {"do": "cut"}, {}])
    assert ensemble.answer()["scores"].to_list() == [[0.5, 0.0]]
    assert ensemble.run.budget.cuts == {"member 2 of 3": 1, "member 3 of 3": 1}
    assert [process["name"] for process in ensemble.processes] == ["fold0", "fold1"]


def test_what_the_first_member_cuts_is_counted_and_no_other_is_asked(tmp_path: Path) -> None:
    ensemble = make_ensemble(tmp_path, [{"do": "cut"}, {}])
    assert ensemble.answer()["scores"].to_list() == [[0.5, 0.0]]
    assert ensemble.run.budget.cuts == {"reranking": 1, "member 2 of 2": 1}
    assert len(ensemble.processes) == 1


def test_what_a_member_said_before_it_died_counts_for_those_rows(tmp_path: Path) -> None:
    ensemble = make_ensemble(tmp_path, [{}, {"do": "die at the second part", "score": 2.0}])
    ranking = ensemble.answer(rows=40)
    assert ranking["id"].to_list() == [f"r{n}" for n in range(40)], "in the order asked"
    said = [row == ["x", "y"] for row in ranking["items"].to_list()]
    assert sum(said) == 16 and ensemble.run.budget.cuts == {"member 2 of 2": 24}
    assert {tuple(row) for row in ranking["scores"].to_list()} == {(1.0, 0.5), (0.5, 0.0)}
    assert [offer.height for offer in ensemble.offers] == [40] * len(ensemble.offers), "no offer lacks a row"


def test_members_are_told_by_their_numbers_and_recorded_ones_are_not_asked(tmp_path: Path) -> None:
    """An ensemble of runs asks some of its members, the heaviest first, and in CV none of them."""
    ensemble = make_ensemble(tmp_path, [{}])
    rows = pl.DataFrame({"id": ["r1", "r0"]})
    config = {"competition": {"name": "demo-misconceptions"}, "items": ["x", "y"]}
    asked = Member(ensemble.exp, config, split_folds(ensemble.run.models)[0])
    known = make_ranking(["r0", "r1", "r2"], [["y"]] * 3, [[7.0], [8.0], [9.0]])
    recorded = Member(ensemble.exp, config, [], known.with_columns(fold=pl.lit(0)))
    offers: list[pl.DataFrame] = []
    said = ask_members(ensemble.run, rows, [recorded, asked], average_by_id, offers.append, [4, 1])
    assert said.select("member", "id", "items", "scores").sort("member", "id").rows() == [
        (1, "r0", ["y", "x"], [0.5, 0.0]),
        (1, "r1", ["y", "x"], [0.5, 0.0]),
        (4, "r0", ["y"], [7.0]),
        (4, "r1", ["y"], [8.0]),
    ]
    assert [offer.height for offer in offers] == [2, 4] and len(ensemble.processes) == 1
    with pytest.raises(ValueError, match=r"lost 1 \(first \['r9'\]\)"):
        ask_members(ensemble.run, pl.DataFrame({"id": ["r9"]}), [recorded], average_by_id, offers.append)


def test_the_mean_of_what_was_said_of_each_id_is_that_of_the_rankings() -> None:
    first = make_ranking(["a", "b", "c"], [["x", "y"], [], ["z"]], [[2.0, 1.0], [], [4.0]])
    second = make_ranking(["b", "a"], [[], ["y", "z"]], [[], [5.0, 0.0]])
    found = average_by_id(pl.concat([first, second]))
    assert found["id"].to_list() == ["a", "b", "c"] and found["items"].to_list() == [["y", "x", "z"], [], ["z"]]
    assert found["scores"].to_list() == [[3.0, 1.0, 0.5], [], [4.0]], "a row that one of them said nothing of stays"
    assert average_by_id(pl.concat([first, first])).equals(average_rankings([first, first]))
    assert average_by_id(first).equals(first)
    foreign = make_ranking(["a"], [["q"]], [[1.0]])
    with pytest.raises(ValueError, match=r"row .a..*no item in common"):
        average_by_id(pl.concat([first, foreign]))


def test_a_member_that_ships_its_folds_answers_as_an_ensemble_by_itself(tmp_path: Path) -> None:
    ensemble = make_ensemble(tmp_path, [{}, {"score": 2.0}])
    config = {"competition": {"name": "demo-misconceptions"}, "items": ["x", "y"]}
    folds = [replace(model, member=0) for model in ensemble.run.models]
    assert split_folds([*folds, Model("e", tmp_path, member=1)]) == {None: [*folds, Model("e", tmp_path, member=1)]}
    alone = Member(ensemble.exp, config, select_member_models(folds, 0))
    said = ask_members(ensemble.run, pl.DataFrame({"id": ["r0"]}), [alone], average_by_id, ensemble.offers.append)
    assert said.drop("id").rows() == [(["x", "y"], [1.0, 0.5], 0)]
    assert [process["name"] for process in ensemble.processes] == ["fold0", "fold1"]
    assert [offer["items"].to_list()[0][0] for offer in ensemble.offers] == ["early", "y", "x", "x"]
