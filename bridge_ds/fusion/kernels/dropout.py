"""Dropout factors from a counter-based generator: the same on every path and device, and drawn again for nothing.

Number i of a seed is SplitMix64's (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), a
hash of the seed and i: no state runs through it, so that all numbers are drawn at once, where torch's own CPU generator
goes one by one and takes as long as a pass over the states. 64 bits decide on four elements, 16 bits each; the
probability is rounded to a multiple of 2**-16.

Letters: m tokens of a chunk, L layers, D width, H heads, F hidden width of the MLP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

__all__ = ["Draw", "Masks", "draw", "draw_masks", "restore_masks"]

Draw = Callable[[int, int, int, float, torch.dtype, torch.device], torch.Tensor]
"""A path's :func:`draw`."""
STEP, FIRST, SECOND = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
"""SplitMix64's constants, as int64."""


@dataclass(frozen=True)
class Masks:
    """Dropout factors of one chunk, 0 or 1 / (1 - p); none where dropout is off."""

    attention: torch.Tensor | None = None
    """[m, H, L + 1]."""
    output: torch.Tensor | None = None
    """[m, D], on the attention's output."""
    hidden: torch.Tensor | None = None
    """[m, F], on the MLP's hidden units."""
    ffn: torch.Tensor | None = None
    """[m, D], on the MLP's output."""
    kept_scale: float = 1.0
    """The factor of what is kept, 1 / (1 - p)."""

    @property
    def factors(self) -> tuple[torch.Tensor | None, ...]:
        """The four tensors."""
        return self.attention, self.output, self.hidden, self.ffn


def draw_masks(
    path_draw: Draw, dropout: float, seed: int, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype,
    device: torch.device,
) -> Masks:  # fmt: skip
    """Factors that depend on `seed` alone, so that backward can draw them again instead of keeping them.

    Args:
        path_draw: the path's way to :func:`draw`.
        dropout: probability.
        seed: below 2**63.
        shapes: of the four tensors of :class:`Masks`.
    """
    dropped = _dropped(dropout)
    if dropped == 0:
        return Masks()
    counts = [math.prod(shape) for shape in shapes]
    keep = path_draw(sum(counts), seed, dropped, _kept_scale(dropout), dtype, device)
    attention, output, hidden, ffn = (part.view(of) for part, of in zip(keep.split(counts), shapes, strict=True))
    return Masks(attention, output, hidden, ffn, _kept_scale(dropout))


def restore_masks(factors: Sequence[torch.Tensor | None], dropout: float) -> Masks:
    """The masks that had these `factors`, drawn with this `dropout`."""
    attention, output, hidden, ffn = factors
    return Masks(attention, output, hidden, ffn, _kept_scale(dropout))


def draw(
    count: int, seed: int, dropped: int, kept_scale: float, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """`count` factors: 0 for `dropped` of 65536 on average, else `kept_scale`."""
    z = torch.arange(1, -(-count // 4) + 1, device=device).mul_(STEP).add_(seed)
    z = z.bitwise_xor_(_shifted(z, 30)).mul_(FIRST)
    z = z.bitwise_xor_(_shifted(z, 27)).mul_(SECOND)
    bits = z.bitwise_xor_(_shifted(z, 31)).view(torch.int16)[:count]
    factors = torch.empty(count, dtype=dtype, device=device)
    # Written as numbers at once: through booleans it takes five times as long on a CPU.
    return torch.ge(bits, dropped - 32768, out=factors).mul_(kept_scale)


def _shifted(z: torch.Tensor, by: int) -> torch.Tensor:
    """z >> by with zeros from the left, which torch's int64 has not."""
    return (z >> by).bitwise_and_((1 << (64 - by)) - 1)


def _kept_scale(dropout: float) -> float:
    """The factor of what is not dropped."""
    return 65536 / (65536 - _dropped(dropout))


def _dropped(dropout: float) -> int:
    return min(round(dropout * 65536), 65535)
