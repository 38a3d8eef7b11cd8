"""Which rows of the states hold tokens. Padding is never read: neither computed on nor masked afterwards.

Dimensions: B batch, S encoder tokens, N = B x S rows, M rows that hold a token, L layers, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

__all__ = ["Rows", "empty_result", "flat", "gradients_of", "real_rows", "shaped"]


@dataclass(frozen=True)
class Rows:
    """The M rows of tokens among N, in order."""

    total: int
    """N."""
    count: int
    """M."""
    index: torch.Tensor | None
    """[M] row numbers, int64, on the states' device; None if all rows hold tokens."""

    def chunks(self, size: int) -> Iterator[tuple[int, int]]:
        """Ranges [lo, hi) that cover 0..M, at most `size` long."""
        for lo in range(0, self.count, size):
            yield lo, min(self.count, lo + size)

    def take(self, state_ND: torch.Tensor, lo: int, hi: int) -> torch.Tensor:
        """Tokens lo..hi of one state, [hi - lo, D]: a view if all rows hold tokens, else a copy of this chunk."""
        if self.index is not None:
            return state_ND.index_select(0, self.index[lo:hi])
        return state_ND if hi - lo == self.total else state_ND[lo:hi]

    def put(self, target_ND: torch.Tensor, lo: int, hi: int, values: torch.Tensor) -> None:
        """Write [hi - lo, D] to the rows of tokens lo..hi, in the target's dtype."""
        if self.index is None:
            target_ND[lo:hi] = values
        else:
            target_ND.index_copy_(0, self.index[lo:hi], values.to(target_ND.dtype))


def real_rows(mask_BS: torch.Tensor) -> Rows:
    """Rows of a mask [B, S] (0 on padding). On a GPU this waits for the device once."""
    index = mask_BS.flatten().nonzero().squeeze(1)
    total = mask_BS.numel()
    return Rows(total, index.numel(), None if index.numel() == total else index)


def flat(states: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """L states [B, S, D] as [N, D], views (only a state whose rows are not evenly spaced in memory is copied)."""
    return [state.reshape(-1, state.shape[-1]) for state in states]


def empty_result(rows: Rows, like_ND: torch.Tensor) -> torch.Tensor:
    """[N, D], contiguous, to be filled at the rows of tokens; zero at padding."""
    make = torch.empty_like if rows.index is None else torch.zeros_like
    return make(like_ND, memory_format=torch.contiguous_format)


def gradients_of(needed: Sequence[bool], states: Sequence[torch.Tensor]) -> dict[int, torch.Tensor]:
    """Zeros [N, D] for each state that needs a gradient (none if the encoder is frozen)."""
    return {n: torch.zeros_like(flat([state])[0]) for n, state in enumerate(states) if needed[n]}


def shaped(d_states: Mapping[int, torch.Tensor], states: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    """Gradients in the states' shapes, None where none is needed."""
    return [d_states[n].view_as(state) if n in d_states else None for n, state in enumerate(states)]
