"""Global Softmax (arXiv 2508.09091): one weight per layer, the same for every token."""

from __future__ import annotations

from bridge_ds.fusion.spec import FusionSpec

__all__ = ["SPEC"]

SPEC = FusionSpec(
    module="bridge_ds.fusion.global_softmax.module:GlobalSoftmax",
    summary="one learnt weight per layer, the same for every token",
    options=("backend", "state_norm"),
    parameters=lambda layers, width, config: layers + 1,
)
