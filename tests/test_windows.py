"""Windows: where they lie, how their answers become scores, what the time cuts, and one model for both questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from test_budget import Clock

from kaggle_llm.competition.rankings import check_ranking, make_ranking
from kaggle_llm.decisions.rerank_blend import Blend, Reranked
from kaggle_llm.decisions.twice_blend import TwiceBlend, TwiceReranked
from kaggle_llm.engines.engine import EngineSettings, LengthError
from kaggle_llm.engines.maker import make_engine
from kaggle_llm.engines.prompts import CandidatePrompts, Group, Prompter, PromptSettings, TokenGroup
from kaggle_llm.engines.tokenizer import load_tokenizer
from kaggle_llm.experiment.rerankers import Both, Pointwise, Windows
from kaggle_llm.inference.budget import Budget
from kaggle_llm.tasks import windows
from kaggle_llm.tasks.choice_training import ChoiceSettings, ChoiceTask
from kaggle_llm.tasks.windows import (
    WindowPrompts,
    WindowSettings,
    ask_windows,
    count_prompts,
    draw_orders,
    fit_scores,
    list_spans,
    rank_windows,
)
from kaggle_llm.tasks.windows_training import TwoFormsTask, mix_examples

LETTERS = "ABCDEFGHIJ"
WORTH = dict(zip(LETTERS, [0.3, 2.0, -1.0, 0.0, 1.1, -2.0, 3.0, 0.5, -0.4, 0.9], strict=True))
DOCUMENTS = pl.DataFrame({"id": list("abcde"), "text": ["adds digits", "forgets the sign", "percent", "width", "area"]})


class Judge:
    """Prompts are windows of WORTH's letters; it prefers by their worth, and by `bias` for each place."""

    def __init__(self, settings: WindowSettings, bias: float = 0.0) -> None:
        self.settings, self.bias, self.labels = settings, bias, range(settings.size)
        self.prompter = SimpleNamespace(labels=self.labels, report_cuts=lambda: None)
        self.calls: list[list[str]] = []

    def prompt(self, row: dict[str, Any], items: Sequence[str]) -> list[int]:
        return [LETTERS.index(item) for item in items]

    def choices(self, prompts: Sequence[Sequence[int]], labels: Sequence[Any]) -> np.ndarray:
        self.calls.append(["".join(LETTERS[i] for i in prompt) for prompt in prompts])
        scores = np.full((len(prompts), len(labels)), -50.0)
        for row, prompt in zip(scores, prompts, strict=True):
            row[: len(prompt)] = [WORTH[LETTERS[i]] - self.bias * n for n, i in enumerate(prompt)]
        return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True) - 0.7  # of the vocabulary some is left


def ranked(*rows: str) -> pl.DataFrame:
    return make_ranking([f"r{n}" for n in range(len(rows))], rows, [range(len(row), 0, -1) for row in rows])


def rank(judge: Judge, *rows: str, depth: int = 10, budget: Budget | None = None) -> pl.DataFrame:
    candidates = ranked(*rows)
    return rank_windows(candidates.select("id"), candidates, depth, judge, judge, budget or Budget())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("count", "size", "step", "spans"),
    [
        (8, 4, 2, [(4, 8), (2, 6), (0, 4)]),
        (8, 4, 3, [(4, 8), (1, 5), (0, 4)]),
        (25, 10, 5, [(15, 25), (10, 20), (5, 15), (0, 10)]),
        (4, 4, 1, [(0, 4)]),
        (3, 4, 2, [(0, 3)]),
        (5, 4, 3, [(1, 5), (0, 4)]),
        (1, 4, 2, []),
        (0, 4, 2, []),
    ],
)
def test_windows_slide_from_the_back_to_the_front(count: int, size: int, step: int, spans: list[Any]) -> None:
    assert list_spans(count, WindowSettings(size, step)) == spans
    assert {n for start, end in spans for n in range(start, end)} == set(range(count if count > 1 else 0))


def test_the_first_order_is_the_given_one_and_all_differ_and_repeat() -> None:
    assert draw_orders(4, 1) == [(0, 1, 2, 3)]
    drawn = draw_orders(4, 6)
    assert drawn[0] == (0, 1, 2, 3) and len(set(drawn)) == 6 and all(sorted(order) == [0, 1, 2, 3] for order in drawn)
    assert drawn == draw_orders(4, 6) and drawn[:3] == draw_orders(4, 3)
    assert set(draw_orders(2, 9)) == {(0, 1), (1, 0)}
    assert count_prompts(8, WindowSettings(4, 2, orders=3, passes=2)) == 3 * 3 * 2
    assert count_prompts(2, WindowSettings(4, 2, orders=3)) == 2


def test_a_good_candidate_climbs_from_the_back_into_every_window() -> None:
    judge = Judge(WindowSettings(4, 2, orders=1))
    rank(judge, "CFIDJHGA")  # G (3.0) is the seventh
    assert judge.calls == [["JHGA"], ["IDGJ"], ["CFGJ"]]


def test_scores_are_the_log_probabilities_among_all_candidates() -> None:
    """A judge whose choice among some has the odds of the choice among all is understood exactly."""
    for settings in (WindowSettings(4, 2, orders=1), WindowSettings(3, 1, orders=2), WindowSettings(5, 4, passes=2)):
        ranking = check_ranking(rank(Judge(settings), "CFIDJHGAEB"), ["r0"])
        scores = dict(zip(ranking["items"][0], ranking["scores"][0], strict=True))
        whole = np.logaddexp.reduce(list(WORTH.values()))
        assert scores == pytest.approx({item: worth - whole for item, worth in WORTH.items()}, abs=1e-9)


def test_the_first_candidates_only_are_ranked() -> None:
    ranking = rank(Judge(WindowSettings(4, 2)), "CFIDJHGAEB", "GA", "B", "", depth=5)
    assert [sorted(items) for items in ranking["items"].to_list()] == [sorted("CFIDJ"), ["A", "G"], ["B"], []]
    assert ranking["items"][1].to_list() == ["G", "A"] and ranking["scores"][2].to_list() == [0.0]


def test_orders_take_away_what_a_place_is_worth() -> None:
    items = "ABCD"
    fair = {item: WORTH[item] - np.logaddexp.reduce([WORTH[i] for i in items]) for item in items}

    def distance(orders: int) -> float:
        judge = Judge(WindowSettings(4, 2, orders), bias=0.8)
        (answer,) = ask_windows([({"id": "r"}, items)], judge, judge)  # type: ignore[arg-type]
        odds = [answer[item] - answer["A"] - fair[item] + fair["A"] for item in items]
        return float(np.abs(odds).max())

    assert distance(24) < 1e-9 < distance(4) < distance(1)


def test_an_answer_is_the_mean_over_the_orders_normalised_over_the_window() -> None:
    judge = Judge(WindowSettings(3, 1, orders=2), bias=0.5)
    (answer,) = ask_windows([({"id": "r"}, "ABC")], judge, judge)  # type: ignore[arg-type]
    means = np.zeros(3)
    for order in draw_orders(3, 2):
        shown = np.array([WORTH["ABC"[i]] - 0.5 * n for n, i in enumerate(order)])
        means[list(order)] += (shown - np.logaddexp.reduce(shown)) / 2
    assert list(answer) == list("ABC") and list(answer.values()) == pytest.approx(means.tolist(), abs=1e-9)


def test_windows_that_disagree_are_averaged() -> None:
    said = [{"a": math.log(0.8), "b": math.log(0.2)}, {"a": math.log(0.2), "b": math.log(0.8)}]
    assert fit_scores("ab", said).tolist() == pytest.approx([math.log(0.5)] * 2)
    assert fit_scores("", []).tolist() == [] and fit_scores("a", []).tolist() == [0.0]


def test_rows_of_a_turn_are_asked_together_and_alone_the_same() -> None:
    rows = ["CFIDJHGA", "BA", "GIEDC"]
    judge = Judge(WindowSettings(4, 2, orders=1))
    together = rank(judge, *rows)
    assert [len(call) for call in judge.calls] == [3, 2, 1]
    for number, row in enumerate(rows):
        alone = rank(Judge(judge.settings), row)
        assert alone["items"][0].to_list() == together["items"][number].to_list()
        assert alone["scores"][0].to_list() == together["scores"][number].to_list()


def test_a_second_pass_begins_with_the_order_of_the_first_and_the_most_uncertain_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(windows, "ROWS_A_CHUNK", 1)
    judge = Judge(WindowSettings(2, 1, orders=1, passes=2))
    rank(judge, "FG", "AH", "DE", budget=Budget(limit=1e6))  # margins 5.0, 0.2, 1.1
    assert judge.calls == [["FG"], ["AH"], ["DE"], ["HA"], ["ED"], ["GF"]]


@pytest.mark.parametrize(("seconds", "rows", "calls"), [(2.5, 2, 2), (4.5, 3, 4), (99.0, 3, 6)])
def test_the_time_cuts_rows_in_the_first_pass_and_further_windows_in_the_second(
    monkeypatch: pytest.MonkeyPatch, seconds: float, rows: int, calls: int
) -> None:
    monkeypatch.setattr(windows, "ROWS_A_CHUNK", 1)
    clock = Clock()
    judge, offered = Judge(WindowSettings(2, 1, orders=1, passes=2)), list[int]()
    choices = judge.choices

    def ask(prompts: Any, labels: Any) -> np.ndarray:
        clock.now += 1.0
        return choices(prompts, labels)

    monkeypatch.setattr(judge, "choices", ask)
    candidates, budget = ranked("FG", "AH", "DE"), Budget(limit=seconds, clock=clock)
    ranking = rank_windows(  # type: ignore[arg-type]
        candidates.select("id"), candidates, 2, judge, judge, budget, lambda frame: offered.append(frame.height)
    )
    assert (ranking.height, len(judge.calls), offered[0]) == (rows, calls, rows)
    assert sum(budget.cuts.values()) == 6 - calls - (3 if rows < 3 else 0)


def test_a_prompt_that_is_too_long_names_its_row() -> None:
    judge = Judge(WindowSettings(3, 1, orders=2))

    def refuse(prompts: Any, labels: Any) -> np.ndarray:
        raise LengthError(3, 9, 5, Path("model"))

    judge.choices = refuse  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="row 'r1': prompt 3 has 9 tokens"):
        rank(judge, "ABC", "DEF")


@pytest.mark.parametrize("settings", [{"size": 4, "step": 4}, {"size": 27}, {"step": 0}, {"orders": 0}, {"passes": 0}])
def test_windows_that_do_not_overlap_or_ask_nothing_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=" = "):
        WindowSettings(**settings)


@pytest.fixture(scope="module")
def prompter(pico_llm: Path) -> Prompter:
    settings = PromptSettings(
        shared="Question: {question}\n", candidate="Mistake: {text}\nTrue?", labels=[" Yes", " No"], chat=False
    )
    return Prompter(load_tokenizer(pico_llm), settings)


def test_a_window_shows_its_candidates_under_letters_in_training_as_in_prediction(prompter: Prompter) -> None:
    made = WindowPrompts(prompter, WindowSettings(3, 1), DOCUMENTS)
    row = {"id": "q", "question": "3 x 5?"}
    shown = made.prompt(row, ["c", "a"])
    assert prompter.tokenizer.decode(shown) == "Question: 3 x 5?\nA: percent\nB: adds digits\nAnswer:"
    (example,) = made.examples(pl.DataFrame([row]), [Group("q", ("c", "a"), (0.0, 1.0))])
    assert example == TokenGroup(shown, [()], (0.0, 1.0, 0.0))
    with pytest.raises(ValueError, match="4 options, but prompt"):
        made.prompt(row, list("abcd"))


def test_windows_of_a_language_model_are_its_letters_log_probabilities(prompter: Prompter, pico_llm: Path) -> None:
    settings, row = WindowSettings(3, 1, orders=1), {"id": "q", "question": "3 x 5?"}
    made = WindowPrompts(prompter, settings, DOCUMENTS)
    engine = make_engine(pico_llm, EngineSettings())
    candidates = make_ranking(["q"], ["abcd"], [[4, 3, 2, 1]])
    ranking = rank_windows(pl.DataFrame([row]), candidates, 3, made, engine, Budget())
    (logs,) = engine.choices([made.prompt(row, list("abc"))], made.prompter.labels)
    engine.close()
    scores = dict(zip(ranking["items"][0], ranking["scores"][0], strict=True))
    assert scores == pytest.approx(dict(zip("abc", logs - np.logaddexp.reduce(logs), strict=True)), abs=1e-9)


@pytest.fixture(scope="module")
def examples(prompter: Prompter) -> tuple[list[TokenGroup], list[TokenGroup]]:
    rows = pl.DataFrame({"id": ["p", "q"], "question": ["3 x 5?", "20% of 60"]})
    groups = [Group("p", ("a", "b", "c"), (0.0, 1.0, 0.0)), Group("q", ("d", "e"), (1.0, 0.0))]
    windowed = WindowPrompts(prompter, WindowSettings(3, 1), DOCUMENTS).examples(rows, groups)
    return CandidatePrompts(prompter, DOCUMENTS).groups(rows, groups), windowed


def test_one_model_learns_both_questions_with_the_losses_of_each(
    prompter: Prompter, pico_llm: Path, examples: tuple[list[TokenGroup], list[TokenGroup]]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    choice, windows = ChoiceSettings(group_size=3), WindowPrompts(prompter, WindowSettings(3, 1), DOCUMENTS)
    prompts = CandidatePrompts(prompter, DOCUMENTS)
    both = Both(prompts, windows).task(choice)
    single = [kind(prompts, windows).task(choice) for kind in (Pointwise, Windows)]
    assert isinstance(both, TwoFormsTask) and [type(task) for task in single] == [ChoiceTask, ChoiceTask]
    assert [task.settings.form for task in single] == ["pointwise", "labels"]
    model = AutoModelForCausalLM.from_pretrained(pico_llm, dtype=torch.float32, **both.config()).eval()
    with torch.no_grad():
        sums = [task.loss(model, kind).item() for task, kind in zip(single, examples, strict=True)]
        mixed = mix_examples(*examples, seed=0)
        assert both.loss(model, mixed).item() == pytest.approx(sum(sums), abs=1e-4)
    assert {both.weight(example) for example in mixed} == {1.0}
    assert sorted(map(len, mixed)) == sorted(len(example) for kind in examples for example in kind)
    with pytest.raises(ValueError, match="2 values for 3 options"):
        both.weight(TokenGroup([1], [()], (1.0, 0.0)))


def draw_twice(rows: int = 200) -> tuple[TwiceReranked, pl.DataFrame]:
    """Candidates' scores, and a right one drawn from softmax(0.5 · pointwise + 2 · windows − log(rank))."""
    rng = np.random.default_rng(0)
    ids, items = [f"r{n}" for n in range(rows)], list("abcde")
    first, second = rng.normal(size=(2, rows, 5))
    logits = 0.5 * first + 2.0 * second - np.log(np.arange(1, 6))
    right = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    truth = pl.DataFrame({"id": ids, "items": [[items[n]] for n in right]})
    retrieved = make_ranking(ids, [items] * rows, [range(5, 0, -1)] * rows)
    return TwiceReranked(retrieved, *(make_ranking(ids, [items] * rows, scores) for scores in (first, second))), truth


def test_both_weights_are_found_in_what_they_made() -> None:
    scored, truth = draw_twice()
    fitted = TwiceBlend().fit(scored, truth, None)  # type: ignore[arg-type]
    assert fitted.pointwise == pytest.approx(0.5, abs=0.3) and fitted.windows == pytest.approx(2.0, abs=0.5)


def test_a_row_without_windows_is_blended_by_its_other_score() -> None:
    scored, truth = draw_twice(12)
    cut = TwiceReranked(scored.retrieved, scored.reranked, scored.windows[:5])
    blend = TwiceBlend(0.7, 1.5)
    whole, partly = blend.apply(scored), blend.apply(cut)
    assert partly[:5].equals(whole[:5])
    assert partly[5:].equals(Blend(0.7).apply(Reranked(scored.retrieved, scored.reranked))[5:])
    nothing = TwiceReranked(scored.retrieved, scored.reranked.clear(), scored.windows.clear())
    assert blend.apply(nothing)["items"].to_list() == scored.retrieved["items"].to_list()
    assert blend.fit(nothing, truth, None) == blend  # type: ignore[arg-type]
