"""What the fast path promises beside its numbers: exact gradients, memory, dropout, ZeRO-3, checkpointing, compile."""

from __future__ import annotations

import importlib.util
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bridge_ds.fusion import BACKENDS
from bridge_ds.fusion.kernels import backends, by_token, choose_backend
from bridge_ds.fusion.kernels.backends import fuse_by_layer, fuse_by_token
from bridge_ds.fusion.kernels.primitives import chunk_rows
from bridge_ds.fusion.transformer_softmax.module import TransformerSoftmax
from tests.fusion.cases import Case, make_fusion
from tests.fusion.measure import Allocations


def small_states(count: int = 3, width: int = 4) -> tuple[list[torch.Tensor], torch.Tensor]:
    torch.manual_seed(3)
    states = [torch.randn(2, 3, width, dtype=torch.float64) for _ in range(count)]
    return states, torch.tensor([[1, 1, 0], [1, 1, 1]])


@pytest.mark.parametrize(("heads", "normalize", "dropout"), [(1, False, 0.0), (2, True, 0.0), (2, False, 0.4)])
def test_gradcheck(heads: int, normalize: bool, dropout: float) -> None:
    states, mask = small_states()
    fusion = TransformerSoftmax(3, 4, heads=heads, feedforward=6).double()
    names = [name for name, _ in fusion.named_parameters()]
    # Away from ReLU's corner and the norms' flat start.
    values = [torch.randn_like(p).requires_grad_() for p in fusion.parameters()]

    def run(*tensors: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)  # the same masks each time
        parameters = dict(zip(names, tensors[: len(names)], strict=True))
        options = {"heads": heads, "rms": normalize, "dropout": dropout}
        return fuse_by_token("torch", tensors[len(names) :], mask, parameters, **options)[0]

    # Every element for one setting, random directions for the others.
    inputs = (*values, *(state.requires_grad_() for state in states))
    assert torch.autograd.gradcheck(run, inputs, fast_mode=not normalize)


@pytest.mark.parametrize("normalize", [False, True])
def test_gradcheck_of_the_sum_with_shared_weights(normalize: bool) -> None:
    states, mask = small_states()
    inputs = (torch.randn(3, dtype=torch.float64, requires_grad=True), *(state.requires_grad_() for state in states))
    assert torch.autograd.gradcheck(lambda w, *h: fuse_by_layer("torch", h, mask, w, rms=normalize), inputs)


@pytest.mark.parametrize("heads", [1, 4])
def test_heads_are_those_of_torchs_layer(heads: int) -> None:
    case = Case(2, 5, 4, 16, heads=heads)
    fusion = make_fusion(case, "torch")
    layer = nn.TransformerEncoderLayer(16, nhead=heads, dim_feedforward=24, dropout=0.0, batch_first=True).double()
    for name, parameter in layer.named_parameters():
        parameter.data.copy_(getattr(fusion, name.replace(".", "_")).data)
    states = [torch.randn(2, 4, 16, dtype=torch.float64) for _ in range(5)]
    tokens = torch.stack(states, dim=2).flatten(0, 1) + fusion.layer_positions
    first = layer(torch.cat([fusion.cls.expand(8, 1, -1), tokens], dim=1))[:, 0]
    weights = torch.softmax(nn.functional.linear(first, fusion.score_weight, fusion.score_bias), -1).view(2, 4, 5)
    expected = sum(w[..., None] * h for w, h in zip(weights.unbind(-1), states, strict=True))
    assert torch.allclose(fusion(states, torch.ones(2, 4)), expected, atol=1e-10)


@pytest.mark.parametrize("path", ["torch", "auto"])
@pytest.mark.parametrize("name", ["transformer_softmax", "global_softmax"])
def test_memory_and_size_of_every_tensor(name: str, path: str) -> None:
    """Less than 3 N D beside the result and small tensors; nothing larger than one state is ever made."""
    layers, rows, width = 12, 65536, 64
    fusion = make_fusion(Case(1, layers, rows, width, fusion=name), path).float()
    states = [torch.randn(1, rows, width) for _ in range(layers)]
    mask, upstream = torch.ones(1, rows), torch.randn(1, rows, width)
    with Allocations([*states, mask, upstream, *fusion.parameters()]) as seen:
        fusion(states, mask).backward(upstream)
    small = 8 * rows * (layers + 1)  # attention, scores, weights and their gradients
    small += 16 * chunk_rows(states[0][0]) * width  # temporaries of one chunk
    small += 2 * sum(p.numel() for p in fusion.parameters())
    result = rows * width
    assert seen.peak / 4 - result < 3 * rows * width + small
    assert seen.largest <= rows * width


@pytest.mark.parametrize("path", ["torch", "auto"])
def test_padding_is_not_read(path: str) -> None:
    case = Case(2, 4, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    fusion = make_fusion(case, path).float()
    states = [torch.randn(2, 5, 8) for _ in range(4)]
    for state in states:
        state[mask == 0] = float("nan")
        state.requires_grad_()
    fusion(states, mask).sum().backward()
    for tensor in [*fusion.parameters(), *states]:
        assert tensor.grad is not None and torch.isfinite(tensor.grad).all()


def test_dropout_is_torchs_in_the_mean_and_repeats() -> None:
    """Where it falls is checked by expectation: both paths drop the same quantities, if not with the same masks."""
    fusion = make_fusion(Case(1, 4, 1, 8), "torch").float()
    fusion.dropout = 0.3
    state = [torch.randn(1, 1, 8).expand(1, 20_000, 8).contiguous() for _ in range(4)]
    mask = torch.ones(1, 20_000)

    def weights(path: str, seed: int) -> torch.Tensor:
        fusion.backend = path
        torch.manual_seed(seed)
        return fusion.weights(state, mask)

    assert torch.allclose(weights("torch", 1), weights("reference", 1), atol=6e-3)
    assert torch.equal(weights("torch", 1), weights("torch", 1))
    assert not torch.equal(weights("torch", 1), weights("torch", 2))
    fusion.eval()
    assert (weights("torch", 1) - fusion.train().weights(state, mask)).abs().max() > 0


@contextmanager
def released(module: nn.Module) -> Iterator[list[weakref.ref[torch.UntypedStorage]]]:
    """As ZeRO-3 does after a module's forward: each parameter's storage is given up, and a new one filled for
    backward. Yields references to the old ones."""
    old = []
    kept = {name: p.detach().clone() for name, p in module.named_parameters()}
    for parameter in module.parameters():
        old.append(weakref.ref(parameter.untyped_storage()))
        parameter.data = torch.empty(0, dtype=parameter.dtype)
    yield old
    for name, parameter in module.named_parameters():
        parameter.data = kept[name]


@pytest.mark.parametrize("heads", [1, 4])
def test_nothing_saved_holds_a_released_parameter(heads: int) -> None:
    """With one head and more tokens than D the projections of value and output are one matrix."""
    case = Case(2, 4, 5, 8, heads=heads)
    states, mask = [torch.randn(2, 5, 8, dtype=torch.float64) for _ in range(4)], torch.ones(2, 5)
    plain, fusion = make_fusion(case, "torch"), make_fusion(case, "torch")
    plain(states, mask).square().sum().backward()
    loss = fusion(states, mask).square().sum()
    with released(fusion) as old:
        assert [reference() for reference in old] == [None] * len(old)
    loss.backward()
    for (name, a), (_, b) in zip(plain.named_parameters(), fusion.named_parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name


def test_activation_checkpointing_draws_the_same_masks() -> None:
    fusion = make_fusion(Case(2, 4, 5, 8), "torch")
    fusion.dropout = 0.5
    states = [torch.randn(2, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    found = []
    for wrapped in (False, True):
        torch.manual_seed(1)
        fusion.zero_grad()
        out = (
            checkpoint(fusion, states, torch.ones(2, 5), use_reentrant=False)
            if wrapped
            else fusion(states, torch.ones(2, 5))
        )
        out.square().sum().backward()
        found.append([p.grad.clone() for p in fusion.parameters()])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("path", ["torch", "auto"])
def test_the_rest_can_be_compiled(path: str) -> None:
    """Dynamo breaks its graph at the fusion and goes on behind it."""
    fusion = make_fusion(Case(2, 3, 4, 8), path).float()
    states, mask = [torch.randn(2, 4, 8) for _ in range(3)], torch.ones(2, 4)

    def rest(*tensors: torch.Tensor) -> torch.Tensor:
        return (fusion([2 * t for t in tensors], mask) + 1).sum()

    expected = rest(*states)
    got = torch.compile(rest, backend="eager")(*states)
    got.backward()
    assert torch.allclose(got, expected)
    assert fusion.cls.grad is not None


def test_auto_and_wrong_paths() -> None:
    assert [choose_backend(path) for path in BACKENDS[:2]] == ["reference", "torch"]
    assert choose_backend("auto") == "torch"
    with pytest.raises(ValueError, match="expected auto or one of"):
        choose_backend("cuda")


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_auto_is_triton_on_a_gpu_where_it_can_compile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("CC", "gcc")
    backends.why_no_triton.cache_clear()
    assert [choose_backend("auto", device) for device in ("cuda", "cpu", "mps")] == ["triton", "torch", "torch"]
    monkeypatch.delenv("CC")
    monkeypatch.setenv("PATH", str(tmp_path))
    backends.why_no_triton.cache_clear()
    assert choose_backend("auto", "cuda") == "torch"
    with pytest.raises(ValueError, match="needs a C compiler"):
        choose_backend("triton", "cuda")
    backends.why_no_triton.cache_clear()


def test_order_of_names_is_the_modules() -> None:
    assert set(by_token.NAMES) == {name for name, _ in TransformerSoftmax(2, 4).named_parameters()}
