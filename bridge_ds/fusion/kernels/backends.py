"""Choice of the backend, and the four operations of the fusions on each.

Dimensions: B batch, S encoder tokens, L layers, D width.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import shutil
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from bridge_ds.fusion.kernels import by_layer, by_matrix, by_query, by_token, reference
from bridge_ds.fusion.kernels.primitives import Primitives
from bridge_ds.fusion.kernels.rows import Rows, real_rows
from bridge_ds.fusion.spec import BACKENDS

__all__ = [
    "choose_backend",
    "fuse_by_layer",
    "fuse_by_matrix",
    "fuse_by_query",
    "fuse_by_token",
    "primitives",
    "why_no_triton",
]


def choose_backend(backend: str, device: str = "cpu") -> str:
    """The backend that runs: `auto` is triton on CUDA (and ROCm) where it can run, else torch.

    Args:
        backend: one of :data:`BACKENDS`, or `auto`.
        device: type of the device that holds the states.

    Raises:
        ValueError: no such backend, or triton where it cannot run.
    """
    if backend == "auto":
        return "triton" if device == "cuda" and not why_no_triton() else "torch"
    if backend not in BACKENDS:
        raise ValueError(f"fusion.backend is {backend!r}; expected auto or one of {', '.join(BACKENDS)}")
    if backend == "triton" and why_no_triton():
        raise ValueError(f"fusion.backend is triton, which {why_no_triton()}; fix that or use torch")
    return backend


def primitives(backend: str) -> Primitives:
    """What reads the states on a fast backend; triton is imported at its first use."""
    return importlib.import_module(f"bridge_ds.fusion.kernels.{backend}_primitives")  # type: ignore[return-value]


def fuse_by_token(
    backend: str, states: Sequence[torch.Tensor], mask_BS: torch.Tensor, p: Mapping[str, torch.Tensor], *,
    heads: int = 1, dropout: float = 0.0, rms: bool = False, rows: Rows | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Transformer Softmax: weights of each token from one transformer layer over its states.

    Args:
        backend: as of :func:`choose_backend`, which raises.
        states: L tensors [B, S, D].
        mask_BS: 0 on padding.
        p: parameters of :class:`bridge_ds.fusion.transformer_softmax.module.TransformerSoftmax` by name.
        heads: of the layer; must divide D.
        dropout: probability, drawn from torch's global generator.
        rms: divide each state of each token by its root mean square first.
        rows: of `mask_BS`, where they are known already.

    Returns:
        the fused states [B, S, D] in the states' dtype, zero on padding, and the mean weights [L] over the tokens.
    """
    backend = choose_backend(backend, states[0].device.type)
    if backend == "reference":
        states = reference.normed(states) if rms else states
        weights_BSL = torch.softmax(_wide(reference.layer_scores(states, p, dropout, heads)), dim=-1)
        return reference.mix(states, weights_BSL, mask_BS), _mean_weights(weights_BSL, mask_BS)
    rows = rows or real_rows(mask_BS)
    return by_token.fuse(primitives(backend), rows, states, p, heads=heads, dropout=dropout, rms=rms)


def fuse_by_layer(
    backend: str, states: Sequence[torch.Tensor], mask_BS: torch.Tensor, weights_L: torch.Tensor, *,
    rms: bool = False, rows: Rows | None = None,
) -> torch.Tensor:  # fmt: skip
    """sum_l w_l h_l with the same weights [L] for every token: [B, S, D] in the states' dtype, zero on padding.
    Arguments as of :func:`fuse_by_token`."""
    backend = choose_backend(backend, states[0].device.type)
    if backend == "reference":
        return reference.mix(reference.normed(states) if rms else states, weights_L, mask_BS)
    wide_L = _wide(weights_L).to(torch.promote_types(states[0].dtype, torch.float32))
    return by_layer.fuse(primitives(backend), rows or real_rows(mask_BS), states, wide_L, rms)


def fuse_by_matrix(
    backend: str, states: Sequence[torch.Tensor], mask_BS: torch.Tensor, weight_KL: torch.Tensor, bias_K: torch.Tensor,
    *, relu: bool = True, rms: bool = False, rows: Rows | None = None,
) -> torch.Tensor:  # fmt: skip
    """relu(sum_l W_kl h_l + b_k) for K rows of weights at once: [K, B, S, D] in the states' dtype, zero on padding.
    Other arguments as of :func:`fuse_by_token`.

    Args:
        weight_KL: W, the same for every token.
        bias_K: b.
        relu: if not, the sums themselves are the result.
    """
    backend = choose_backend(backend, states[0].device.type)
    if backend == "reference":
        states = reference.normed(states) if rms else states
        return reference.matrix_mix(states, weight_KL, bias_K, mask_BS, relu)
    own = primitives(backend) if backend == "triton" else None
    return by_matrix.fuse(own, rows or real_rows(mask_BS), states, weight_KL, bias_K, relu, rms)


def fuse_by_query(
    backend: str, states: Sequence[torch.Tensor], mask_BS: torch.Tensor, query_D: torch.Tensor, *,
    rms: bool = False, rows: Rows | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Layer Attention: weights of each token are the softmax of q . h_l / sqrt(D) over its layers. Arguments and result
    as of :func:`fuse_by_token`."""
    backend = choose_backend(backend, states[0].device.type)
    if backend == "reference":
        states = reference.normed(states) if rms else states
        weights_BSL = torch.softmax(_wide(reference.query_scores(states, query_D)), dim=-1)
        return reference.mix(states, weights_BSL, mask_BS), _mean_weights(weights_BSL, mask_BS)
    return by_query.fuse(primitives(backend), rows or real_rows(mask_BS), states, query_D, rms)


@functools.cache
def why_no_triton() -> str:
    """Why Triton's kernels cannot run here; empty if they can."""
    if importlib.util.find_spec("triton") is None:
        return "is not installed (pip install 'bridge_ds[kernels]')"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return ""
    # Triton compiles its kernel launcher where it runs (triton/runtime/build.py).
    if not (os.environ.get("CC") or any(map(shutil.which, ("gcc", "clang", "cc")))):
        return "needs a C compiler (gcc, clang, or the one that CC names) and finds none"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "needs Python's header files and finds no Python.h (python3-dev, or a Python that has them)"
    return ""


def _mean_weights(weights_BSL: torch.Tensor, mask_BS: torch.Tensor) -> torch.Tensor:
    real_BS1 = mask_BS[..., None] != 0
    return weights_BSL.detach().masked_fill(~real_BS1, 0).sum((0, 1)) / real_BS1.sum().clamp(min=1)


def _wide(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
