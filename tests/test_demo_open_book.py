"""The encyclopedia answers its questions, and nothing but reading the right article does."""

import random
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

from kaggle_llm.competition.competition import CompetitionSettings, load_competition
from kaggle_llm.competition.csv_table import read_csv
from kaggle_llm.competition.demo_open_book import LETTERS, DemoOpenBook
from kaggle_llm.competition.rankings import make_ranking
from kaggle_llm_demo.open_book import NAME, build_competition, draw_exercises, draw_family
from kaggle_llm_demo.open_book_facts import KINDS, WORDS


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("open-book")
    build_competition(folder / "input", folder / "hidden")
    return folder


@pytest.fixture(scope="module")
def competition(folder: Path) -> DemoOpenBook:
    found = load_competition(CompetitionSettings(NAME), folder / "input")
    assert isinstance(found, DemoOpenBook)
    found.check()
    return found


def hits(rows: pl.DataFrame, articles: dict[str, str]) -> list[float]:
    """The chance to be right for who takes any option that stands in the right article."""
    chances = []
    for row in rows.iter_rows(named=True):
        found = [letter for letter in LETTERS if row[letter] in articles[row["article"]]]
        assert row["answer"] in found
        chances.append(1 / len(found))
    return chances


def test_options_are_five_values_and_the_right_one_is_what_the_article_says_of_the_question() -> None:
    rng = random.Random(1)
    families = [draw_family(number, rng) for number in range(30)]
    for family in families:
        for exercise in draw_exercises(family, rng):
            article = exercise.article
            (fact,) = [
                fact
                for fact in article.asked
                if exercise.question in [one.format(it=article.name) for one in fact.asked]
            ]
            right, *wrong = exercise.options
            assert right == article.facts[fact.name] and right in article.text
            assert len({right, *wrong}) == len(LETTERS)
            alike = {other.facts[fact.name] for other in family if other is not article}
            assert alike <= set(wrong), "look-alikes' values are among the options"


def test_every_fact_can_be_told_of_a_named_article_and_asked_in_two_ways() -> None:
    for kind in KINDS:
        assert len(kind.titles) >= 3 and len({fact.name for fact in kind.facts}) == len(kind.facts)
        for fact in kind.facts:
            assert len(set(fact.told)) >= 2 and len(set(fact.asked)) >= 2
            assert any("{it}" in phrase for phrase in fact.told) and all("{it}" in phrase for phrase in fact.asked)
            assert all("{value}" in phrase for phrase in fact.told)
            assert fact.values in WORDS or fact.values in ("year", "person", "name") or len(fact.values.split()) == 2


def test_articles_are_of_sixty_to_two_hundred_and_fifty_words_with_names_of_their_own(
    competition: DemoOpenBook,
) -> None:
    articles = competition.table("articles")
    sizes = articles["text"].str.split(" ").list.len().to_list()
    assert min(sizes) >= 60 and max(sizes) <= 250
    assert articles["title"].n_unique() == articles["text"].n_unique() == articles.height > 100
    assert not articles.filter(pl.col("text").str.contains(r"[{}]")).height


def test_an_option_that_stands_in_the_right_article_need_not_be_right(competition: DemoOpenBook) -> None:
    articles = dict(competition.table("articles").select("id", "text").iter_rows())
    chances = hits(competition.table("train"), articles)
    assert 0.6 < sum(chances) / len(chances) < 0.9


def test_without_the_articles_no_option_is_likelier_than_another(competition: DemoOpenBook) -> None:
    """Neither its letter nor how often it was right, wrong or at all an option in other rows tells."""
    train = competition.table("train")
    right = Counter(row[row["answer"]] for row in train.iter_rows(named=True))
    shown = Counter(row[letter] for row in train.iter_rows(named=True) for letter in LETTERS)
    by_rule = 0
    for row in train.iter_rows(named=True):
        others = {one: right[row[one]] - (one == row["answer"]) for one in LETTERS}
        by_rule += max(LETTERS, key=lambda one: others[one] / shown[row[one]]) == row["answer"]
    assert by_rule / train.height < 0.3
    assert max(Counter(train["answer"].to_list()).values()) < 0.27 * train.height


def test_hidden_questions_are_about_articles_that_were_asked_about_and_others(folder: Path) -> None:
    train, solution = read_csv(folder / "input" / "train.csv"), read_csv(folder / "hidden" / "solution.csv")
    test, articles = read_csv(folder / "hidden" / "test.csv"), read_csv(folder / "input" / "articles.csv")
    known = solution["article"].is_in(train["article"].implode())
    assert (train.height, test.height) == (600, 40) and 10 <= known.sum() <= 30
    assert test.columns == ["id", "question", *LETTERS] and solution.columns == ["id", "answer", "article"]
    assert set(test["question"]).isdisjoint(train["question"])
    assert set(train["article"]) | set(solution["article"]) <= set(articles["article_id"])
    assert train["article"].value_counts()["count"].mean() > 3


def test_a_seed_gives_the_same_files_and_another_one_others(folder: Path, tmp_path: Path) -> None:
    build_competition(tmp_path / "same" / "input", tmp_path / "same" / "hidden")
    build_competition(tmp_path / "other" / "input", tmp_path / "other" / "hidden", seed=1)
    for path in (path for path in folder.rglob("*.csv") if path.name != "sample_submission.csv"):
        place = path.relative_to(folder)
        assert (tmp_path / "same" / place).read_bytes() == path.read_bytes()
        assert (tmp_path / "other" / place).read_bytes() != path.read_bytes()


@pytest.mark.parametrize(("train_rows", "hidden_rows"), [(20, 3), (60, 6), (10, 200)])
def test_small_competitions_have_the_rows_that_were_asked_for(
    tmp_path: Path, train_rows: int, hidden_rows: int
) -> None:
    build_competition(tmp_path / "input", tmp_path / "hidden", train_rows=train_rows, hidden_rows=hidden_rows)
    names = ("input/train", "input/test", "hidden/test")
    assert [read_csv(tmp_path / f"{name}.csv").height for name in names] == [train_rows, 3, hidden_rows]


def test_more_articles_change_no_question_and_answer_none(folder: Path, tmp_path: Path) -> None:
    build_competition(tmp_path / "input", tmp_path / "hidden", articles=400)
    for name in ("input/train.csv", "hidden/test.csv", "hidden/solution.csv"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    few, many = (read_csv(path / "input" / "articles.csv") for path in (folder, tmp_path))
    assert 400 <= many.height < 403 and many.head(few.height).equals(few)
    assert many["article_id"].n_unique() == many["text"].n_unique() == many.height


def test_a_submission_lists_up_to_three_letters(competition: DemoOpenBook) -> None:
    ids = competition.table("test")["id"].to_list()
    ranking = make_ranking(ids, [["C", "A", "E", "B", "D"]] * 3, [[5.0, 4.0, 3.0, 2.0, 1.0]] * 3)
    submission = competition.submission(ranking)
    assert submission["answer"].to_list() == ["C A E"] * 3 and competition.check_submission(submission) == []
    assert competition.ranking_of(submission)["items"].to_list() == [["C", "A", "E"]] * 3
    assert competition.check_submission(competition.sample()) == []
    for cell, fault in (("A F", "unknown label 'F'"), ("A A", "a label occurs twice"), ("", "empty label")):
        wrong = submission.with_columns(answer=pl.Series([cell, "A", "B"]))
        assert competition.check_submission(wrong) == [f"row {ids[0]}: {fault}"]


def test_the_metric_gives_a_half_for_the_second_letter(competition: DemoOpenBook) -> None:
    rows = competition.table("train").head(1)
    right = rows["answer"][0]
    wrong = next(letter for letter in LETTERS if letter != right)
    ranking = make_ranking(rows["id"].to_list(), [[wrong, right]], [[2.0, 1.0]])
    assert competition.metric.score(ranking, competition.truth(rows)) == 0.5
