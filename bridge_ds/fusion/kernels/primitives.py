"""The operations of a backend, and the settings that forward and backward of one call share.

Dimensions: N rows, M rows of tokens, m of one chunk, L layers, P = L + 1 positions of the attention, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from bridge_ds.fusion.kernels.dropout import Factors, Masks, make_masks
from bridge_ds.fusion.kernels.rows import Rows
from bridge_ds.fusion.spec import GPU_CHUNK

__all__ = ["RMS_EPSILON", "KernelPlan", "Primitives", "make_plan", "state_gradients"]

RMS_EPSILON = 1e-6
"""Added to the mean square, as in T5's norm."""

Tensor = torch.Tensor
States = Any


class Primitives(Protocol):
    """Everything that reads the states, specified in :mod:`.torch_primitives`, and dropout."""

    def prepare(
        self, states: Sequence[Tensor], rows: Rows | None = None, dtype: torch.dtype | None = None,
        kept: Tensor | None = None,
    ) -> Any: ...  # fmt: skip

    def kept(self, states: States) -> Tensor | None: ...

    def attend(
        self, states: States, rows: Rows, lo: int, hi: int, u_HD: Tensor, position_scores_HP: Tensor,
        keep: Factors | None, rms: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]: ...  # fmt: skip

    def attend_backward(
        self, states: States, rows: Rows, lo: int, hi: int, d_pooled_HmD: Tensor, d_kept_mHP: Tensor,
        attention_mHP: Tensor, kept_mHP: Tensor, scale_mL: Tensor | None,
    ) -> tuple[Tensor, Tensor]: ...  # fmt: skip

    def mix(
        self, states: States, rows: Rows, lo: int, hi: int, weights: Tensor, out_ND: Tensor,
        scale_mL: Tensor | None, rms: bool,
    ) -> Tensor | None: ...  # fmt: skip

    def dots(self, states: States, rows: Rows, lo: int, hi: int, vectors_ND: Tensor, dtype: torch.dtype) -> Tensor: ...

    def dot_totals(
        self, states: States, rows: Rows, lo: int, hi: int, vectors_ND: Tensor, scale_mL: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor: ...  # fmt: skip

    def times(
        self, x: Tensor, factors: Factors | None, in_place: bool = False, plus: Tensor | None = None,
        scale: float | None = None,
    ) -> Tensor: ...  # fmt: skip


@dataclass(frozen=True)
class KernelPlan:
    """Settings that forward and backward of one call share."""

    ops: Primitives
    rows: Rows
    dtype: torch.dtype
    """Of the states, and of the matrix products."""
    wide: torch.dtype
    """Of all other operations: float32, or float64 for float64 states."""
    rms: bool = False
    heads: int = 1
    dropout: float = 0.0
    seed: int = 0
    merged: bool = False
    """Whether value and output projection are one matrix, see :mod:`.post_attention`."""

    def chunks(self, like_ND: Tensor) -> list[tuple[int, int]]:
        """Enough tokens for a good matrix product, few enough that a chunk's temporaries stay small. On a CPU chunks
        are as long as each other, up to half more than :func:`chunk_rows`: a few tokens left over would cost as many
        operators, and of the first chunk alone nothing is computed again."""
        size = chunk_rows(like_ND)
        if like_ND.device.type == "cpu" and self.rows.count:
            size = -(-self.rows.count // max(1, round(self.rows.count / size)))
        return list(self.rows.chunks(size))

    def masks(self, lo: int, sizes: tuple[int, int, int]) -> Masks:
        """Dropout of the chunk that begins at token `lo`; `sizes` as in :func:`.dropout.make_masks`."""
        return make_masks(self.dropout, self.seed, lo, sizes)


def chunk_rows(like_ND: Tensor) -> int:
    """Tokens of a chunk. On a CPU 512 of a wide encoder; more of a narrow one, to have fewer operator calls."""
    if like_ND.device.type != "cpu":
        return GPU_CHUNK
    return max(512, min(4096, (1 << 18) // max(1, like_ND.shape[1])))


def make_plan(ops: Primitives, rows: Rows, states: Sequence[Tensor], **more: Any) -> KernelPlan:
    """A plan for these states; `more` are the other settings."""
    dtype = states[0].dtype
    return KernelPlan(ops, rows, dtype, torch.promote_types(dtype, torch.float32), **more)


def state_gradients(
    rows: Rows,
    lo: int,
    hi: int,
    states: Sequence[Tensor],
    targets: dict[int, Tensor],
    vectors: Any,
    scale_mL: Tensor | None,
) -> None:
    """Write the gradient of each state of tokens lo..hi.

    Where v . (f h) is what a layer adds to the results, and f = (mean(h^2) + eps)^-1/2 depends on h,
    d_h = f (v - f^2 / D (v . h) h).

    Args:
        targets: layer -> gradient [N, D] to write to; layers that need none are left out.
        vectors: layer -> v [m, D], called for one layer at a time.
        scale_mL: f, or none where states are not normalized (f = 1).
    """
    for layer, target_ND in targets.items():
        vector_mD = vectors(layer)
        if scale_mL is not None:
            scale_m1 = scale_mL[:, layer, None]
            state_mD = rows.take(states[layer], lo, hi).to(vector_mD.dtype)
            along_m1 = (vector_mD * state_mD).sum(-1, keepdim=True)
            along_m1 *= scale_m1.square() / -state_mD.shape[1]
            vector_mD = torch.addcmul(vector_mD, along_m1, state_mD) * scale_m1
        rows.put(target_ND, lo, hi, vector_mD)
