"""Batches whose shape follows from each prompt alone: its vector has the same bits alone and among other prompts.

The order in which a kernel sums depends on the padded length, and on a GPU on the number of rows too. So a prompt is
padded to a length that follows from its own, and where `fill` asks for it every batch has the number of rows that
follows from that length: the last one is filled up with rows that are not read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

STEPS = 8  # lengths between a power of two and the next: a prompt is padded by an eighth at most
SMALLEST_STEP = 4  # tokens


def round_length(length: int, limit: int) -> int:
    """The padded length of a prompt of `length` tokens; at most `limit`, but never less than the prompt."""
    step = max(SMALLEST_STEP, 2 ** (length.bit_length() - 1) // STEPS)
    return max(length, min(-(-length // step) * step, limit))


def plan_fixed_batches(
    lengths: Sequence[int], tokens: int, limit: int, fill: bool
) -> Iterator[tuple[list[int], int, int]]:
    """Indices, padded length and number of rows of each batch, longest prompts first.

    tokens: of a batch, padding included. limit: tokens that the model takes.
    """
    by_length: dict[int, list[int]] = {}
    for index, length in enumerate(lengths):
        by_length.setdefault(round_length(length, limit), []).append(index)
    for length, indices in sorted(by_length.items(), reverse=True):
        rows = max(1, tokens // max(length, 1))
        for start in range(0, len(indices), rows):
            part = indices[start : start + rows]
            yield part, length, rows if fill else len(part)
