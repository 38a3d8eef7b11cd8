"""Facts about a fusion (options, parameters, memory), for config, planner and docs. Imports no torch.

Dimensions: L encoder layers, D encoder width.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge_ds.fusion.base import Fusion

__all__ = ["BACKENDS", "GPU_CHUNK", "FusionSpec"]

BACKENDS = ("reference", "torch", "triton")
"""Values of `fusion.backend`, beside `auto`."""
GPU_CHUNK = 8192
"""Tokens of one chunk of the fast kernels on a GPU (:func:`bridge_ds.fusion.kernels.primitives.chunk_rows`)."""


def _none(*_: Any) -> int:
    return 0


@dataclass(frozen=True)
class FusionSpec:
    """One fusion. `config` below is the recipe's `fusion:` part."""

    module: str
    """Class of the module, as `package.module:Class`."""
    summary: str
    """One line, for the table of the docs."""
    options: tuple[str, ...] = ()
    """Keys of the recipe's `fusion:` part that the constructor takes; others have no effect."""
    parameters: Callable[[int, int, Any], int] = _none
    """(L, D, config) -> number of trained parameters."""
    activations: Callable[[int, int, int, int, Any], int] = _none
    """(tokens, L, D, bytes of an element of the states, config) -> bytes kept for backward, states and result aside."""
    mixes_layers: bool = True
    """Whether it reads more than the last layer; if not, `include_embeddings` and `lr_scale` have no effect."""

    def __call__(self, num_layers: int, width: int, **options: Any) -> Fusion:
        """Build the module.

        Args:
            num_layers: L.
            width: D.
            options: some of :attr:`options`.

        Raises:
            ValueError: an option's value does not fit the width.
        """
        module, _, name = self.module.partition(":")
        made: Fusion = getattr(importlib.import_module(module), name)(num_layers, width, **options)
        return made
