"""How many operators the fast paths dispatch on a GPU: each costs the host about 5 microseconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from bridge_ds.fusion import FUSIONS
from bridge_ds.fusion.kernels import primitives, torch_primitives
from bridge_ds.fusion.kernels.rows import real_rows

LIMITS = {"torch": 600, "triton": 120}
"""Forward and backward of one micro-batch."""


class Operators(TorchDispatchMode):
    """Counts what computes or allocates. Views are left out: they launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not views and any(isinstance(leaf, torch.Tensor) for leaf in torch.utils._pytree.tree_leaves(args)):
            self.counts[str(func)] += 1
        return func(*args, **(kwargs or {}))


class Launches:
    """Stands for a kernel whose launches are counted; nothing is compiled."""

    def __init__(self) -> None:
        self.count = 0

    def __getitem__(self, grid: Any) -> Any:
        def launch(*_: Any, **__: Any) -> None:
            self.count += 1

        return launch


@contextmanager
def as_on_a_gpu(path: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launches]]:
    """CPU tensors cut into a GPU's chunks and blocks; what triton would launch is counted, and not run."""
    monkeypatch.setattr(primitives, "chunk_rows", lambda _: 8192)
    monkeypatch.setattr(torch_primitives, "on_cpu", lambda _: False)
    kernels: list[Launches] = []
    if path == "triton":
        module = pytest.importorskip("bridge_ds.fusion.kernels.triton_kernels", reason="triton is not installed")
        for name in module.__all__:
            kernels.append(Launches())
            monkeypatch.setattr(module, name, kernels[-1])
        monkeypatch.setenv("TRITON_INTERPRET", "1")  # nothing asks for a device
    yield kernels


@pytest.mark.parametrize("normalize", ["none", "rms"])
@pytest.mark.parametrize("name", ["global_softmax", "transformer_softmax", "layer_attention"])
@pytest.mark.parametrize("path", LIMITS)
def test_operators_of_a_micro_batch(path: str, name: str, normalize: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """mT5-XL's layers, 8 rows of up to 512 positions; the width changes no count."""
    fusion = FUSIONS[name](num_layers=24, width=16, backend=path, state_norm=normalize)
    states = [torch.randn(8, 512, 16).bfloat16() for _ in range(24)]
    mask = torch.ones(8, 512, dtype=torch.long)
    mask[0, 400:] = 0
    rows = real_rows(mask)
    with as_on_a_gpu(path, monkeypatch) as kernels:
        with Operators() as seen:
            fused = fusion(states, mask, rows)
            torch.autograd.grad(fused, list(fusion.parameters()), torch.ones_like(fused))
        launches = sum(kernel.count for kernel in kernels)
    assert sum(seen.counts.values()) + launches <= LIMITS[path], seen.counts.most_common()
    expected = {"transformer_softmax": 11, "global_softmax": 4, "layer_attention": 4}
    assert launches == (expected[name] if path == "triton" else 0)
