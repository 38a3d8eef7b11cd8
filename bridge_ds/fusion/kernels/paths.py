"""The contract of the code paths, and which one runs where.

Letters: B batch, S encoder tokens, L layers, D width, M tokens without padding.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Mapping, Sequence

import torch

from bridge_ds.fusion.kernels import reference
from bridge_ds.fusion.kernels.collapse import layer_scores
from bridge_ds.fusion.kernels.mixing import Primitives, inverse_rms, mix
from bridge_ds.fusion.kernels.native_build import library, why_not
from bridge_ds.fusion.kernels.rows import Rows, real_rows

__all__ = ["PATHS", "choose", "fuse_by_layer", "fuse_by_token", "primitives"]

PATHS = ("reference", "torch", "native", "triton")
"""Values of `fusion.path`, beside `auto`."""


def choose(path: str, device: str = "cpu") -> str:
    """The path that runs: `auto` is native on a CPU with a C compiler, else torch. The Triton kernels have run in the
    interpreter only; they become the default on CUDA when they have been measured there.

    Args:
        path: one of :data:`PATHS`, or `auto`.
        device: type of the device that holds the states.

    Raises:
        ValueError: no such path, or one that cannot run here: triton where it is not installed, native without a C
            compiler or on another device than the CPU.
    """
    if path == "auto":  # under torch.compile, too, torch: dynamo cannot look into a C library
        return "torch" if device != "cpu" or torch.compiler.is_compiling() or why_not() else "native"
    if path not in PATHS:
        raise ValueError(f"fusion.path is {path!r}; expected auto or one of {', '.join(PATHS)}")
    if path == "native" and device != "cpu":
        raise ValueError(f"fusion.path is native, which runs on a CPU; the states are on {device}; use auto or torch")
    if path == "native":
        library()
    if path == "triton" and not _has_triton():
        raise ValueError("fusion.path is triton, which is not installed; pip install 'bridge_ds[kernels]' or use torch")
    return path


def primitives(path: str) -> Primitives:
    """What reads the states on a fast path; triton is imported when it is first used, never before."""
    return importlib.import_module(f"bridge_ds.fusion.kernels.{path}_rows")  # type: ignore[return-value]


def fuse_by_token(
    path: str, states: Sequence[torch.Tensor], mask_BS: torch.Tensor, p: Mapping[str, torch.Tensor], *,
    heads: int = 1, dropout: float = 0.0, normalize: bool = False, rows: Rows | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Transformer Softmax: weights of each token from one transformer layer over its states.

    Args:
        path: a name in :data:`PATHS`.
        states: L tensors [B, S, D].
        mask_BS: 0 on padding.
        p: parameters of :class:`bridge_ds.fusion.transformer_softmax.TransformerSoftmax` by name.
        heads: of the layer; must divide D.
        dropout: probability, drawn from torch's global generator.
        normalize: divide each state of each token by its RMS first.
        rows: what `mask_BS` says, where it is known already.

    Returns:
        the fused states [B, S, D] in the states' dtype, zero on padding, and the mean weights [L] over the tokens.
    """
    if path == "reference":
        states = reference.normed(states) if normalize else states
        weights_BSL = torch.softmax(_wide(reference.layer_scores(states, p, dropout, heads)), dim=-1)
        real_BS1 = mask_BS[..., None] != 0
        seen_L = weights_BSL.detach().masked_fill(~real_BS1, 0).sum((0, 1)) / real_BS1.sum().clamp(min=1)
        return reference.mix(states, weights_BSL, mask_BS), seen_L
    fast, rows = primitives(path), rows or real_rows(mask_BS)
    scale_ML = inverse_rms(fast, rows, states) if normalize else None
    weights_ML = torch.softmax(layer_scores(fast, rows, states, p, heads, dropout, scale_ML), dim=-1)
    factors_ML = weights_ML if scale_ML is None else weights_ML * scale_ML
    return mix(fast, rows, states, factors_ML), weights_ML.detach().sum(0) / max(1, rows.count)


def fuse_by_layer(
    path: str, states: Sequence[torch.Tensor], mask_BS: torch.Tensor, weights_L: torch.Tensor, *,
    normalize: bool = False, rows: Rows | None = None,
) -> torch.Tensor:  # fmt: skip
    """sum_l w_l h_l with the same weights [L] for every token: [B, S, D] in the states' dtype, zero on padding."""
    if path == "reference":
        return reference.mix(reference.normed(states) if normalize else states, weights_L, mask_BS)
    fast, rows = primitives(path), rows or real_rows(mask_BS)
    factors = _wide(weights_L).to(torch.promote_types(states[0].dtype, torch.float32))
    return mix(fast, rows, states, factors * inverse_rms(fast, rows, states) if normalize else factors)


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
