"""Fusions of the encoder's layers. A new one is one folder here and its line in FUSIONS. Imports no torch."""

from __future__ import annotations

from importlib import import_module

from bridge_ds.fusion.spec import BACKENDS, FusionSpec

__all__ = ["BACKENDS", "FUSIONS", "FusionSpec"]

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
