"""The demo competition: mistakes give the wrong answers their texts describe, files keep their promises."""

import random
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from kaggle_llm_demo.misconceptions import FREQUENCIES, SKILLS, build_competition
from kaggle_llm_demo.skills import KINDS, Mistake, Skill, comparable, draw_problem, leaves_out, show

PAIRS = [(skill, mistake) for skill in SKILLS for mistake in skill.mistakes]
FILES = ("train.csv", "misconceptions.csv", "test.csv", "sample_submission.csv")
HIDDEN_FILES = ("test.csv", "solution.csv")
VALUES = {"values": "4, 0, 9, 2, 5"}
SIX = {"values": "9, 2, 4, 30, 7, 5"}
FRACTIONS = {"fractions": "3/4, 1/2, 5/12, 2/3"}
DECIMALS = {"decimals": "0.35, 0.4, 0.05, 0.312"}
HALF_AND_THIRD = {"a": 1, "b": 2, "c": 1, "d": 3}
HAND_MADE: list[tuple[str, str, dict[str, Any], str, str]] = [
    ("whole-number addition", "Stops after", {"a": 247, "b": 138}, "85", "385"),
    ("whole-number addition", "Forgets to carry", {"a": 247, "b": 138}, "375", "385"),
    ("whole-number addition", "Swaps", {"a": 247, "b": 138}, "511", "385"),
    ("whole-number addition", "Treats each", {"a": 247, "b": 138}, "3715", "385"),
    ("whole-number subtraction", "Stops after", {"a": 572, "b": 138}, "534", "434"),
    ("whole-number subtraction", "Forgets to", {"a": 572, "b": 138}, "444", "434"),
    ("whole-number subtraction", "Works on", {"a": 572, "b": 138}, "446", "434"),
    ("whole-number subtraction", "Believes", {"a": 572, "b": 138}, "440", "434"),
    ("order of operations", "Works on", {"a": 2, "b": 3, "c": 7, "d": 4}, "15", "19"),
    ("order of operations", "Believes", {"a": 2, "b": 3, "c": 7, "d": 4}, "31", "19"),
    ("subtracting negative numbers", "Ignores", {"a": 7, "b": 3}, "-10", "-4"),
    ("place value", "Believes", {"number": 47382, "digit": 7}, "7382", "7000"),
    ("place value", "Swaps", {"number": 47382, "digit": 7}, "70", "7000"),
    ("rounding", "Works on", {"n": 4347}, "4400", "4300"),
    ("rounding", "Uses the hundreds", {"n": 4712}, "4800", "4700"),
    ("ordering decimals", "Treats", DECIMALS, "0.4, 0.05, 0.35, 0.312", "0.05, 0.312, 0.35, 0.4"),
    ("ordering decimals", "Stops after", DECIMALS, "0.05, 0.35, 0.312, 0.4", "0.05, 0.312, 0.35, 0.4"),
    ("ordering decimals", "Ignores", DECIMALS, "0.312, 0.35, 0.4, 0.05", "0.05, 0.312, 0.35, 0.4"),
    ("multiplying decimals", "Treats", {"x": "1.2", "y": "3.4"}, "3.8", "4.08"),
    ("multiplying decimals", "Thinks", {"x": "1.2", "y": "3.4"}, "40.8", "4.08"),
    ("dividing by a decimal", "Ignores", {"a": 6, "d": 2}, "3", "30"),
    ("powers", "Multiplies", {"a": 5, "n": 3}, "15", "125"),
    ("square root of a sum", "Treats", {"pair": (9, 16)}, "7", "5"),
    ("standard form", "Believes", {"number": 47000}, "4.7 × 10^3", "4.7 × 10^4"),
    ("adding fractions", "Treats", HALF_AND_THIRD, "2/5", "5/6"),
    ("adding fractions", "Forgets", HALF_AND_THIRD, "2/6", "5/6"),
    ("adding fractions", "Gives", HALF_AND_THIRD, "5", "5/6"),
    ("subtracting fractions", "Stops after", HALF_AND_THIRD, "3/6", "1/6"),
    ("multiplying fractions", "Believes", {"a": 1, "b": 2, "c": 2, "d": 3}, "2", "1/3"),
    ("dividing fractions", "Swaps", HALF_AND_THIRD, "2/3", "3/2"),
    ("fraction of an amount", "Swaps", {"a": 2, "b": 3, "n": 18}, "27", "12"),
    ("mixed numbers", "Treats", {"w": 2, "a": 3, "b": 4}, "23/4", "11/4"),
    ("ordering fractions", "Works on", FRACTIONS, "5/12, 3/4, 1/2, 2/3", "5/12, 1/2, 2/3, 3/4"),
    ("ordering fractions", "Believes", FRACTIONS, "5/12, 3/4, 2/3, 1/2", "5/12, 1/2, 2/3, 3/4"),
    ("percentage of an amount", "Stops after", {"p": 35, "n": 200}, "20", "70"),
    ("percentage increase", "Ignores", {"p": 5, "n": 200}, "£300", "£210"),
    ("reverse percentage", "Believes", {"p": 20, "s": 60}, "£72", "£75"),
    ("one number as", "Gives", {"a": 12, "b": 40}, "0.3%", "30%"),
    ("sharing in a ratio", "Treats", {"a": 2, "b": 3, "n": 60}, "£30 and £20", "£24 and £36"),
    ("direct proportion", "Believes", {"k": 4, "m": 60, "t": 6}, "62 g", "90 g"),
    ("mean", "Ignores", VALUES, "5", "4"),
    ("median", "Forgets", SIX, "17", "6"),
    ("median", "Stops after", SIX, "5", "6"),
    ("range", "Forgets", SIX, "4", "28"),
    ("probability", "Uses", {"r": 3, "b": 4, "g": 1}, "3/5", "3/8"),
    ("linear equations", "Thinks", {"a": 3, "b": 5, "c": 20}, "12", "5"),
    ("expanding a bracket", "Forgets", {"a": 3, "b": 2, "c": 5}, "6x + 5", "6x + 15"),
    ("substitution", "Treats", {"a": 3, "b": 1, "x": 4}, "317", "49"),
    ("substitution", "Believes", {"a": 3, "b": 1, "x": 4}, "145", "49"),
    ("collecting like terms", "Believes", {"a": 3, "b": 7, "c": 2, "d": 4}, "8x", "5x + 3"),
    ("nth term", "Swaps", {"f": 7, "d": 3}, "4n + 3", "3n + 4"),
    ("next term", "Believes", {"a": 2, "r": 3}, "14", "54"),
    ("inequalities", "Ignores", {"a": 2, "b": 10, "c": 4}, "x < -3", "x > 3"),
    ("inequalities", "Adds", {"a": 2, "b": 10, "c": 4}, "x > -7", "x > 3"),
    ("gradient", "Swaps", {"p": 1, "q": 2, "r": 5, "s": 4}, "2", "1/2"),
    ("metres to", "Treats", {"x": "2.45"}, "2045 mm", "2450 mm"),
    ("time between", "Works on", {"h": 14, "m": 50, "k": 16, "n": 20}, "150 minutes", "90 minutes"),
    ("time between", "Thinks", {"h": 14, "m": 50, "k": 16, "n": 20}, "170 minutes", "90 minutes"),
    ("square metres", "Believes", {"x": "3.5"}, "350 cm²", "35000 cm²"),
    ("average speed", "Thinks", {"d": 30, "t": 40}, "75 km/h", "45 km/h"),
    ("third angle", "Believes", {"a": 50, "b": 60}, "250°", "70°"),
    ("angles on", "Adds", {"a": 40}, "110°", "70°"),
    ("interior angle", "Uses", {"n": 8}, "45°", "135°"),
    ("perimeter", "Forgets", {"a": 7, "b": 3}, "17 cm", "20 cm"),
    ("area of a rectangle", "Forgets", {"a": 8, "b": 6, "s": 3}, "45", "39"),
    ("area of a triangle", "Uses", {"b": 6, "h": 4, "s": 5}, "15 cm²", "12 cm²"),
    ("volume", "Uses", {"a": 2, "b": 3, "c": 4}, "52", "24"),
]


def find(name: str, start: str) -> tuple[Skill, Mistake]:
    (found,) = [
        (skill, mistake) for skill, mistake in PAIRS if skill.name.startswith(name) and mistake.text.startswith(start)
    ]
    return found


def build(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    build_competition(folder / "input", folder / "hidden", seed=seed)
    return folder / "input", folder / "hidden"


def contents(folders: tuple[Path, Path]) -> dict[str, bytes]:
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for folder in folders for path in folder.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("demo"))


@pytest.mark.parametrize(("name", "start", "parameters", "wrong", "correct"), HAND_MADE)
def test_a_mistake_gives_the_answer_worked_out_by_hand(
    name: str, start: str, parameters: dict[str, Any], wrong: str, correct: str
) -> None:
    skill, mistake = find(name, start)
    assert mistake.wrong(**parameters) == wrong
    assert skill.answer(**parameters) == correct


@pytest.mark.parametrize("skill", SKILLS, ids=lambda skill: skill.name)
def test_only_the_drawn_mistake_explains_the_wrong_answer(skill: Skill) -> None:
    for mistake in skill.mistakes:
        for seed in range(5):
            seen: list[dict[str, Any]] = []

            def remembered(rng: random.Random, seen: list[dict[str, Any]] = seen) -> dict[str, Any]:
                seen.append(skill.draw(rng))
                return seen[-1]

            watched = Skill(skill.name, remembered, skill.questions, skill.answer, skill.mistakes)
            problem = draw_problem(watched, mistake, random.Random(seed))
            others = [other.wrong(**seen[-1]) for other in skill.mistakes if other is not mistake]
            explained = {comparable(answer) for answer in others if answer is not None}
            assert problem.wrong_answer == mistake.wrong(**seen[-1])
            assert comparable(problem.wrong_answer) != comparable(problem.correct_answer)
            assert comparable(problem.wrong_answer) not in explained
            assert not set("{}") & set(problem.question)
            assert len(problem.question.split()) <= 32


def test_the_catalogue_is_large_and_its_texts_are_unique() -> None:
    texts = [mistake.text for _, mistake in PAIRS]
    assert len(SKILLS) >= 28 and len(texts) >= 120
    assert len(set(texts)) == len(texts)
    assert {mistake.kind for _, mistake in PAIRS} == set(KINDS) == set(FREQUENCIES)
    assert all(8 <= len(text.split()) <= 22 for text in texts)
    for skill in SKILLS:
        assert len(skill.questions) >= 3 and 4 <= len(skill.mistakes) <= 5
        assert len({mistake.kind for mistake in skill.mistakes}) == len(skill.mistakes)


def test_the_wording_shows_the_kind() -> None:
    openings = {
        "stops early": ("Stops after", "Gives"),
        "leaves out": ("Forgets", "Ignores"),
        "swaps": ("Swaps", "Uses"),
        "separate parts": ("Treats", "Works on"),
        "wrong rule": ("Believes that", "Thinks that"),
    }
    for _, mistake in PAIRS:
        if mistake.kind == "wrong operation":
            assert "instead of" in mistake.text
        else:
            assert mistake.text.startswith(openings[mistake.kind])


@pytest.mark.parametrize(
    ("one", "other"),
    [("1/2", "2/4"), ("1/2", "0.5"), ("1 1/2 cups", "1.5 cups"), ("47 × 10^3", "4.7 × 10^4"), ("50%", "0.5")],
)
def test_answers_are_compared_by_value(one: str, other: str) -> None:
    assert comparable(one) == comparable(other)


def test_numbers_are_written_as_students_write_them() -> None:
    assert [show(5, "cm"), show(50, "%"), show(12, "£")] == ["5 cm", "50%", "£12"]


def test_a_mistake_that_never_shows_is_named() -> None:
    hidden = leaves_out("Forgets nothing at all in this addition of two small numbers.", lambda: "1")
    skill = Skill("nothing", lambda rng: {}, ("What is one?",), lambda: "1", (hidden,))
    with pytest.raises(ValueError, match="nothing: Forgets nothing"):
        draw_problem(skill, hidden, random.Random(0))


def test_the_same_seed_gives_the_same_bytes(built: tuple[Path, Path], tmp_path: Path) -> None:
    first = contents(built)
    assert set(first) == {f"input/{name}" for name in FILES} | {f"hidden/{name}" for name in HIDDEN_FILES}
    assert contents(build(tmp_path / "again")) == first
    other = contents(build(tmp_path / "other", seed=1))
    # The sample submission lists the first ids, which are the same for every seed.
    assert all(other[name] != first[name] for name in first if name != "input/sample_submission.csv")


def test_a_third_of_the_hidden_rows_is_about_unseen_misconceptions(built: tuple[Path, Path]) -> None:
    train, solution = pl.read_csv(built[0] / "train.csv"), pl.read_csv(built[1] / "solution.csv")
    known = set(pl.read_csv(built[0] / "misconceptions.csv")["misconception_id"])
    trained = set(train["misconception_id"])
    unseen = [target for target in solution["misconception_id"] if target not in trained]
    assert len(unseen) == 14 and solution.height == 40
    assert len(unseen) / solution.height >= 0.25
    assert trained | set(solution["misconception_id"]) <= known
    assert known - trained >= set(unseen)


def test_no_question_with_its_wrong_answer_occurs_twice(built: tuple[Path, Path]) -> None:
    paths = [built[0] / "train.csv", built[0] / "test.csv", built[1] / "test.csv"]
    frames = [pl.read_csv(path, infer_schema=False).select("id", "question", "wrong_answer") for path in paths]
    rows = pl.concat(frames)
    assert rows.height == 643
    assert rows.select("question", "wrong_answer").n_unique() == rows.height
    assert rows["id"].n_unique() == rows.height


def test_the_public_files_fit_each_other(built: tuple[Path, Path]) -> None:
    train, test = pl.read_csv(built[0] / "train.csv"), pl.read_csv(built[0] / "test.csv")
    sample, hidden = pl.read_csv(built[0] / "sample_submission.csv"), pl.read_csv(built[1] / "test.csv")
    solution = pl.read_csv(built[1] / "solution.csv")
    assert test.columns == hidden.columns == ["id", "question", "correct_answer", "wrong_answer"]
    assert train.columns == [*test.columns, "misconception_id"]
    assert test.height == 3 and list(sample["id"]) == list(test["id"])
    assert sample.columns == solution.columns == ["id", "misconception_id"]
    assert all(len(set(cell.split(" "))) == 25 for cell in sample["misconception_id"])
    assert list(solution["id"]) == list(hidden["id"])
    assert train["id"][0] == "tr00001" and test["id"][0] == "te00001"
