"""Metrics of the tasks against scikit-learn, scipy and cases worked out by hand; the bootstrap takes them all."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from kaggle_llm.competition.metrics import (
    Metric,
    accuracy,
    bleu,
    bootstrap_interval,
    chrf,
    exact_match,
    f_beta,
    log_loss,
    matthews_correlation,
    mean_reciprocal_rank,
    ndcg,
    normalise_answer,
    numeric_match,
    paired_difference,
    pearson,
    precision,
    quadratic_weighted_kappa,
    repetition,
    roc_auc,
    root_mean_squared_error,
    rouge,
    sharpened_cosine,
    span_f_beta,
    spearman,
    words,
)
from kaggle_llm.competition.rankings import make_ranking, make_values, top

LEVELS = ["low", "mid", "high", "top"]


def answers(*rows: list[str]) -> pl.DataFrame:
    """A ranking; a row's items best first."""
    return make_ranking([f"r{i}" for i in range(len(rows))], rows, [[-float(i) for i in range(len(r))] for r in rows])


def true(*rows: list[str]) -> pl.DataFrame:
    schema = {"id": pl.String(), "items": pl.List(pl.String())}
    return pl.DataFrame({"id": [f"r{i}" for i in range(len(rows))], "items": rows}, schema)


def ones(values: list) -> list[list[str]]:
    return [[str(value)] for value in values]


def numbers(*values: float) -> pl.DataFrame:
    """VALUES: one number a row."""
    return make_values([f"r{i}" for i in range(len(values))], [[value] for value in values])


def drawn_labels(count: int, seed: int, labels: list[str]) -> tuple[list[str], np.ndarray, pl.DataFrame]:
    """True labels, log-probabilities [count, labels] up to a constant a row, and their ranking."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(count, len(labels))) * 3 - 5
    ranking = make_ranking([f"r{i}" for i in range(count)], [labels] * count, scores.tolist())
    return rng.choice(labels, count).tolist(), scores, ranking


def test_accuracy_asks_whether_the_first_item_is_right() -> None:
    ranking = answers(["a", "b"], ["b", "a"], [], ["c"])
    assert accuracy().rows(ranking, true(["a"], ["a"], ["a"], ["b", "c"])).tolist() == [1.0, 0.0, 0.0, 1.0]
    assert accuracy().score(ranking, true(["a"], ["a"], ["a"], ["b", "c"])) == 0.5


def test_log_loss_is_that_of_scikit_learn_on_renormalised_rows() -> None:
    from scipy.special import softmax
    from sklearn.metrics import log_loss as reference

    labels = ["a", "b", "tie"]
    right, scores, ranking = drawn_labels(50, 0, labels)
    expected = reference(right, softmax(scores, axis=1), labels=labels)
    assert log_loss(labels).score(ranking, true(*ones(right))) == pytest.approx(expected, abs=1e-12)
    assert not log_loss(labels).greater_is_better


@pytest.mark.parametrize("scores", [[0.0, -2000.0], [900.0, -900.0]])
def test_log_loss_of_an_impossible_answer_is_cut_as_kaggle_does(scores: list[float]) -> None:
    ranking = make_ranking(["r0", "r1"], [["a", "b"]] * 2, [scores] * 2)
    rows = log_loss(["a", "b"]).rows(ranking, true(["b"], ["a"]))
    assert rows.tolist() == pytest.approx([-math.log(1e-15), 1e-15], rel=0.12)
    assert rows[0] == pytest.approx(34.538776, abs=1e-6)
    assert rows[1] > 0


def test_log_loss_of_votes_is_their_mean() -> None:
    """Three voters, two of them for a: as if the row stood there three times."""
    ranking = make_ranking(["r0", "r1"], [["a", "b"], ["b", "a"]], [[0.4, -1.0], [0.0, -3.0]])
    votes = true(["a", "b"], ["b"]).with_columns(shares=pl.Series([[2 / 3, 1 / 3], [1.0]]))
    each = [log_loss(["a", "b"]).rows(ranking, true([first], ["b"])) for first in ("a", "a", "b")]
    assert log_loss(["a", "b"]).rows(ranking, votes).tolist() == pytest.approx((sum(each) / 3).tolist())


@pytest.mark.parametrize("shares", [[0.5, 0.2], [1.0]])
def test_log_loss_refuses_votes_that_do_not_sum_to_1(shares: list[float]) -> None:
    truth = true(["a", "b"]).with_columns(shares=pl.Series([shares]))
    with pytest.raises(ValueError, match=r"'r0' has the right labels .* must sum to 1"):
        log_loss(["a", "b"]).score(answers(["a", "b"]), truth)


def test_log_loss_refuses_two_right_labels_without_shares() -> None:
    with pytest.raises(ValueError, match="must sum to 1"):
        log_loss(["a", "b"]).score(answers(["a", "b"]), true(["a", "b"]))


@pytest.mark.parametrize(("items", "right"), [(["a"], ["a"]), (["a", "c"], ["a"]), (["a", "b"], ["c"])])
def test_log_loss_refuses_a_row_without_a_score_for_each_label(items: list[str], right: list[str]) -> None:
    with pytest.raises(ValueError, match=r"row 'r0' scores .* give a score for each of \['a', 'b'\]"):
        log_loss(["a", "b"]).score(answers(items), true(right))


@pytest.mark.parametrize("seed", range(5))
def test_kappa_is_that_of_scikit_learn(seed: int) -> None:
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(seed)
    right = rng.integers(0, 4, 60)
    guess = np.clip(right + rng.integers(-seed, seed + 1, 60), 0, 3)
    names = [[LEVELS[level] for level in part] for part in (guess, right)]
    score = quadratic_weighted_kappa(LEVELS).score(answers(*ones(names[0])), true(*ones(names[1])))
    assert score == pytest.approx(cohen_kappa_score(guess, right, weights="quadratic", labels=range(4)), abs=1e-12)


def test_kappa_worked_out_by_hand() -> None:
    """Distances 0, 1, 2: observed (0+1+4)/3; expected over all 9 pairs of guess {0,1,2} and truth {0,0,0}: 15/9."""
    metric = quadratic_weighted_kappa(LEVELS)
    assert metric.score(answers(*ones(LEVELS[:3])), true(*ones(["low"] * 3))) == pytest.approx(0, abs=1e-15)
    # guess 0,0,2 and truth 0,2,2: observed 4/3, expected (3·0 + 4·(2·2 + 1·1))/9 = 20/9, κ = 1 − 12/20
    guess, right = ["low", "low", "high"], ["low", "high", "high"]
    assert metric.score(answers(*ones(guess)), true(*ones(right))) == pytest.approx(0.4, abs=1e-15)


def test_kappa_of_one_level_in_both_is_nothing_beyond_chance() -> None:
    assert quadratic_weighted_kappa(LEVELS).score(answers(["mid"], ["mid"]), true(["mid"], ["mid"])) == 0.0


def test_kappa_refuses_what_is_no_level() -> None:
    metric = quadratic_weighted_kappa(LEVELS)
    with pytest.raises(ValueError, match=r"\['2.5'\] are no levels"):
        metric.score(answers(["2.5"]), true(["mid"]))
    with pytest.raises(ValueError, match=r"1 row\(s\) have no answer: every row needs one, first \['r1'\]"):
        metric.score(answers(["mid"], []), true(["mid"], ["mid"]))
    with pytest.raises(ValueError, match=r"1 row\(s\) have not exactly one right answer, first \['r0'\]"):
        metric.score(answers(["mid"], ["low"]), true(["mid", "low"], ["mid"]))


def test_precision_and_reciprocal_ranks_by_hand() -> None:
    ranking, truth = answers(["a", "b", "c"], ["x", "y"], []), true(["b", "c"], ["a"], ["a"])
    assert precision(2).rows(ranking, truth).tolist() == [1 / 2, 0.0, 0.0]
    assert precision(5).rows(ranking, truth).tolist() == [2 / 5, 0.0, 0.0]
    assert mean_reciprocal_rank().rows(ranking, truth).tolist() == [1 / 2, 0.0, 0.0]


@pytest.mark.parametrize("k", [1, 3, 8])
def test_ndcg_of_graded_items_is_that_of_scikit_learn(k: int) -> None:
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(k)
    grades, scores = rng.integers(0, 4, (30, 8)), rng.normal(size=(30, 8))
    grades[:, 0] = 1  # a row without a right item has no best order
    names = [f"d{item}" for item in range(8)]
    ranking = make_ranking([f"r{i}" for i in range(30)], [names] * 30, scores.tolist())
    right = [[name for name, grade in zip(names, row, strict=True) if grade] for row in grades]
    truth = true(*right).with_columns(grades=pl.Series([[float(grade) for grade in row if grade] for row in grades]))
    assert ndcg(k).score(ranking, truth) == pytest.approx(ndcg_score(grades, scores, k=k), abs=1e-12)
    binary = ndcg_score(grades > 0, scores, k=k)
    assert ndcg(k).score(ranking, truth.drop("grades")) == pytest.approx(binary, abs=1e-12)
    assert ndcg(k).rows(answers([]), true(["a"])).tolist() == [0.0]


@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
@pytest.mark.parametrize("beta", [0.5, 1, 2])
def test_f_beta_and_matthews_correlation_are_those_of_scikit_learn(beta: float, average: str) -> None:
    from sklearn.metrics import fbeta_score, matthews_corrcoef

    right, _, ranking = drawn_labels(60, 3, LEVELS)
    guess = [items[0] for items in ranking["items"].to_list()]
    expected = fbeta_score(right, guess, beta=beta, labels=LEVELS, average=average)
    assert f_beta(beta, LEVELS, average).score(ranking, true(*ones(right))) == pytest.approx(expected, abs=1e-12)
    assert matthews_correlation().score(ranking, true(*ones(right))) == pytest.approx(matthews_corrcoef(right, guess))


def test_macro_f_beta_counts_a_label_that_is_never_predicted_as_zero() -> None:
    """F1 of a is 2/3 (one hit, one too many), of b 0, of c, which does not occur, 0."""
    score = f_beta(1, ["a", "b", "c"]).score(answers(["a"], ["a"]), true(["a"], ["b"]))
    assert score == pytest.approx(2 / 9, abs=1e-15)


def test_the_area_under_the_curve_is_that_of_scikit_learn_with_equal_probabilities() -> None:
    from scipy.special import softmax
    from sklearn.metrics import roc_auc_score

    labels = ["0", "1"]
    right, scores, _ = drawn_labels(80, 5, labels)
    scores = np.round(scores)  # many are equal
    ranking = make_ranking([f"r{i}" for i in range(80)], [labels] * 80, scores.tolist())
    expected = roc_auc_score([label == "1" for label in right], softmax(scores, axis=1)[:, 1])
    assert roc_auc().score(ranking, true(*ones(right))) == pytest.approx(expected, abs=1e-12)
    sure = make_ranking(["r0", "r1"], [labels] * 2, [[0.0, 800.0], [0.0, 900.0]])  # both probabilities are 1.0
    assert roc_auc().score(sure, true(["0"], ["1"])) == 1.0


def test_the_area_under_the_curve_is_averaged_over_targets_or_groups() -> None:
    """Rows 0 to 3; target 0 has one of four pairs wrong, target 1 none right; group g has only one class."""
    values = make_values(["r0", "r1", "r2", "r3"], [[0.1, 0.9], [0.7, 0.8], [0.6, 0.2], [0.9, 0.1]])
    truth = make_values(["r0", "r1", "r2", "r3"], [[0, 0], [0, 0], [1, 1], [1, 1]])
    assert roc_auc().score(values, truth) == pytest.approx((3 / 4 + 0) / 2)
    ranking = make_ranking(truth["id"].to_list(), [["1", "0"]] * 4, [[p, 0] for p in (0.1, 0.7, 0.6, 0.9)])
    groups = true(["0"], ["0"], ["1"], ["1"]).with_columns(rule=pl.Series(["g", "h", "h", "h"]))
    assert roc_auc(by="rule").score(ranking, groups) == pytest.approx(1 / 2)
    with pytest.raises(ValueError, match=r"auc of 2 row\(s\) of one class is not defined"):
        roc_auc().score(ranking[:2], groups)


def test_the_area_of_one_label_among_three_is_by_its_probability_against_both_others() -> None:
    """p of the first row 0.52, of the second 0.45, though its score is farther from the best of the others."""
    ranking = make_ranking(["r0", "r1"], [["1", "2", "3"]] * 2, [[1.0, 0.9, -5.0], [1.0, 0.5, 0.5]])
    assert roc_auc().score(ranking, true(["1"], ["2"])) == 1.0


def test_draws_that_do_not_define_a_metric_are_left_out_of_its_interval() -> None:
    """Of six rows, one of them positive, a third of all resamples have one class: the interval ended in an error."""
    ids = [f"r{n}" for n in range(6)]
    ranking = make_ranking(ids, [["1", "0"]] * 6, [[p, 0] for p in (0.9, 0.1, 0.2, 0.3, 0.4, 0.95)])
    truth = true(["1"], ["0"], ["0"], ["0"], ["0"], ["0"])
    low, high = bootstrap_interval(roc_auc(), ranking, truth, draws=50)
    assert 0.0 <= low < roc_auc().score(ranking, truth) == 0.8 < high <= 1.0
    assert paired_difference(roc_auc(), ranking, ranking, truth, draws=50) == (0.0, 0.0, 0.0)
    assert roc_auc().try_score(ranking[1:3], truth) is None


def test_a_weighted_log_loss_by_hand() -> None:
    """−(1·log ½ + 3·log ¼) / (1 + 3)."""
    half, quarter = math.log(1 / 2), math.log(1 / 4)
    ranking = make_ranking(["r0", "r1"], [["a", "b"]] * 2, [[half, half], [math.log(3 / 4), quarter]])
    metric = log_loss(["a", "b"], {"a": 1.0, "b": 3.0})
    assert metric.score(ranking, true(["a"], ["b"])) == pytest.approx(-(half + 3 * quarter) / 4)
    even = log_loss(["a", "b"], {"a": 2.0, "b": 2.0})
    assert even.score(ranking, true(["a"], ["b"])) == pytest.approx(
        log_loss(["a", "b"]).score(ranking, true(["a"], ["b"]))
    )


def test_corpus_scores_are_those_of_sacrebleu_also_with_several_references() -> None:
    import sacrebleu

    texts = ["the cat sat on a mat", "it rains", "नमस्ते दुनिया"]
    right = [["the cat sat on the mat"], ["it is raining", "it rains today"], ["नमस्ते दुनिया"]]
    references = [[row[0] for row in right], [None, "it rains today", None]]
    ranking, truth = answers(*ones(texts)), true(*right)
    assert bleu().score(ranking, truth) == pytest.approx(sacrebleu.corpus_bleu(texts, references).score, abs=1e-9)
    assert chrf().score(ranking, truth) == pytest.approx(sacrebleu.corpus_chrf(texts, references).score, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "right", "expected"),
    [("1,234", "1234", 1.0), ("0.51", "0.5", 1.0), ("0.52", "0.5", 0.0), ("about 5", "5", 0.0), ("1e3", "1005", 0.0)],
)
def test_a_number_is_matched_within_its_tolerance(text: str, right: str, expected: float) -> None:
    assert numeric_match(0.011).score(answers([text]), true(["x", right])) == expected


def test_a_relative_tolerance_is_of_the_larger_number() -> None:
    assert numeric_match(relative=0.01).rows(answers(["100"], ["100"]), true(["101"], ["102"])).tolist() == [1.0, 0.0]


def test_the_sharpened_cosine_is_a_power_of_the_encoder_s(pico_encoder: Path) -> None:
    from sentence_transformers import SentenceTransformer

    texts = ["a first text", "another one entirely"]
    first, second = SentenceTransformer(str(pico_encoder)).encode(texts, normalize_embeddings=True)
    metric = sharpened_cosine(str(pico_encoder))
    assert metric.score(answers(texts[:1], []), true(texts[1:], ["x"])) == pytest.approx(
        float(first @ second) ** 3 / 2, abs=1e-6
    )
    assert metric.score(answers(texts[:1]), true(texts)) == pytest.approx(1.0, abs=1e-6)


def test_root_mean_squared_error_by_hand() -> None:
    metric = root_mean_squared_error()
    assert metric.score(numbers(1.5, -2.0), numbers(4.5, 2.0)) == pytest.approx(math.sqrt((9 + 16) / 2))
    assert not metric.greater_is_better
    columns = make_values(["r0", "r1"], [[3.0, 1.0], [4.0, 1.0]])
    zeros = make_values(["r0", "r1"], [[0.0, 0.0], [0.0, 0.0]])
    assert metric.score(columns, zeros) == pytest.approx((math.sqrt((9 + 16) / 2) + 1) / 2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_value_that_is_no_finite_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=r"1 row\(s\) whose answer is no finite number, first 'r1'"):
        root_mean_squared_error().score(numbers(1.0, value), numbers(1.0, 2.0))
    with pytest.raises(ValueError, match=r"1 row\(s\) whose answer is no finite number, first 'r1'"):
        root_mean_squared_error().score(numbers(1.0, 2.0), numbers(1.0, value))


def test_correlations_are_those_of_scipy_and_nothing_for_a_constant() -> None:
    from scipy import stats

    rng = np.random.default_rng(0)
    first = rng.integers(0, 9, 40).astype(float)  # with equal values
    second = first**2 + rng.normal(size=40) * 9
    frames = numbers(*first.tolist()), numbers(*second.tolist())
    assert pearson().score(*frames) == pytest.approx(stats.pearsonr(first, second).statistic, abs=1e-12)
    assert spearman().score(*frames) == pytest.approx(stats.spearmanr(first, second).statistic, abs=1e-12)
    constant = numbers(*[3.0] * 40)
    assert pearson().score(constant, frames[1]) == spearman().score(constant, frames[1]) == 0.0


def test_span_f5_worked_out_by_hand() -> None:
    """As in PII detection: 2 hits, 1 span too many, 3 missed: 26·2 / (25·5 + 3)."""
    found = answers(["0:3:NAME", "9:12:MAIL"], [], ["4:8:NAME"])
    right = true(["0:3:NAME", "5:7:NAME"], ["1:2:ID"], ["4:8:NAME", "9:12:MAIL"])
    assert span_f_beta(5).score(found, right) == pytest.approx(52 / 128, abs=1e-15)
    assert span_f_beta(5).name == "f5"


def test_a_span_that_the_truth_names_twice_counts_once() -> None:
    assert span_f_beta(1).score(answers(["0:3:NAME"]), true(["0:3:NAME", "0:3:NAME"])) == 1.0


@pytest.mark.parametrize("beta", [0.5, 1, 5])
def test_span_f_beta_is_that_of_scikit_learn_on_all_possible_spans(beta: float) -> None:
    from sklearn.metrics import fbeta_score

    rng = np.random.default_rng(0)
    guess, right = rng.random((20, 8)) < 0.4, rng.random((20, 8)) < 0.3
    items = np.array([f"{i}:{i + 1}:X" for i in range(8)])
    frames = [[items[row].tolist() for row in part] for part in (guess, right)]
    score = span_f_beta(beta).score(answers(*frames[0]), true(*frames[1]))
    assert score == pytest.approx(fbeta_score(right.ravel(), guess.ravel(), beta=beta), abs=1e-12)


@pytest.mark.parametrize(("found", "right"), [([], []), ([], ["0:1:X"]), (["0:1:X"], []), (["0:1:X"], ["0:1:Y"])])
def test_span_f_beta_without_a_hit_is_zero(found: list[str], right: list[str]) -> None:
    assert span_f_beta(1).score(answers(found), true(right)) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("The  Cat, sat.", "cat sat"), ("an apple a day", "apple day"), ("theatre", "theatre"), ("−5 é", "−5 é")],
)
def test_answers_are_normalised_as_squad_does(text: str, expected: str) -> None:
    assert normalise_answer(text) == expected


def test_exact_match_takes_any_right_text_and_its_own_normalisation() -> None:
    ranking, truth = answers(["The cat!"], ["-5"], []), true(["dog", "cat"], ["5"], ["x"])
    assert exact_match().rows(ranking, truth).tolist() == [1.0, 1.0, 0.0]
    assert exact_match(str.strip).rows(ranking, truth).tolist() == [0.0, 0.0, 0.0]


def test_rouge_worked_out_by_hand() -> None:
    """The common subsequence of "a b c d" and "a c d e f" is 3 long: P = 3/5, R = 3/4, F = 2/3."""
    ranking = answers(["a c d e f"], ["d c b a"], [], ["x"])
    truth = true(["a b c d"], ["zz", "a b c d"], ["a"], [])
    assert rouge("rougeL").rows(ranking, truth).tolist() == pytest.approx([2 / 3, 1 / 4, 0, 0], abs=1e-12)
    assert rouge("rouge1").rows(ranking, truth).tolist() == pytest.approx([2 / 3, 1, 0, 0], abs=1e-12)


def test_an_unknown_rouge_is_refused_when_it_is_made() -> None:
    with pytest.raises(ValueError, match="'rouge-l'"):
        rouge("rouge-l")


NAMED = {"numeric_match": ["1", "2", "3", "4"], "bleu": [f"{level} is one of four levels" for level in LEVELS]}
VALUED = ("rmse", "pearson", "spearman")
ALL: list[Callable[[], Metric]] = [
    accuracy,
    lambda: log_loss(LEVELS),
    lambda: quadratic_weighted_kappa(LEVELS),
    lambda: span_f_beta(5),
    exact_match,
    lambda: rouge("rougeL"),
    lambda: f_beta(1, LEVELS),
    matthews_correlation,
    lambda: log_loss(LEVELS, {level: 1.0 + place for place, level in enumerate(LEVELS)}),
    lambda: roc_auc("mid"),
    lambda: ndcg(3),
    lambda: precision(1),
    mean_reciprocal_rank,
    chrf,
    bleu,
    numeric_match,
    root_mean_squared_error,
    pearson,
    spearman,
]


@pytest.mark.parametrize("make", ALL, ids=lambda make: make().name)
def test_the_bootstrap_takes_every_metric_and_finds_the_better_answers(make: Callable[[], Metric]) -> None:
    metric, rng = make(), np.random.default_rng(1)
    right, _, worse = drawn_labels(60, 2, LEVELS)
    scores = [[1.0 + 4 * (label == one) for label in LEVELS] for one in right]
    better = make_ranking(worse["id"].to_list(), [LEVELS] * 60, scores)
    truth = true(*ones(right))
    if metric.name in VALUED:
        values = rng.normal(size=60)
        truth = numbers(*values)
        better = numbers(*(values + 0.1 * rng.normal(size=60)))
        worse = numbers(*(values + 3 * rng.normal(size=60)))
    if metric.name == "f5":
        better, worse = top(better, 1), top(worse, 1)
    if metric.name in NAMED:
        names = dict(zip(LEVELS, NAMED[metric.name], strict=True))
        named = pl.col("items").list.eval(pl.element().replace_strict(names))
        better, worse, truth = (frame.with_columns(named) for frame in (better, worse, truth))
    low, high = bootstrap_interval(metric, worse, truth, draws=50)
    assert low < metric.score(worse, truth) < high
    difference, first, last = paired_difference(metric, better, worse, truth, draws=50)
    assert first <= difference <= last
    assert first > 0 if metric.greater_is_better else last < 0
    if metric.rows is not None:
        assert metric.rows(worse, truth).mean() == pytest.approx(metric.score(worse, truth), abs=1e-12)


@pytest.mark.parametrize("make", ALL, ids=lambda make: make().name)
def test_no_rows_rows_without_truth_and_an_ambiguous_truth_are_refused(make: Callable[[], Metric]) -> None:
    metric = make()
    valued = metric.name in VALUED
    none, one, two = (numbers(*[1.0] * n) if valued else answers(*[["mid"]] * n) for n in range(3))
    truth = numbers(1.0) if valued else true(["mid"])
    with pytest.raises(ValueError, match="of no rows is not defined"):
        metric.score(none, truth)
    with pytest.raises(ValueError, match=r"1 ranked row\(s\) without truth, first \['r1'\]"):
        metric.score(two, truth)
    with pytest.raises(ValueError, match="the truth has 2 rows that share an id"):
        metric.score(one, pl.concat([truth, truth]))


def test_words_and_repetition_of_texts_by_hand() -> None:
    ranking = answers(["one two three"], ["a b c a b c"], [])
    assert words().rows(ranking, true([], [], [])).tolist() == [3.0, 6.0, 0.0]
    # a b c, b c a, c a b, a b c: one of four stood there before
    assert repetition().rows(ranking, true([], [], [])).tolist() == [0.0, 0.25, 0.0]
