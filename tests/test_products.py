"""Products by oneDNN against float64, with every gradient; where torch's own are used, the same code says so."""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from bridge_ds import products
from bridge_ds.products import (
    FULL_ROWS,
    Linear,
    add_product,
    as_torch_does,
    few_kernels,
    linear,
    multiply,
    swap_linear_layers,
)

HERE = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
SIZES = st.integers(1, 70)


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any CPU that has the operator, and for products of any size."""
    monkeypatch.setattr(products, "uses_onednn", lambda: HERE)
    monkeypatch.setattr(products, "SMALLEST", 0)
    monkeypatch.setattr(products, "SMALLEST_OF_BATCH", 0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), SIZES, SIZES, SIZES, st.booleans(), st.integers(0, 7))
def test_a_linear_layer_and_its_gradients(
    batch: int, rows: int, summed: int, columns: int, has_bias: bool, wanted: int
) -> None:
    draw = torch.Generator().manual_seed(rows)
    x = torch.randn(batch, rows, summed, generator=draw, requires_grad=bool(wanted & 1))
    weight = torch.randn(columns, summed, generator=draw, requires_grad=bool(wanted & 2))
    bias = torch.randn(columns, generator=draw, requires_grad=bool(wanted & 4)) if has_bias else None
    given_ = [each for each in (x, weight, bias) if each is not None]
    exact = [each.detach().double().requires_grad_(each.requires_grad) for each in given_]
    found, expected = linear(*given_), nn.functional.linear(*exact)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-4)
    trained = [number for number, each in enumerate(given_) if each.requires_grad]
    if not trained:
        assert not found.requires_grad
        return
    d_out = torch.randn(found.shape, generator=draw)
    gradients = torch.autograd.grad(found, [given_[n] for n in trained], d_out)
    for got, want in zip(
        gradients, torch.autograd.grad(expected, [exact[n] for n in trained], d_out.double()), strict=True
    ):
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-4)


@settings(deadline=None)  # oneDNN compiles a kernel for each shape
@given(SIZES, SIZES, SIZES, st.booleans(), st.booleans())
def test_a_product_of_any_strides(rows: int, summed: int, columns: int, first: bool, second: bool) -> None:
    a = torch.randn(summed, rows).T if first else torch.randn(rows, summed)
    b = torch.randn(columns, summed).T if second else torch.randn(summed, columns)
    expected = a.double() @ b.double()
    torch.testing.assert_close(multiply(a, b).double(), expected, rtol=1e-5, atol=1e-4)
    into = torch.ones(rows, columns)
    add_product(into, a, b)
    torch.testing.assert_close(into.double(), 1 + expected, rtol=1e-5, atol=1e-4)


@settings(deadline=None)
@given(st.integers(0, 3), SIZES, SIZES, SIZES, st.booleans())
def test_a_batch_of_products(batch: int, rows: int, summed: int, columns: int, turned: bool) -> None:
    a = torch.randn(rows, batch, summed).transpose(0, 1)
    b = torch.randn(batch, columns, summed).mT if turned else torch.randn(batch, summed, columns)
    expected = a.double() @ b.double()
    torch.testing.assert_close(multiply(a, b).double(), expected, rtol=1e-5, atol=1e-4)
    into = torch.ones(batch, rows, columns)
    add_product(into, a, b)
    torch.testing.assert_close(into.double(), 1 + expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("more", [(), (2,)])
def test_a_server_has_few_kernels(more: tuple[int, ...]) -> None:
    """oneDNN keeps one for each number of rows for good. Filled up or not, an output may be changed in place."""
    if not HERE:
        pytest.skip("this torch has no oneDNN operator for linear layers")
    rows: set[int] = set()

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "_linear_pointwise" in str(func):
                rows.add(args[0].numel() // args[0].shape[-1])
            return func(*args, **(kwargs or {}))

    weight, bias = torch.randn(5, 7, requires_grad=True), torch.randn(5)
    for length in range(1, 300):
        x = torch.randn(*more, length, 7)
        with few_kernels(), Shapes():
            found = linear(x, weight, bias)
            assert torch.equal(found, multiply(x.view(-1, 7), weight.detach().T).view_as(found) + bias)
        torch.testing.assert_close(found.detach(), nn.functional.linear(x, weight, bias).detach(), rtol=1e-5, atol=1e-4)
        assert found.is_contiguous() and not found._is_view()
        found += 1
        found.sum().backward()
    assert all(of <= FULL_ROWS or of % FULL_ROWS == 0 for of in rows) and max(rows) >= 299


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_are_torchs(dtype: torch.dtype) -> None:
    x, weight = torch.randn(5, 7, dtype=dtype), torch.randn(3, 7, dtype=dtype)
    assert torch.equal(linear(x, weight), nn.functional.linear(x, weight))
    assert torch.equal(multiply(x, weight.T), x @ weight.T)


def test_layers_are_swapped_and_stay_linear_layers() -> None:
    model = nn.Sequential(nn.Linear(9, 5), nn.ReLU(), nn.Sequential(nn.Linear(5, 4, bias=False)))
    x = torch.randn(3, 9)
    expected = model(x)
    swap_linear_layers(model)
    kinds = [type(each) for each in model.modules() if isinstance(each, nn.Linear)]
    assert kinds == [Linear if HERE else nn.Linear] * 2
    torch.testing.assert_close(copy.deepcopy(model)(x), expected)
    with as_torch_does():
        assert torch.equal(model(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("capability", "text", "expected"),
    [("AVX512", "vendor_id : AuthenticAMD", HERE), ("AVX512", "vendor_id : GenuineIntel", False),
     ("AVX2", "vendor_id : AuthenticAMD", False)],
)  # fmt: skip
def test_where_it_gains(monkeypatch: pytest.MonkeyPatch, capability: str, text: str, expected: bool) -> None:
    monkeypatch.undo()
    with (
        mock.patch("torch.backends.cpu.get_cpu_capability", return_value=capability),
        mock.patch("torch.backends.mkl.is_available", return_value=True),
        mock.patch.object(products.Path, "read_text", return_value=text),
    ):
        assert products.uses_onednn.__wrapped__() == expected
