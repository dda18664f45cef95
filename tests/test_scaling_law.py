"""Chinchilla's law: its formula, its best split, and what a count may look like."""

import pytest

from kaggle_llm.training.scaling_law import Pretraining, best_split, parse_count


def test_loss_and_operations_are_those_of_the_paper() -> None:
    """Chinchilla itself, 70B parameters on 1.4T tokens, by the paper's equation 10 and C = 6·N·D."""
    chinchilla = Pretraining(70e9, 1.4e12)
    assert chinchilla.loss == pytest.approx(1.69 + 406.4 / 70e9**0.34 + 410.7 / 1.4e12**0.28)
    assert chinchilla.loss == pytest.approx(1.937, abs=1e-3)
    assert chinchilla.operations == pytest.approx(5.88e23)


def test_no_other_split_of_the_operations_has_a_lower_loss() -> None:
    best = best_split(1e21)
    assert best.operations == pytest.approx(1e21)
    for factor in (0.5, 0.9, 1.1, 2.0):
        assert Pretraining(best.parameters * factor, best.tokens / factor).loss > best.loss


def test_counts_are_read_with_their_units() -> None:
    assert [parse_count(text) for text in ("124M", "2.5b", "1.4T", "300")] == [124e6, 2.5e9, 1.4e12, 300.0]


@pytest.mark.parametrize("text", ["", "M", "-3B", "many", "nan", "inf"])
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is no count"):
        parse_count(text)
