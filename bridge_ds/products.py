"""float32 matrix products on AMD's CPUs with AVX-512: by oneDNN, where torch would have MKL do them.

MKL (2024.2 at least) takes its AVX2 kernels on a processor that is not Intel's, half as fast as what oneDNN generates
for the same product (a Zen 5 core: 110 against 240 GFLOPS). torch asks oneDNN for products in bfloat16, and in float32
only where rounding to bfloat16 or TF32 is allowed (aten/src/ATen/native/mkldnn/Matmul.cpp). Its operator for a linear
layer takes float32 as it is. Sums are in another order, so that last bits differ.

Dimensions: M rows, K summed, N columns.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    "Linear", "add_product", "as_torch_does", "few_kernels", "linear", "multiply", "swap_linear_layers", "uses_onednn",
]  # fmt: skip

SMALLEST = 1 << 21
"""M K N from which a product is oneDNN's: below, its fixed cost of ten microseconds is more than what it gains."""
SMALLEST_OF_BATCH = 1 << 26
"""The same of a product that is one of a batch: smaller ones gain nothing in a step."""
FULL_ROWS = 32
"""More rows than this are filled up to a multiple of it by :func:`few_kernels`."""
_PLAIN: ContextVar[bool] = ContextVar("plain", default=False)
_FEW: ContextVar[bool] = ContextVar("few", default=False)


@functools.cache
def uses_onednn() -> bool:
    """Whether products of this process are oneDNN's. A property of the machine, never of what was measured: a resumed
    run has to compute what it did before."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not torch.backends.mkldnn.is_available():
        return False
    if not (torch.backends.mkl.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:  # not Linux
        return False


@contextmanager
def as_torch_does() -> Iterator[None]:
    """While open, products are torch's own, to compare with."""
    with _set(_PLAIN):
        yield


@contextmanager
def few_kernels() -> Iterator[None]:
    """While open, rows of zeros are added, so that there are few numbers of rows. oneDNN compiles a kernel for each and
    keeps it for good, whatever its cache may hold: a server of the testbed's models had 150 MB of them after a minute.
    A product of 540 rows takes 1 to 4 % longer, which a training step would notice."""
    with _set(_FEW):
        yield


@contextmanager
def _set(of: ContextVar[bool]) -> Iterator[None]:
    token = of.set(True)
    try:
        yield
    finally:
        of.reset(token)


def multiply(a_MK: torch.Tensor, b_KN: torch.Tensor) -> torch.Tensor:
    """a b, without a gradient; any strides. Of batches [H, M, K] and [H, K, N] too."""
    if not _taken(a_MK, b_KN, _size(a_MK, b_KN)):
        return a_MK @ b_KN
    if a_MK.dim() == 2:
        return _pointwise(a_MK, b_KN.T)
    each = [_pointwise(a, b.T) for a, b in zip(a_MK, b_KN, strict=True)]
    return torch.stack(each) if len(each) > 1 else each[0][None]


def add_product(into_MN: torch.Tensor, a_MK: torch.Tensor, b_KN: torch.Tensor) -> None:
    """into += a b in place, without a gradient. Batches as of :func:`multiply`."""
    if _taken(a_MK, b_KN, _size(a_MK, b_KN)):
        into_MN.add_(multiply(a_MK, b_KN))
    else:
        add = torch.baddbmm if a_MK.dim() == 3 else torch.addmm
        add(into_MN, a_MK, b_KN, out=into_MN)


def linear(x: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
    """As torch's `F.linear`, with its gradients."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight_NK, bias_N)
    if not _taken(x, weight_NK, x.numel() * len(weight_NK)):
        return F.linear(x, weight_NK, bias_N)
    found: torch.Tensor = _Linear.apply(x, weight_NK, bias_N)
    return found


class Linear(nn.Linear):
    """A linear layer of any model whose products are those of this module."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return linear(input, self.weight, self.bias)


def swap_linear_layers(model: nn.Module) -> None:
    """Make torch's own linear layers in a model :class:`Linear`, where that gains; subclasses stay what they are."""
    for module in model.modules() if uses_onednn() else ():
        if type(module) is nn.Linear:
            module.__class__ = Linear
            if "_old_forward" in vars(module):  # what accelerate calls where a model is split over devices
                module._old_forward = Linear.forward.__get__(module)  # type: ignore[assignment]


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None) -> torch.Tensor:
        # The leaf itself: under ZeRO-3 it is released after this and holds the weight again when backward comes.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight_NK)
        return _pointwise(x, weight_NK, bias_N)

    @staticmethod
    def backward(ctx: Any, d_out: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight_NK = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows_MN = d_out.reshape(-1, d_out.shape[-1])
        return (
            multiply(rows_MN, weight_NK).view(*d_out.shape[:-1], weight_NK.shape[1]) if of_x else None,
            multiply(rows_MN.T, x.reshape(-1, x.shape[-1])) if of_weight else None,
            rows_MN.sum(0) if of_bias else None,
        )


def _size(a_MK: torch.Tensor, b_KN: torch.Tensor) -> int:
    """M K N, of one of a batch."""
    return a_MK.shape[-2] * b_KN.shape[-2] * b_KN.shape[-1] if a_MK.numel() else 0


def _taken(x: torch.Tensor, y: torch.Tensor, size: int) -> bool:
    """Whether a product of the two, of that many multiplications, is oneDNN's."""
    on_cpu = x.device.type == "cpu" and x.dtype == y.dtype == torch.float32
    least = SMALLEST_OF_BATCH if y.dim() == 3 else SMALLEST
    return on_cpu and uses_onednn() and not _PLAIN.get() and size >= max(1, least)


def _pointwise(x: torch.Tensor, weight_NK: torch.Tensor, bias_N: torch.Tensor | None = None) -> torch.Tensor:
    rows = x.numel() // x.shape[-1]
    if _FEW.get() and rows > FULL_ROWS and rows % FULL_ROWS:
        full = torch.cat([x.reshape(rows, -1), x.new_zeros(-rows % FULL_ROWS, x.shape[-1])])
        # Not a view, which autograd lets nobody change in place.
        return _pointwise(full, weight_NK, bias_N).resize_(*x.shape[:-1], len(weight_NK))
    found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_NK, bias_N, "none", [], "")
    return found
