"""The encoder's last layer alone: LangBridge (arXiv 2401.10695), the baseline."""

from __future__ import annotations

from bridge_ds.fusion.spec import FusionSpec

__all__ = ["SPEC"]

SPEC = FusionSpec(
    module="bridge_ds.fusion.last_layer.module:LastLayer",
    summary="the last layer alone (LangBridge)",
    mixes_layers=False,
)
