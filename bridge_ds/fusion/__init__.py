"""Fusions of the encoder's layers. A new one is one folder here and its line in FUSIONS. Imports no torch."""

from __future__ import annotations

from importlib import import_module

from bridge_ds.errors import ConfigError
from bridge_ds.fusion.spec import BACKENDS, FusionSpec

__all__ = ["BACKENDS", "FUSIONS", "FusionSpec", "refuse_other_heads"]

FUSIONS: dict[str, FusionSpec] = {
    name: import_module(f"{__name__}.{name}").SPEC
    for name in (
        "last_layer",
        "global_softmax",
        "transformer_softmax",
        "layer_attention",
    )
}
"""Values of `fusion.name`; `FUSIONS[name](num_layers=L, width=D, **options)` builds the module."""


def refuse_other_heads(name: str, heads: int, width: int) -> None:
    """Raises ConfigError where the fusion of this name has heads and so many do not divide the encoder's width."""
    if "heads" in FUSIONS[name].options and width % heads:
        raise ConfigError(
            f"fusion.heads is {heads}, and the encoder's width is {width}; expected a divisor of that; set another."
        )
