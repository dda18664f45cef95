"""float32 products of linear layers and vectors by oneDNN, on the CPUs where torch's own choice, MKL, is slow.

MKL uses AVX-512 on Intel's processors only. On an AMD EPYC that has it a core multiplies float32 matrices with 110
GFLOP/s by MKL and with 250 by oneDNN, which torch takes for bfloat16 alone; the weights stay as they are, in place.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

CPUINFO = Path("/proc/cpuinfo")
LEAST = 2**14  # elements of a weight: below, a call of oneDNN costs more than the product


def use_onednn(model: Any) -> Any:
    """`model`, its large linear layers computed by oneDNN where that is faster: float32, on a CPU, without autocast."""
    import torch

    if is_faster():
        for module in model.modules():
            if type(module) is torch.nn.Linear and _is_large(module):
                module.__class__ = _linear_class()
    return model


def _is_large(layer: torch.nn.Linear) -> bool:
    """Whether its product is worth the call. A layer in 4 bits has no `weight`: its library computes it."""
    weight = getattr(layer, "weight", None)
    return weight is not None and weight.numel() >= LEAST


@cache
def is_faster() -> bool:
    """Whether this is a processor with AVX-512 that is not Intel's, and torch has both libraries."""
    import torch

    has_both = torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
    return has_both and torch.backends.cpu.get_cpu_capability() == "AVX512" and "GenuineIntel" not in read_cpuinfo()


def read_cpuinfo() -> str:
    return CPUINFO.read_text(encoding="utf-8") if CPUINFO.exists() else ""


def multiply(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """input [..., k] · weight [n, k]ᵀ + bias [n] → [..., n], all float32, by oneDNN, without gradients."""
    import torch

    product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
    return product


def multiply_rows(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left [m, k] · right [n, k]ᵀ → [m, n] in float32: by oneDNN where that is faster, else by numpy."""
    import numpy as np

    left, right = (np.ascontiguousarray(rows, dtype=np.float32) for rows in (left, right))  # what oneDNN takes
    if not is_faster():
        product: np.ndarray = left @ right.T
        return product
    import torch

    with warnings.catch_warnings(action="ignore"):  # torch warns of an array that is read-only, as a mapped file is
        return multiply(torch.from_numpy(left), torch.from_numpy(right)).numpy()


@cache
def _linear_class() -> type[torch.nn.Linear]:
    import torch
    from torch.autograd.function import once_differentiable

    class Product(torch.autograd.Function):
        """`multiply` with its gradients, each a product by oneDNN too."""

        @staticmethod
        def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
            ctx.save_for_backward(input if ctx.needs_input_grad[1] else None, weight)
            return multiply(input, weight, bias)

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            input, weight = ctx.saved_tensors
            of_input, of_weight, of_bias = ctx.needs_input_grad
            rows = gradient.flatten(0, -2)
            return (
                multiply(gradient, weight.t()) if of_input else None,
                multiply(rows.t(), input.flatten(0, -2).t()) if of_weight else None,
                rows.sum(0) if of_bias else None,
            )

    class OneDnnLinear(torch.nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            is_float32 = input.dtype == self.weight.dtype == torch.float32 and input.device.type == "cpu"
            is_matrix = input.dim() > 1 and input.numel() > 0
            if not (is_float32 and is_matrix) or torch.is_autocast_enabled("cpu"):
                return super().forward(input)
            return Product.apply(input, self.weight, self.bias)

    return OneDnnLinear
