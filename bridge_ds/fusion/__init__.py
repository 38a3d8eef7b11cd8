"""Fusions of the encoder's layers. A new one is one file here and one line in FUSIONS."""

from __future__ import annotations

from bridge_ds.fusion.base import Fusion
from bridge_ds.fusion.global_softmax import GlobalSoftmax
from bridge_ds.fusion.last_layer import LastLayer
from bridge_ds.fusion.layer_attention import LayerAttention
from bridge_ds.fusion.transformer_softmax import TransformerSoftmax

__all__ = ["FUSIONS", "Fusion"]

FUSIONS: dict[str, type[Fusion]] = {
    "last_layer": LastLayer,
    "global_softmax": GlobalSoftmax,
    "transformer_softmax": TransformerSoftmax,
    "layer_attention": LayerAttention,
}
"""`FUSIONS[name](num_layers=L, width=D, **options)`."""
