"""demo-dialogues: a chat holds all that its summaries say, and more that is not so; files keep their promises."""

import random
from pathlib import Path

import polars as pl
import pytest

from kaggle_llm.competition.competition import CompetitionSettings, load_competition
from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm_demo.dialogues import (
    ARRANGED,
    CANCELLED,
    DAYS,
    MOVED,
    PLACES,
    TIMES,
    Chat,
    Plan,
    build_competition,
    draw_rows,
    draw_thread,
    refer_to,
    write_arrangement,
    write_cancellation,
    write_move,
)

PLAN = Plan(("Ada", "Ben", "Carla"), "go climbing", "the quarry", "Sunday", "7:15", "a child is ill")
BEFORE = Plan(PLAN.people, PLAN.what, PLAN.place, "Friday", "noon", PLAN.reason)
SEEDS = range(40)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("dialogues")
    build_competition(folder / "input", folder / "hidden")
    return folder / "input", folder / "hidden"


def facts(plan: Plan) -> list[str]:
    return [*plan.people, plan.what, plan.place, plan.day]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_chat_and_its_summaries_hold_the_facts_of_the_plan(seed: int) -> None:
    rng = random.Random(seed)
    for lines, forms, more in (
        (write_arrangement(PLAN, rng), ARRANGED, [PLAN.time]),
        (write_move(BEFORE, PLAN, rng), MOVED, [PLAN.time, PLAN.reason]),
        (write_cancellation(PLAN, rng), CANCELLED, [PLAN.reason]),
    ):
        for text in ("\n".join(lines), *refer_to(PLAN, forms, rng)):
            lost = [fact for fact in [*facts(PLAN), *more] if fact.lower() not in text.lower()]
            assert not lost, f"{lost} in {text!r}"
        assert not set("{}") & set("\n".join(lines))


def test_a_summary_names_one_day_only() -> None:
    for summary in draw_rows(200, "tr", 1, random.Random(0))["summary"].str.split("\n").explode():
        assert sum(day in summary for day in DAYS) == 1, summary


def test_many_chats_name_other_days_places_and_times_than_the_right_ones() -> None:
    rows = draw_rows(400, "tr", 1, random.Random(0))
    texts = rows["dialogue"].to_list()
    assert sum(sum(day in text for day in DAYS) > 1 for text in texts) > 200
    assert sum(sum(place in text.lower() for place in map(str.lower, PLACES)) > 1 for text in texts) > 120
    assert sum(sum(f"at {time}" in text.lower() for time in TIMES) > 1 for text in texts) > 60


def test_the_last_one_named_is_often_not_the_one_that_holds() -> None:
    """So no rule on places in the text wins."""
    rows = draw_rows(400, "tr", 1, random.Random(0))
    wrong = 0
    for dialogue, summary in rows.select("dialogue", "summary").iter_rows():
        last = max(DAYS, key=dialogue.rfind)
        wrong += last not in summary
    assert 60 < wrong < 300


def test_two_people_speak_in_turn_and_who_opens_goes_on() -> None:
    chat = Chat(Plan(("Ada", "Ben"), *[""] * 4), random.Random(0))
    for _ in range(3):
        chat.say(("So.",))
    assert [line.split(":")[0] for line in chat.lines] == ["Ada", "Ada", "Ben", "Ada"]


def test_all_of_three_people_say_something() -> None:
    for seed in SEEDS:
        for lines, _ in draw_thread(random.Random(seed)):
            speakers = {line.split(":")[0] for line in lines}
            assert len(speakers) in (2, 3)
            assert all(line.partition(": ")[2] for line in lines)


def test_the_same_seed_gives_the_same_bytes_and_another_one_other_chats(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    for seed, alike in ((0, True), (1, False)):
        folders = (tmp_path / f"input{seed}", tmp_path / f"hidden{seed}")
        build_competition(*folders, seed=seed)
        for first, second in zip(built, folders, strict=True):
            for name in ("train.csv", "test.csv", "solution.csv"):
                if (first / name).is_file():
                    assert ((first / name).read_bytes() == (second / name).read_bytes()) == alike


def test_rows_differ_and_threads_share_no_side(built: tuple[Path, Path]) -> None:
    train, hidden = pl.read_csv(built[0] / "train.csv"), pl.read_csv(built[1] / "test.csv")
    solution = pl.read_csv(built[1] / "solution.csv")
    assert train["dialogue"].n_unique() == train.height == 400 and hidden.height == 40
    assert not set(train["dialogue"]) & set(hidden["dialogue"])
    assert not set(train["thread"]) & set(solution["thread"])
    sizes = train.group_by("thread").len()["len"]
    assert sizes.max() == 2 and (sizes == 2).sum() > 80


def test_the_files_are_those_of_a_competition(built: tuple[Path, Path]) -> None:
    competition = load_competition(CompetitionSettings("demo-dialogues"), built[0])
    competition.check()
    train, test, sample = competition.table("train"), competition.table("test"), competition.sample()
    assert train.columns == ["id", "dialogue", "summary", "thread"] and test.columns == ["id", "dialogue"]
    assert competition.group == "thread" and sample.columns == ["id", "summary"]
    assert competition.check_submission(sample) == []
    assert competition.truth(train)["items"].list.len().unique().to_list() == [2]


def test_one_of_several_references_is_enough(built: tuple[Path, Path]) -> None:
    competition = load_competition(CompetitionSettings("demo-dialogues"), built[0])
    truth = competition.truth(competition.table("train").head(2))
    items = [[truth["items"][0][0]], [truth["items"][1][1]]]
    ranking = make_ranking(truth["id"].to_list(), items, [[0.0]] * 2)
    assert competition.metric.score(ranking, truth) == 1.0
    assert {metric.name: metric.score(ranking, truth) for metric in competition.also}["rouge2"] == 1.0
    assert competition.ranking_of(competition.submission(ranking))["items"].to_list() == items


def test_a_row_without_a_summary_is_no_submission(built: tuple[Path, Path]) -> None:
    competition = load_competition(CompetitionSettings("demo-dialogues"), built[0])
    empty = competition.sample().with_columns(summary=pl.lit(None, pl.String()))
    assert len(competition.check_submission(empty)) == 3
