"""Chinchilla's law: the loss of a model of N parameters after D tokens, and the operations of that pretraining."""

from __future__ import annotations

from dataclasses import dataclass

# Hoffmann et al., 2022 (arXiv 2203.15556), equation 10: nats a token on MassiveText, with its tokenizer.
IRREDUCIBLE, A, B, ALPHA, BETA = 1.69, 406.4, 410.7, 0.34, 0.28
OPERATIONS = 6  # a parameter and token: 2 forward, 4 backward
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}


@dataclass(frozen=True)
class Pretraining:
    parameters: float
    tokens: float

    @property
    def loss(self) -> float:
        """E + A / N^α + B / D^β."""
        return IRREDUCIBLE + A / self.parameters**ALPHA + B / self.tokens**BETA

    @property
    def operations(self) -> float:
        return OPERATIONS * self.parameters * self.tokens


def best_split(operations: float) -> Pretraining:
    """Parameters and tokens with the lowest loss for so many operations: N = G · (C / 6)^(β / (α + β)), equation 4."""
    factor = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    parameters = factor * (operations / OPERATIONS) ** (BETA / (ALPHA + BETA))
    return Pretraining(parameters, operations / OPERATIONS / parameters)


def parse_count(text: str) -> float:
    """124M → 124e6. Raises ValueError for anything but a positive number followed by k, M, B or T."""
    unit = UNITS.get(text[-1:].lower(), 1.0)
    try:
        count = unit * float(text[:-1] if unit > 1 else text)
    except ValueError:
        count = 0.0
    if not 0 < count < float("inf"):
        raise ValueError(f"{text!r} is no count: write it as 124M, 2.5B or 1000000")
    return count
