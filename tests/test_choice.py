"""Options by letter: what a prompt shows, orders there and back, symmetric answers, the same code in training."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kaggle_llm.competition.rankings import most_uncertain_first
from kaggle_llm.engines.engine import EngineSettings
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.prompts import Prompter, PromptSettings
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.inference.budget import Budget
from kaggle_llm.tasks import choice
from kaggle_llm.tasks.choice import (
    OrderSettings,
    Question,
    list_examples,
    list_orders,
    rank_options,
    shuffle_orders,
    to_names,
    to_positions,
)

LETTERS, OTHERS = [" Yes", " No", " is"], [" the"]  # one token each in the throwaway tokenizer


@pytest.fixture(scope="module")
def prompter(pico_llm: Path) -> Prompter:
    settings = PromptSettings(
        shared="Question: {question}\n",
        candidate="{letter}. {text}\n",
        ending="Answer:",
        labels=LETTERS,
        others=OTHERS,
        chat=False,
    )
    return Prompter(load_tokenizer(pico_llm), settings)


@pytest.fixture(scope="module")
def engine(pico_llm: Path) -> Any:
    made = make_engine(pico_llm, EngineSettings())
    yield made
    made.close()


def question(first: str, second: str, target: tuple[float, ...] | None = None, name: str = "q") -> Question:
    options = ({"text": first}, {"text": second})
    return Question({"id": name, "question": "What is 3 x 5?"}, ("first", "second", "tie"), options, target)


def scores(ranking: Any) -> dict[str, float]:
    (row,) = ranking.iter_rows(named=True)
    return dict(zip(row["items"], row["scores"], strict=True))


def test_a_list_shows_each_option_behind_its_letter(prompter: Prompter) -> None:
    shown = prompter.listing({"question": "3 x 5?"}, [{"text": "15"}, {"text": "8"}])
    assert prompter.tokenizer.decode(shown) == "Question: 3 x 5?\nYes. 15\nNo. 8\nAnswer:"


def test_orders_are_those_that_their_name_says() -> None:
    assert list_orders(3, "given") == [(0, 1, 2)]
    assert list_orders(3, "both") == [(0, 1, 2), (2, 1, 0)]
    assert list_orders(3, "rotations") == [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
    assert list_orders(1, "both") == [(0,)]
    shuffled = shuffle_orders(5, "both", random.Random(1))
    assert shuffled[0] != (0, 1, 2, 3, 4) and shuffled[1] == shuffled[0][::-1]


@pytest.mark.parametrize("seed", range(5))
def test_places_lead_back_to_names(seed: int) -> None:
    rng = random.Random(seed)
    order, values = tuple(rng.sample(range(4), 4)), [rng.random() for _ in range(6)]
    places = to_positions(values, order)
    assert places[:4] == [values[i] for i in order] and places[4:] == values[4:], "others stay behind"
    assert to_names(np.array(places), order).tolist() == values


def test_both_orders_make_answers_symmetric(prompter: Prompter, engine: Any) -> None:
    """P(first | x, y) = P(second | y, x), and a tie is a tie either way."""
    for mean in ("log", "probability"):
        settings = OrderSettings("both", mean)
        one = scores(rank_options([question("15", "8 apples")], prompter, engine, settings, Budget()))
        other = scores(rank_options([question("8 apples", "15")], prompter, engine, settings, Budget()))
        assert one["first"] == pytest.approx(other["second"], abs=1e-5)
        assert one["second"] == pytest.approx(other["first"], abs=1e-5)
        assert one["tie"] == pytest.approx(other["tie"], abs=1e-5)
    given = OrderSettings("given")
    first = scores(rank_options([question("15", "8 apples")], prompter, engine, given, Budget()))
    assert abs(first["first"] - one["first"]) > 1e-3, "without the swap the place counts"


def test_scores_are_the_mean_that_its_name_says(prompter: Prompter, engine: Any) -> None:
    asked, swapped = [{"text": "15"}, {"text": "8"}], [{"text": "8"}, {"text": "15"}]
    row = {"id": "q", "question": "What is 3 x 5?"}
    labels = [prompter.labels[0], prompter.labels[1], prompter.labels[3]]
    one, two = engine.choices([prompter.listing(row, asked), prompter.listing(row, swapped)], labels)
    one, two = one - np.logaddexp.reduce(one), (two - np.logaddexp.reduce(two))[[1, 0, 2]]
    geometric = np.exp((one + two) / 2) / np.exp((one + two) / 2).sum()
    arithmetic = (np.exp(one) + np.exp(two)) / 2
    for mean, expected in (("log", geometric), ("probability", arithmetic)):
        found = scores(rank_options([question("15", "8")], prompter, engine, OrderSettings("both", mean), Budget()))
        assert [found[name] for name in ("first", "second", "tie")] == pytest.approx(
            np.log(expected).tolist(), abs=1e-5
        )


class TimedEngine:
    """Every prompt takes a second."""

    def __init__(self, engine: Any) -> None:
        self.engine, self.now, self.asked = engine, 0.0, 0

    def choices(self, prompts: list[Any], labels: list[Any]) -> np.ndarray:
        self.now, self.asked = self.now + len(prompts), self.asked + len(prompts)
        return self.engine.choices(prompts, labels)


def test_where_time_is_short_the_most_uncertain_questions_get_the_other_order(
    prompter: Prompter, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "ROWS_A_CHUNK", 2)
    settings, questions = OrderSettings("both"), [question(str(n), str(7 * n), name=str(n)) for n in range(8)]
    given = rank_options(questions, prompter, engine, OrderSettings("given"), Budget())
    both = rank_options(questions, prompter, engine, settings, Budget())
    timed = TimedEngine(engine)
    budget = Budget(12.0, clock=lambda: timed.now)
    found = rank_options(questions, prompter, timed, settings, budget)  # 8 in the given order, 4 in the other
    assert timed.asked == 12 and budget.cuts == {"choice in other orders": 4}
    twice = most_uncertain_first(given)[:4]
    for row, one, two in zip(*(frame.iter_rows(named=True) for frame in (found, given, both)), strict=True):
        expected = two if row["id"] in twice else one
        assert row["items"] == expected["items"]
        assert row["scores"] == pytest.approx(expected["scores"], abs=1e-5)
    budget = Budget(4.0, clock=lambda: timed.now)
    found = rank_options(questions, prompter, timed, settings, budget)
    assert found["id"].to_list() == ["0", "1", "2", "3"]
    assert budget.cuts == {"choice": 4}


def test_training_shows_what_prediction_shows_with_the_target_moved_along(prompter: Prompter) -> None:
    asked = question("15", "8", target=(0.7, 0.1, 0.2))
    given, swapped = list_examples([asked], prompter, "both", shuffle=False, seed=0)
    assert list(given.shared) == prompter.listing(asked.row, list(asked.options))
    assert list(swapped.shared) == prompter.listing(asked.row, list(asked.options[::-1]))
    assert given.target == (0.7, 0.1, 0.2) and swapped.target == (0.1, 0.7, 0.2)


def test_shuffled_lists_put_the_right_one_everywhere(prompter: Prompter) -> None:
    options = tuple({"text": text} for text in ("a", "b", "c"))
    asked = [
        Question({"id": str(n), "question": "?"}, ("a", "b", "c", "tie"), options, (1.0, 0, 0, 0)) for n in range(40)
    ]
    examples = list_examples(asked, prompter, "given", shuffle=True, seed=0)
    assert {example.target.index(1.0) for example in examples} == {0, 1, 2}
    for example in examples:
        letter = LETTERS[example.target.index(1.0)].strip()
        assert f"{letter}. a\n" in prompter.tokenizer.decode(list(example.shared))
    assert examples == list_examples(asked, prompter, "given", shuffle=True, seed=0)


def test_what_does_not_go_together_is_refused(prompter: Prompter, engine: Any) -> None:
    options = tuple({"text": str(n)} for n in range(4))
    four = Question({"id": "f", "question": "?"}, ("a", "b", "c", "d", "tie"), options)
    with pytest.raises(ValueError, match=r"4 options, but prompt.labels has 3 letters"):
        rank_options([four], prompter, engine, OrderSettings(), Budget())
    with pytest.raises(ValueError, match=r"questions of \[2, 4\] options"):
        rank_options([question("a", "b"), four], prompter, engine, OrderSettings(), Budget())
    with pytest.raises(ValueError, match=r"row 'q' has 2 names for 2 options and 1 of prompt.others"):
        rank_options([Question({"id": "q"}, ("a", "b"), options[:2])], prompter, engine, OrderSettings(), Budget())
    with pytest.raises(ValueError, match="row 'q' has no target"):
        list_examples([question("a", "b")], prompter, "both", False, 0)


def test_no_questions_are_no_rows(prompter: Prompter, engine: Any) -> None:
    assert rank_options([], prompter, engine, OrderSettings(), Budget()).height == 0
