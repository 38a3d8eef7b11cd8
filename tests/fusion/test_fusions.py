"""Every fusion against its formula, every code path against torch's own layer, with all gradients."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from bridge_ds.fusion import FUSIONS
from bridge_ds.fusion.transformer_softmax.module import TransformerSoftmax

PATHS = ("reference", "torch")
SHAPES = [(1, 1, 1, 4), (2, 3, 5, 8), (3, 6, 7, 24), (2, 24, 11, 16)]  # B, L, S, D


def make_states(
    shape: tuple[int, int, int, int], dtype: torch.dtype = torch.float64
) -> tuple[list[torch.Tensor], torch.Tensor]:
    batch, layers, length, width = shape
    torch.manual_seed(sum(shape))
    states = [torch.randn(batch, length, width, dtype=dtype) * (1 + place) for place in range(layers)]
    mask = (torch.arange(length) < torch.randint(1, length + 1, (batch, 1))).long()
    return states, mask


def randomise(module: nn.Module) -> None:
    """The paper's start (zeros, ones) would hide a wrong term."""
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


def torch_layer(fusion: TransformerSoftmax, states: list[torch.Tensor]) -> tuple[torch.Tensor, nn.Module]:
    """Scores [B, S, L] from a real nn.TransformerEncoderLayer that holds the fusion's parameters."""
    layer = nn.TransformerEncoderLayer(
        fusion.width, nhead=1, dim_feedforward=fusion.linear1_bias.numel(), dropout=0.0, batch_first=True
    ).double()
    for name, parameter in layer.named_parameters():
        parameter.data.copy_(getattr(fusion, name.replace(".", "_")).data)
    tokens = torch.stack(states, dim=2).flatten(0, 1) + fusion.layer_positions
    sequence = torch.cat([fusion.cls.expand(tokens.shape[0], 1, -1), tokens], dim=1)
    first = layer(sequence)[:, 0]
    scores = nn.functional.linear(first, fusion.score_weight, fusion.score_bias)
    return scores.view(*states[0].shape[:2], -1), layer


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", SHAPES)
def test_transformer_softmax_is_torchs_layer(path: str, shape: tuple[int, int, int, int]) -> None:
    states, mask = make_states(shape)
    fusion = TransformerSoftmax(shape[1], shape[3], dropout=0.0, backend=path, feedforward=40).double()
    randomise(fusion)
    states = [state.requires_grad_() for state in states]
    upstream = torch.randn(shape[0], shape[2], shape[3], dtype=torch.float64)

    out = fusion(states, mask)
    (out * upstream).sum().backward()
    mine = {name: p.grad.clone() for name, p in fusion.named_parameters() if p.grad is not None}
    mine_states = [state.grad.clone() for state in states]
    fusion.zero_grad()
    for state in states:
        state.grad = None

    scores, layer = torch_layer(fusion, states)
    weights = torch.softmax(scores, -1)
    expected = sum(w[..., None] * h for w, h in zip(weights.unbind(-1), states, strict=True)) * mask[..., None]
    (expected * upstream).sum().backward()

    assert torch.allclose(out, expected, atol=1e-10)
    for name, parameter in layer.named_parameters():
        got = mine.get(name.replace(".", "_"), torch.zeros_like(parameter))
        assert torch.allclose(got, parameter.grad, atol=1e-8), name
    for name in ("cls", "layer_positions", "score_weight", "score_bias"):
        assert torch.allclose(mine[name], getattr(fusion, name).grad, atol=1e-8), name
    for got, state in zip(mine_states, states, strict=True):
        assert torch.allclose(got, state.grad, atol=1e-8)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_paths_agree_in_the_models_dtype(dtype: torch.dtype, tolerance: float) -> None:
    states, mask = make_states((3, 6, 7, 24), dtype)
    outs = []
    for path in PATHS:
        torch.manual_seed(0)
        fusion = TransformerSoftmax(6, 24, dropout=0.0, backend=path)
        out = fusion(states, mask)
        assert out.dtype == dtype
        outs.append(out.float())
    scale = outs[0].abs().max()
    assert (outs[0] - outs[1]).abs().max() / scale < tolerance


def test_global_softmax_is_its_formula_and_starts_even() -> None:
    states, mask = make_states((2, 5, 4, 8))
    fusion = FUSIONS["global_softmax"](num_layers=5, width=8).double()
    mean = torch.stack(states).mean(0) * mask[..., None]
    assert torch.allclose(fusion(states, mask), mean)
    with torch.no_grad():
        fusion.scores.copy_(torch.tensor([0.0, 1e-2, 2e-2, -1e-2, 3e-2]))
        fusion.temperature.fill_(2e-3)
    weights = torch.softmax((100 + 1e5 * 2e-3) * fusion.scores, 0)
    expected = sum(w * h for w, h in zip(weights, states, strict=True)) * mask[..., None]
    assert torch.allclose(fusion(states, mask), expected)
    assert torch.allclose(fusion.weights(), weights.float(), atol=1e-6)


def test_last_layer_is_the_last_state() -> None:
    states, mask = make_states((2, 3, 4, 8))
    fusion = FUSIONS["last_layer"](num_layers=3, width=8)
    assert torch.equal(fusion(states, mask), states[-1] * mask[..., None])
    assert fusion.weights().tolist() == [0, 0, 1]
    assert list(fusion.parameters()) == []


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_padding_is_zero_even_where_states_are_not_finite(name: str) -> None:
    states, _ = make_states((2, 3, 5, 8), torch.float32)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]])
    for state in states:
        state[mask == 0] = float("nan")
    fusion = FUSIONS[name](num_layers=3, width=8)
    out = fusion(states, mask)
    assert torch.all(out[mask == 0] == 0)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_weights_sum_to_one_and_ignore_padding(name: str) -> None:
    states, mask = make_states((3, 4, 6, 8), torch.float32)
    fusion = FUSIONS[name](num_layers=4, width=8).eval()
    weights = fusion.weights(states, mask)
    assert weights.shape == (4,)
    assert weights.sum().item() == pytest.approx(1, abs=1e-5)
    longer = [torch.cat([state, 9 * torch.ones_like(state)], dim=1) for state in states]
    assert torch.allclose(fusion.weights(longer, torch.cat([mask, torch.zeros_like(mask)], 1)), weights, atol=1e-6)


def test_dropout_repeats_with_the_seed_and_is_off_in_eval() -> None:
    states, mask = make_states((2, 4, 6, 8), torch.float32)
    fusion = TransformerSoftmax(4, 8, dropout=0.5)

    def run(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return fusion(states, mask)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    fusion.eval()
    assert torch.equal(run(1), run(2))


@pytest.mark.parametrize("name", sorted(FUSIONS))
def test_wrong_states_are_refused(name: str) -> None:
    states, mask = make_states((2, 3, 4, 8), torch.float32)
    with pytest.raises(ValueError, match="built for 4 of width 8"):
        FUSIONS[name](num_layers=4, width=8)(states, mask)
