"""Formulas that merge the weights of several models, as functions on tensors, computed in fp32.

linear, combine, elect and dare take whole tensors or the same block of rows of each; find_slerp_weights and find_cut
look at tensors whole, a piece at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kaggle_llm.weights.shard_writer import BLOCK_ELEMENTS

if TYPE_CHECKING:
    import torch

ALIKE = 0.9995  # |cosine| above which an arc is a line to fp32
SHORT = 1e-8  # up to this length a vector counts as having no direction


def linear(tensors: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """Σ wᵢ·Wᵢ / Σ wᵢ, the model soup of Wortsman et al., arXiv 2203.05482.

    Computed as W₁ + Σ wᵢ·(Wᵢ − W₁) / Σ wᵢ: the soup of a model with itself is that model to the last bit.
    """
    first = tensors[0].float()
    mixed = first.clone()
    for tensor, weight in zip(tensors[1:], weights[1:], strict=True):
        mixed.add_(tensor - first, alpha=weight / sum(weights))
    return mixed


def find_slerp_weights(a: torch.Tensor, b: torch.Tensor, t: float) -> tuple[float, float]:
    """The factors of a and b: sin((1 − t)·θ) / sin θ and sin(t·θ) / sin θ with θ the angle between them.

    Shoemake, Animating Rotation with Quaternion Curves, SIGGRAPH 1985; lengths are not interpolated apart. 1 − t and t
    where the two are parallel or opposite (|cos θ| > ALIKE) or one of them has no length.
    """
    dot = squares_a = squares_b = 0.0
    for x, y in zip(_pieces(a), _pieces(b), strict=True):
        x, y = x.double(), y.double()
        dot += float(x @ y)
        squares_a += float(x @ x)
        squares_b += float(y @ y)
    lengths = [length if length > SHORT else 1.0 for length in (math.sqrt(squares_a), math.sqrt(squares_b))]
    cosine = max(-1.0, min(1.0, dot / lengths[0] / lengths[1]))
    if abs(cosine) > ALIKE:
        return 1 - t, t
    angle = math.acos(cosine)
    return math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)


def combine(tensors: Sequence[torch.Tensor], factors: Sequence[float]) -> torch.Tensor:
    """Σ fᵢ·Wᵢ."""
    mixed = tensors[0].float() * factors[0]
    for tensor, factor in zip(tensors[1:], factors[1:], strict=True):
        mixed.add_(tensor.float(), alpha=factor)
    return mixed


@dataclass
class Cut:
    """The elements that are kept: those larger than `size`, and the first `equal` elements of exactly that size."""

    size: float
    equal: int

    def trim(self, base: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
        """tensor − base with 0 for what is not kept. Blocks of one tensor come in order: `equal` counts down."""
        delta = tensor.float() - base
        sizes = delta.abs()
        kept = sizes >= self.size
        same = sizes == self.size
        count = int(same.sum())
        if count > self.equal:
            kept &= ~same | (same.flatten().cumsum(0) <= self.equal).view_as(same)
        self.equal -= min(count, self.equal)
        return delta.mul_(kept)


def find_cut(base: torch.Tensor, tensor: torch.Tensor, density: float) -> Cut:
    """Keeps ⌊density · n⌋ of the n elements of tensor − base, one at least, the largest by magnitude.

    Of equals at the cut, which 16-bit weights have many of, the first are kept; mergekit keeps some of them, which
    depends on the processor's way of sorting.
    """
    import torch

    count = tensor.numel()
    kept = max(1, int(density * count))
    if kept >= count:
        return Cut(0.0, count)
    sizes = torch.empty(count)
    for part, x, y in zip(sizes.split(BLOCK_ELEMENTS), _pieces(tensor), _pieces(base), strict=True):
        torch.sub(x.float(), y.float(), out=part).abs_()
    values = sizes.numpy()
    values.partition(count - kept)  # in place, where torch.kthvalue needs three copies
    size = values[count - kept]
    return Cut(float(size), kept - int((values[count - kept :] > size).sum()))


def elect(base: torch.Tensor, deltas: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
    """base + Σ wᵢ·δᵢ / Σ wᵢ, element by element over those whose wᵢ·δᵢ has the sign of Σ wᵢ·δᵢ of all.

    The election by total magnitude and the disjoint mean of TIES (Yadav et al., arXiv 2306.01708).
    """
    import torch

    weighted = [delta * weight for delta, weight in zip(deltas, weights, strict=True)]
    elected = (sum(weighted) >= 0).float().mul_(2).sub_(1)  # 1 or −1
    total, divisor = torch.zeros_like(elected), torch.zeros_like(elected)
    for delta, weight in zip(weighted, weights, strict=True):
        agrees = (delta * elected > 0).float()
        total.addcmul_(delta, agrees)
        divisor.add_(agrees, alpha=weight)
    divisor.add_(divisor == 0)  # no member changes this element
    return total.div_(divisor).add_(base)


def dare(
    base: torch.Tensor,
    tensors: Sequence[torch.Tensor],
    weights: Sequence[float],
    density: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """base + Σ wᵢ · mᵢ ∘ (Wᵢ − base) / density, each element of mᵢ 1 with probability density, else 0.

    Yu et al., arXiv 2311.03099, drop and rescale, added up without electing signs, like mergekit's dare_linear, which
    however rescales each change to the L1 norm that it had. The weights are taken as they are: their sum is how far
    the result goes. The masks are drawn in the order of `tensors`.
    """
    import torch

    source = base.float()
    mixed = source.clone()
    for tensor, weight in zip(tensors, weights, strict=True):
        kept = torch.rand(tensor.shape, generator=generator) < density
        mixed.add_((tensor - source).mul_(kept), alpha=weight / density)
    return mixed


def _pieces(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    yield from tensor.flatten().split(BLOCK_ELEMENTS)
