"""Dropout factors from a counter-based generator: the same on every backend and device, for any chunk size.

Number i of a seed is SplitMix64's (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"), a
hash of the seed and i. It has no state, so all numbers are drawn at once; torch's own CPU generator draws them one by
one, which takes as long as a pass over the states. A GPU kernel computes an element's factor when it needs it and
stores none. 64 bits serve four elements, 16 bits each; the probability is rounded to a multiple of
2**-16.

Dimensions: M tokens, m of a chunk, P positions of the attention, D width, H heads, F hidden width of the MLP.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

__all__ = ["Draws", "Factors", "Masks", "make_masks"]

STEP, FIRST_FACTOR, SECOND_FACTOR = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""SplitMix64's constants."""


_known: torch.Tensor | None = None
"""The longest result of :func:`_multiples` on a CPU."""


@dataclass
class Draws:
    """Factors of all elements of one chunk's tokens, drawn when first needed."""

    seed: int
    """Below 2**63."""
    lo: int
    """Number of the first token."""
    size: int
    """Elements a token."""
    dropped: int
    """Of 65536 on average."""
    _drawn: torch.Tensor | None = field(default=None, repr=False)

    @property
    def kept_scale(self) -> float:
        """Factor of elements that are not dropped."""
        return 65536 / (65536 - self.dropped)

    def drawn(self, tokens: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """The factors [tokens, size] without their scale, 0 or 1; drawn once and kept with this object."""
        if self._drawn is None:
            found = draw(self.lo * self.size, tokens * self.size, self.seed, self.dropped, dtype, device)
            self._drawn = found.view(tokens, self.size)
        return self._drawn


@dataclass(frozen=True)
class Factors:
    """Dropout factors of one of the quantities that dropout applies to."""

    draws: Draws
    offset: int
    """Of its elements among a token's."""
    width: int
    """Its elements a token."""

    @property
    def first(self) -> int:
        """Number of the first token's first element; the next token's is `draws.size` further on."""
        return self.draws.lo * self.draws.size + self.offset

    def kept(self, x: torch.Tensor) -> torch.Tensor:
        """1 where an element of `x` [m, ...] of `width` elements each is kept, else 0; float32 or wider. What is kept
        is to be scaled by :attr:`Draws.kept_scale`."""
        wide = torch.promote_types(x.dtype, torch.float32)
        drawn = self.draws.drawn(x.numel() // self.width, wide, x.device)
        return drawn[:, self.offset : self.offset + self.width].view(x.shape)


@dataclass(frozen=True)
class Masks:
    """Where torch's nn.TransformerEncoderLayer has dropout, for one chunk; none where dropout is off."""

    attention: Factors | None = None
    """On the attention [m, H, P]."""
    output: Factors | None = None
    """On the attention's output [m, D]."""
    hidden: Factors | None = None
    """On the MLP's hidden units [m, F]."""
    ffn: Factors | None = None
    """On the MLP's output [m, D]."""

    @property
    def hidden_scale(self) -> float:
        """Factor of hidden units that are not dropped."""
        return 1.0 if self.hidden is None else self.hidden.draws.kept_scale


def make_masks(dropout: float, seed: int, lo: int, sizes: tuple[int, int, int]) -> Masks:
    """The factors of the tokens from `lo` on.

    Args:
        dropout: probability.
        seed: below 2**63.
        sizes: elements a token: H x P, D and F.
    """
    dropped = min(round(dropout * 65536), 65535)
    if dropped == 0:
        return Masks()
    attention, width, hidden = sizes
    draws = Draws(seed, lo, attention + 2 * width + hidden, dropped)
    return Masks(
        Factors(draws, 0, attention),
        Factors(draws, attention, width),
        Factors(draws, attention + width, hidden),
        Factors(draws, attention + width + hidden, width),
    )


def draw(first: int, count: int, seed: int, dropped: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """1 where an element is kept, else 0, of elements first, first + 1, ..., as many as `count`."""
    skipped, begin = first % 4, first // 4 + 1
    z = _multiples(-(-(count + skipped) // 4), device) + _signed((begin * STEP + seed) % 2**64)
    z = z.bitwise_xor_(_shifted(z, 30)).mul_(_signed(FIRST_FACTOR))
    z = z.bitwise_xor_(_shifted(z, 27)).mul_(_signed(SECOND_FACTOR))
    bits = z.bitwise_xor_(_shifted(z, 31)).view(torch.int16)[skipped : skipped + count]
    drawn = torch.empty(count, dtype=dtype, device=device)
    # Written as numbers at once: through booleans it takes five times as long on a CPU.
    return torch.ge(bits, dropped - 32768, out=drawn)


def _multiples(count: int, device: torch.device) -> torch.Tensor:
    """0, STEP, 2 STEP, ...; on a CPU, where chunks are small, the most that were asked for are kept for other calls."""
    global _known
    if device.type == "cpu" and _known is not None and len(_known) >= count:
        return _known[:count]
    found = torch.arange(count, device=device).mul_(_signed(STEP))
    if device.type == "cpu":
        _known = found
    return found


def _signed(value: int) -> int:
    """The int64 of the same bits."""
    return value - (value >> 63 << 64)


def _shifted(z: torch.Tensor, by: int) -> torch.Tensor:
    """z >> by with zeros from the left, which torch's int64 does not have."""
    return (z >> by).bitwise_and_((1 << (64 - by)) - 1)
