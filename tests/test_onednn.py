"""Linear layers by oneDNN: torch's own values and gradients, the same bits alone and in a batch."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from kaggle_llm.engines import onednn
from kaggle_llm.engines.attention import KEPT_PRODUCTS

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")


@pytest.fixture
def fast(monkeypatch):
    """Linear layers → the same ones computed by oneDNN, whatever processor this is."""
    monkeypatch.setattr(onednn, "is_faster", lambda: True)
    monkeypatch.setattr(onednn, "LEAST", 0)
    return onednn.use_onednn


def make_layer(bias: bool = True, k: int = 48, n: int = 80) -> torch.nn.Linear:
    torch.manual_seed(0)
    return torch.nn.Linear(k, n, bias=bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(48,), (5, 48), (2, 7, 48), (0, 48)], ids=str)
def test_values_and_gradients_are_torchs(fast, shape, bias):
    ours, theirs = fast(make_layer(bias)), make_layer(bias)
    first, second = (torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in "ab")
    weights = torch.randn(*shape[:-1], 80)
    (ours(first) * weights).sum().backward()
    (theirs(second) * weights).sum().backward()
    torch.testing.assert_close(ours(first), theirs(second))
    torch.testing.assert_close(first.grad, second.grad)
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, msg=name)


def test_a_frozen_layer_gets_no_gradient_and_keeps_no_input(fast):
    layer = fast(make_layer().requires_grad_(False))
    rows = torch.randn(4, 48, requires_grad=True)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda kept: kept):
        layer(rows).sum().backward()
    assert layer.weight.grad is None
    assert rows.grad is not None
    assert [tuple(tensor.shape) for tensor in kept] == [(80, 48)]


def test_a_transposed_input_is_read_as_it_stands(fast):
    rows = torch.randn(6, 3, 48).transpose(0, 1)
    torch.testing.assert_close(fast(make_layer())(rows), make_layer()(rows))


def test_a_row_has_the_same_bits_alone_and_in_a_batch(fast):
    layer, rows = fast(make_layer(k=384, n=1536)), torch.randn(300, 384)
    with torch.no_grad():
        together = layer(rows)
        for size in (4, 12, 40, 200):
            assert torch.equal(layer(rows[:size]), together[:size]), size


@pytest.mark.parametrize("case", ["bfloat16", "float64", "autocast"])
def test_other_types_are_computed_by_torch(fast, monkeypatch, case):
    monkeypatch.setattr(onednn, "multiply", lambda *_: pytest.fail("by oneDNN"))
    dtype = {"bfloat16": torch.bfloat16, "float64": torch.float64, "autocast": torch.float32}[case]
    layer, rows = fast(make_layer().to(dtype)), torch.randn(4, 48, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=case == "autocast"):
        assert layer(rows).dtype is (torch.bfloat16 if case == "autocast" else dtype)


def test_a_model_is_saved_as_before(fast):
    model = fast(torch.nn.Sequential(make_layer(), torch.nn.LayerNorm(80)))
    assert set(model.state_dict()) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert isinstance(model[0], torch.nn.Linear) and type(model[0]) is not torch.nn.Linear
    assert torch.equal(pickle.loads(pickle.dumps(model.state_dict()))["0.weight"], make_layer().weight)


def test_small_layers_stay_torchs(monkeypatch):
    monkeypatch.setattr(onednn, "is_faster", lambda: True)
    small, large = onednn.use_onednn(torch.nn.ModuleList([make_layer(), make_layer(k=128, n=128)]))
    assert type(small) is torch.nn.Linear and type(large) is not torch.nn.Linear


def test_a_layer_whose_weight_is_kept_in_other_tensors_stays_its_librarys(monkeypatch):
    monkeypatch.setattr(onednn, "is_faster", lambda: True)
    layer = make_layer()
    layer.weight_packed = layer._parameters.pop("weight")  # as compressed-tensors keeps 4 bits
    assert type(onednn.use_onednn(torch.nn.Sequential(layer))[0]) is torch.nn.Linear


@pytest.mark.parametrize(
    ("vendor", "instructions", "is_faster"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_it_is_taken_where_mkl_leaves_avx512_unused(monkeypatch, tmp_path: Path, vendor, instructions, is_faster):
    (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {vendor}\n")
    monkeypatch.setattr(onednn, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: instructions)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert onednn.is_faster.__wrapped__() is is_faster


def test_rows_of_any_layout_and_precision_are_multiplied(fast):
    """Queries in double precision, backwards, read-only or none at all: as numpy does it."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(6, 48)).astype(np.float32)
    frozen = rows.copy()
    frozen.flags.writeable = False
    for left in (rows, rows.astype(np.float64), rows.astype(np.float16), rows[::-1], rows[::2], rows[:0], frozen):
        for right in (rows, np.asfortranarray(rows), frozen[::-1], rows[:0]):
            product = onednn.multiply_rows(left, right)
            assert product.dtype == np.float32
            np.testing.assert_allclose(product, left.astype(np.float32) @ right.T, atol=1e-5)


GROW = """
import torch, psutil
from kaggle_llm.engines.attention import prepare_device
from kaggle_llm.engines.onednn import multiply
if {prepares}:
    prepare_device()
torch.set_num_threads(1)
memory, weights = psutil.Process().memory_info, [torch.randn(n, 576) for n in (192, 576, 1536)]
multiply(torch.randn(8, 576), weights[0])
before = memory().rss
for rows in range(1, 401):
    for weight in weights:
        multiply(torch.randn(rows, 576), weight)
print((memory().rss - before) / 2**20)
"""


@pytest.mark.slow
def test_products_of_ever_new_shapes_take_no_ever_new_memory():
    """Packs vary in size: torch and oneDNN by themselves would keep what they compiled for each."""
    kept, left = (
        float(
            subprocess.run(
                [sys.executable, "-c", GROW.format(prepares=prepares)],
                capture_output=True,
                text=True,
                check=True,
                timeout=300,
                env={name: value for name, value in os.environ.items() if name not in KEPT_PRODUCTS},
            ).stdout
        )
        for prepares in (True, False)
    )
    print(f"{kept:.0f} MB, without a limit {left:.0f} MB")
    assert kept < max(left / 3, 100)
