"""The primitives in plain torch, for CPU threads and any device.

Work goes in blocks of rows. On a CPU a block's L states are copied next to each other, where they fit in cache together
and one operator reads all of them. On another device a block is all of the call, nothing is copied, and operators read
one state each. A state is widened to float32 a block at a time; no tensor of L x N x D is formed, unless it is small.

Dimensions: N rows, M rows of tokens, m of one chunk, L layers, P = L + 1 positions of the attention, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from bridge_ds.fusion.kernels.dropout import Factors
from bridge_ds.fusion.kernels.primitives import RMS_EPSILON
from bridge_ds.fusion.kernels.rows import Rows

__all__ = ["attend", "attend_backward", "dot_totals", "dots", "kept", "mix", "prepare", "times"]

CACHE_BYTES = 3 << 20
"""Bytes of states read together on a CPU: few beside the cache that cores share, fewer than the allocator frees."""
KEPT_BYTES = 16 << 20
"""Bytes of states up to which the tokens' rows are copied once for all that reads them, on a CPU."""
SLAB_BYTES = 2 << 20
"""Bytes of one state read together where each is read once only: the sum stays in cache, operators stay few."""

Block = list[torch.Tensor] | torch.Tensor
"""L states of some rows: [L, rows, D], or that many tensors [rows, D]."""


@dataclass
class Near:
    """Small states, of which the tokens' rows are copied when they are first read."""

    states: Sequence[torch.Tensor]
    rows: Rows
    dtype: torch.dtype
    copy_LMD: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.states)

    def all(self) -> torch.Tensor:
        """The rows of all tokens, [L, M, D]."""
        if self.copy_LMD is None:
            self.copy_LMD = _gathered(self.states, self.rows, 0, self.rows.count, self.dtype)
        return self.copy_LMD


States = Sequence[torch.Tensor] | Near


def prepare(
    states: Sequence[torch.Tensor], rows: Rows | None = None, dtype: torch.dtype | None = None,
    kept: torch.Tensor | None = None,
) -> States:  # fmt: skip
    """What the other primitives take as `states`: L tensors [N, D]. Once in each direction.

    Args:
        states: L tensors [N, D].
        rows: given where the states are read more than once.
        dtype: in which they are read then: float32, or float64.
        kept: in backward, what :func:`kept` gave in forward.
    """
    if rows is None or dtype is None or not on_cpu(states[0]):
        return states
    size = len(states) * rows.count * states[0].shape[1] * dtype.itemsize
    return Near(states, rows, dtype, kept) if 0 < size <= KEPT_BYTES else states


def kept(states: States) -> torch.Tensor | None:
    """What forward keeps of the states for backward, besides the states."""
    return states.copy_LMD if isinstance(states, Near) else None


def attend(
    states: States, rows: Rows, lo: int, hi: int, u_HD: torch.Tensor, position_scores_HP: torch.Tensor,
    keep: Factors | None, rms: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """Attention of one query vector a head over the layers, and the states pooled by it.

    Args:
        states: what :func:`prepare` gave.
        rows: which rows hold tokens; `lo`, `hi` choose the tokens of this call.
        u_HD: score of a state h in head H is u . h; float32 (or float64), as all that follow.
        position_scores_HP: [H, L + 1] added scores; position 0 is the query's own and has no state.
        keep: dropout factors of the attention, or none.
        rms: divide each state of each token by its RMS first.

    Returns:
        attention [m, H, L + 1] before dropout and after it, pooled [H, m, D] = sum_l attention_l keep_l scale_l h_l,
        and scale [m, L], the inverse RMS (none without `rms`).
    """
    layers, heads, width = len(states), *u_HD.shape
    attention_mHP = u_HD.new_empty(hi - lo, heads, layers + 1)
    pooled_mHD = u_HD.new_empty(hi - lo, heads, width)
    scale_mL = u_HD.new_empty(hi - lo, layers) if rms else None
    keep_mHP = None if keep is None else keep.kept(attention_mHP)
    kept_mHP = attention_mHP if keep is None else torch.empty_like(attention_mHP)
    for part, block in _blocks(states, rows, lo, hi, u_HD.dtype):
        raw_LmH = _scores(block, u_HD)
        if scale_mL is not None:
            scale_mL[part] = _inverse_rms(block, u_HD.dtype)
            raw_LmH *= scale_mL[part].T[..., None]
        scores_PmH = u_HD.new_empty(layers + 1, *raw_LmH.shape[1:])
        scores_PmH[0] = position_scores_HP[:, 0]
        torch.add(raw_LmH, position_scores_HP.T[1:, None], out=scores_PmH[1:])
        # Over the first dimension: over the last, which has few elements, it takes ten times as long on a CPU.
        attention_mHP[part] = torch.softmax(scores_PmH, dim=0).permute(1, 2, 0)
        if keep is not None and keep_mHP is not None:
            torch.mul(attention_mHP[part], keep_mHP[part], out=kept_mHP[part]).mul_(keep.draws.kept_scale)
        weights_mHL = kept_mHP[part, :, 1:]
        if scale_mL is not None:
            weights_mHL = weights_mHL * scale_mL[part, None]
        _accumulate(block, weights_mHL, pooled_mHD[part])
    return attention_mHP, kept_mHP, pooled_mHD.transpose(0, 1), scale_mL


def attend_backward(
    states: States, rows: Rows, lo: int, hi: int, d_pooled_HmD: torch.Tensor, d_kept_mHP: torch.Tensor,
    attention_mHP: torch.Tensor, kept_mHP: torch.Tensor, scale_mL: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Gradients of :func:`attend` for the scores [m, H, L + 1] and for u [H, D].

    Args:
        d_pooled_HmD: gradient of pooled.
        d_kept_mHP: gradient of the attention after dropout from elsewhere (the positions' own vectors); overwritten.
        attention_mHP: before dropout; `kept_mHP` after it.
    """
    d_scores_mHP = d_kept_mHP
    d_u_HD = d_pooled_HmD.new_zeros(len(d_pooled_HmD), d_pooled_HmD.shape[-1])
    for part, block in _blocks(states, rows, lo, hi, d_pooled_HmD.dtype):
        dots_mHL = _dots(block, d_pooled_HmD[:, part].transpose(0, 1))
        if scale_mL is not None:
            dots_mHL *= scale_mL[part, None]
        d_part_mHP = d_scores_mHP[part]
        d_part_mHP[..., 1:] += dots_mHL
        d_part_mHP *= kept_mHP[part]
        d_part_mHP.addcmul_(attention_mHP[part], d_part_mHP.sum(-1, keepdim=True), value=-1)
        factors_mHL = d_part_mHP[..., 1:] if scale_mL is None else d_part_mHP[..., 1:] * scale_mL[part, None]
        if isinstance(block, torch.Tensor):
            d_u_HD.addmm_(factors_mHL.permute(1, 2, 0).flatten(1), block.flatten(0, 1))
            continue
        for layer, state in enumerate(block):
            d_u_HD.addmm_(factors_mHL[..., layer].T, state.to(d_u_HD.dtype))
    return d_scores_mHP, d_u_HD


def mix(
    states: States, rows: Rows, lo: int, hi: int, weights: torch.Tensor, out_ND: torch.Tensor,
    scale_mL: torch.Tensor | None = None, rms: bool = False,
) -> torch.Tensor | None:  # fmt: skip
    """Write sum_l w_l scale_l h_l of tokens lo..hi to their rows of `out_ND`, in its dtype.

    Args:
        weights: [m, L], or [L]: the same for every token.
        scale_mL: inverse RMS of the states, or none.
        rms: compute it here.

    Returns:
        the inverse RMS [m, L] where `rms` asks for it.
    """
    shared, wide = weights.dim() == 1, weights.dtype
    if shared and not rms and on_cpu(weights):
        assert not isinstance(states, Near)
        _mix_shared(states, rows, lo, hi, weights, out_ND)
        return None
    scale_mL = weights.new_empty(hi - lo, len(states)) if rms else scale_mL
    for part, block in _blocks(states, rows, lo, hi, wide):
        if rms:
            assert scale_mL is not None
            scale_mL[part] = _inverse_rms(block, wide)
        weights_mL = weights.expand(part.stop - part.start, -1) if shared else weights[part]
        if scale_mL is not None:
            weights_mL = weights_mL * scale_mL[part]
        first, last = lo + part.start, lo + part.stop
        if rows.index is None and out_ND.dtype == wide:
            _accumulate(block, weights_mL[:, None], out_ND[first:last, None])
        else:
            mixed_mD = weights.new_empty(last - first, out_ND.shape[1])
            _accumulate(block, weights_mL[:, None], mixed_mD[:, None])
            rows.put(out_ND, first, last, mixed_mD)
    return scale_mL if rms else None


def dots(states: States, rows: Rows, lo: int, hi: int, vectors_ND: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """v . h_l for the vectors [N, D] at the tokens' rows: [m, L] in `dtype` (the backward of :func:`mix`)."""
    found_mL = vectors_ND.new_empty(hi - lo, len(states), dtype=dtype)
    for part, block in _blocks(states, rows, lo, hi, dtype):
        found_mL[part] = _dots(block, rows.take(vectors_ND, lo + part.start, lo + part.stop).to(dtype)[:, None])[:, 0]
    return found_mL


def dot_totals(
    states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, vectors_ND: torch.Tensor,
    scale_mL: torch.Tensor | None, dtype: torch.dtype,
) -> torch.Tensor:  # fmt: skip
    """scale_l v . h_l summed over tokens lo..hi: [L] (the backward of :func:`mix` for weights shared by all tokens)."""
    if scale_mL is not None or not on_cpu(vectors_ND):
        found_mL = dots(states, rows, lo, hi, vectors_ND, dtype)
        return (found_mL if scale_mL is None else found_mL.mul_(scale_mL)).sum(0)
    found_L = vectors_ND.new_zeros(len(states), dtype=dtype)
    for first, last in _slabs(states, lo, hi, dtype):
        vector = rows.take(vectors_ND, first, last).to(dtype).reshape(-1)
        found_L += torch.stack([torch.dot(rows.take(s, first, last).to(dtype).reshape(-1), vector) for s in states])
    return found_L


def times(
    x: torch.Tensor, factors: Factors | None, in_place: bool = False, plus: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:  # fmt: skip
    """x times its dropout factors (x itself where there are none; `scale` in place of their 1 / (1 - p)), and `plus`
    added, maybe in place."""
    if factors is None:
        return x if plus is None else x.add_(plus)
    kept, scale = factors.kept(x), factors.draws.kept_scale if scale is None else scale
    if plus is not None or (scale != 1 and not in_place):
        return torch.addcmul(kept.new_zeros(()) if plus is None else plus, x, kept, value=scale)
    found = x.mul_(kept) if in_place else x * kept
    return found if scale == 1 else found.mul_(scale)


def on_cpu(x: torch.Tensor) -> bool:
    """Whether an operator that reads all states of a block is worth a copy of them, which is then near."""
    return x.device.type == "cpu"


def _blocks(states: States, rows: Rows, lo: int, hi: int, dtype: torch.dtype) -> Iterator[tuple[slice, Block]]:
    """Blocks of tokens lo..hi, their position counted from lo; on a CPU [L, rows, D] in `dtype`."""
    if isinstance(states, Near):
        yield slice(0, hi - lo), states.all()[:, lo:hi]
        return
    cached = on_cpu(states[0])
    size = max(8, CACHE_BYTES // max(1, len(states) * states[0].shape[1] * dtype.itemsize)) if cached else hi - lo
    for first in range(lo, hi, max(1, size)):
        last = min(hi, first + size)
        if cached:
            yield slice(first - lo, last - lo), _gathered(states, rows, first, last, dtype)
        else:
            yield slice(first - lo, last - lo), [rows.take(state, first, last) for state in states]


def _gathered(states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, dtype: torch.dtype) -> torch.Tensor:
    """Tokens lo..hi of all states, [L, hi - lo, D]."""
    found_LmD = states[0].new_empty(len(states), hi - lo, states[0].shape[1], dtype=dtype)
    index_m = None if rows.index is None else rows.index[lo:hi]
    for state, out_mD in zip(states, found_LmD.unbind(), strict=True):
        if index_m is not None and state.dtype == dtype:
            torch.index_select(state, 0, index_m, out=out_mD)
        else:
            out_mD.copy_(rows.take(state, lo, hi))
    return found_LmD


def _slabs(states: Sequence[torch.Tensor], lo: int, hi: int, dtype: torch.dtype) -> Iterator[tuple[int, int]]:
    size = max(8, SLAB_BYTES // (states[0].shape[1] * dtype.itemsize))
    for first in range(lo, hi, size):
        yield first, min(hi, first + size)


def _mix_shared(
    states: Sequence[torch.Tensor], rows: Rows, lo: int, hi: int, weights_L: torch.Tensor, out_ND: torch.Tensor
) -> None:
    factors, wide = weights_L.tolist(), weights_L.dtype
    in_place = rows.index is None and out_ND.dtype == wide
    for first, last in _slabs(states, lo, hi, wide):
        part_mD = rows.take(out_ND, first, last) if in_place else weights_L.new_empty(last - first, out_ND.shape[1])
        torch.mul(rows.take(states[0], first, last).to(wide), factors[0], out=part_mD)
        for state, factor in zip(states[1:], factors[1:], strict=True):
            part_mD.add_(rows.take(state, first, last).to(wide), alpha=factor)
        if not in_place:
            rows.put(out_ND, first, last, part_mD)


def _scores(block: Block, u_HD: torch.Tensor) -> torch.Tensor:
    """u . h of each state and head, [L, m, H]."""
    if isinstance(block, torch.Tensor):
        return _product(block.flatten(0, 1), u_HD).view(*block.shape[:2], len(u_HD))
    return torch.stack([_product(state.to(u_HD.dtype), u_HD) for state in block])


def _product(state_mD: torch.Tensor, u_HD: torch.Tensor) -> torch.Tensor:
    return torch.mv(state_mD, u_HD[0])[:, None] if len(u_HD) == 1 else state_mD @ u_HD.T


def _inverse_rms(block: Block, dtype: torch.dtype) -> torch.Tensor:
    """[m, L]."""
    if isinstance(block, torch.Tensor):
        norms_Lm = torch.linalg.vector_norm(block, dim=-1)
    else:
        norms_Lm = torch.stack([torch.linalg.vector_norm(state, dim=-1, dtype=dtype) for state in block])
    return norms_Lm.square_().div_(block[0].shape[-1]).add_(RMS_EPSILON).rsqrt_().T


def _accumulate(block: Block, weights_mHL: torch.Tensor, out_mHD: torch.Tensor) -> None:
    """Write sum_l w_l h_l of each head."""
    if isinstance(block, torch.Tensor):
        torch.bmm(weights_mHL, block.transpose(0, 1), out=out_mHD)
        return
    for weights_mL, out_mD in zip(weights_mHL.unbind(1), out_mHD.unbind(1), strict=True):
        first_m1, *others = weights_mL[..., None].unbind(1)
        torch.mul(block[0], first_m1, out=out_mD)
        for state, weight_m1 in zip(block[1:], others, strict=True):
            out_mD.addcmul_(state, weight_m1)


def _dots(block: Block, vectors_mHD: torch.Tensor) -> torch.Tensor:
    """v . h_l of each head's vectors, [m, H, L]."""
    if isinstance(block, torch.Tensor):
        # Row by row as [H, D] x [D, L]: a third of the time of products that are written and then summed.
        return torch.bmm(vectors_mHD, block.permute(1, 2, 0))
    found_LmH = vectors_mHD.new_empty(len(block), *vectors_mHD.shape[:2])
    product_mHD = torch.empty_like(vectors_mHD)
    for state_mD, found_mH in zip(block, found_LmH, strict=True):
        torch.sum(torch.mul(state_mD[:, None], vectors_mHD, out=product_mHD), dim=-1, out=found_mH)
    return found_LmH.permute(1, 2, 0)
